package strictyaml

import (
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/size"
)

type common struct {
	Name string `yaml:"node-name"`
}

type doc struct {
	common `yaml:",inline"`
	Port   int               `yaml:"port"`
	On     bool              `yaml:"on"`
	Size   size.Bytes        `yaml:"size"`
	List   []struct{ A int } `yaml:"list"`
	Labels map[string]string `yaml:"labels"`
	hidden int               //nolint:unused // must not be a key
}

func TestGood(t *testing.T) {
	var d doc
	in := "node-name: a\nport: 3\non: true\nsize: 4KiB\nlist:\n- a: 1\n- a: 2\nlabels: {x: y}\n"
	if _, err := Decode("f", []byte(in), &d); err != nil {
		t.Fatal(err)
	}
	if d.Name != "a" || d.Port != 3 || !d.On || d.Size != 4*size.KiB || len(d.List) != 2 || d.List[1].A != 2 || d.Labels["x"] != "y" {
		t.Errorf("%+v", d)
	}
}

// Every kind of fault names file, line and column, and all faults of a file come at once.
func TestFaults(t *testing.T) {
	for in, want := range map[string][]string{
		"prot: 3\n":                          {`f:1:1: unknown key "prot"; did you mean "port"?`},
		"a: 1\nb: 2\n":                       {`f:1:1: unknown key "a"`, `f:2:1: unknown key "b"`},
		"list:\n- a: 1\n  bb: 2\n":           {`f:3:3: unknown key "list.bb"`},
		"port: 1\nport: 2\n":                 {`f:2:1: key "port" is here twice; the first is on line 1`},
		"port: many\n":                       {"f:1:7: `many` is not a whole number"},
		"on: maybe\nport: x\n":               {"f:1:5: `maybe` is not true or false", "f:2:7: `x` is not a whole number"},
		"size: 5\n":                          {`f:1:7: size "5": has no unit`},
		"list: 3\n":                          {"f:1:7: list: wants a list here"},
		"port: [1]\n":                        {"f:1:7: port: wants a single value here"},
		"- a\n":                              {"f:1:1: wants keys and values here"},
		"labels: [a]\n":                      {"f:1:9: labels: wants keys and values"},
		"node-name: &x a\n":                  {"f:1:12: anchors and aliases"},
		"port: 1\n---\nport: 2\n":            {"f: holds more than one document"},
		"port: [\n":                          {"f:"},
		"port: 1\n\tx: 1\n":                  {"f:2:1: "},
		"hidden: 1\n":                        {`unknown key "hidden"`},
		strings.Repeat("#", MaxBytes) + "\n": {"bytes; at most"},
	} {
		_, err := Decode("f", []byte(in), new(doc))
		if err == nil {
			t.Errorf("%.40q: no error", in)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%.40q: error\n%v\ndoes not contain\n%s", in, err, w)
			}
		}
	}
}

func TestAt(t *testing.T) {
	var v doc
	d, err := Decode("f", []byte("port: 1\nlist:\n- a: 1\n- a: 7\n"), &v)
	if err != nil {
		t.Fatal(err)
	}
	for want, path := range map[string][]any{
		"f:4:6: m": {"list", 1, "a"},
		"f:3:1: m": {"list", 9},
		"f:1:1: m": {"missing"},
	} {
		if got := d.At("m", path...).Error(); got != want {
			t.Errorf("At(%v) = %q, want %q", path, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("list:\n- a: 1\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = Decode("f", data, new(doc)) })
}
