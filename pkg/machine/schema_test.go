package machine_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/machine"
)

var update = flag.Bool("update", false, "rewrite the golden files (make golden); read the diff before you commit it")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code says (%v): run make golden and read the diff", name, err)
	}
}

func TestGoldenSchema(t *testing.T) {
	got, err := machine.Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/schema.json", got)
}

func TestGoldenManual(t *testing.T) {
	got, err := machine.Manual()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "CONFIG.md", got)
}

func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	data, err := machine.Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(machine.SchemaID, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(machine.SchemaID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judge says what an editor says of a file.
func judge(s *jsonschema.Schema, data []byte) error {
	var v any
	if err := yaml.Unmarshal(data, &v); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if v, err = jsonschema.UnmarshalJSON(bytes.NewReader(text)); err != nil {
		return err
	}
	return s.Validate(v)
}

// Every key needs a text; the tags say what they can say.
func TestKeys(t *testing.T) {
	var walk func(where string, keys []machine.Key)
	walk = func(where string, keys []machine.Key) {
		for _, k := range keys {
			at := where + k.Name
			if k.Name == "" || k.Help == "" || strings.HasSuffix(k.Help, ".") {
				t.Errorf("%s: has no name, no text, or one that ends in a full stop", at)
			}
			for _, p := range []string{k.Pattern, k.Names} {
				if _, err := regexp.Compile(p); err != nil {
					t.Errorf("%s: %v", at, err)
				}
			}
			if k.Kind == machine.Number && k.Min > k.Max {
				t.Errorf("%s: goes from %d to %d", at, k.Min, k.Max)
			}
			walk(at+".", k.Keys)
		}
	}
	walk("", machine.Keys())
}

var configs = regexp.MustCompile(`(?m)^( *)apiVersion: skerry/v1alpha1\n`)

// Every config that people are shown, in this repository's texts and examples, is one that both Decode and the schema take.
func TestShownConfigs(t *testing.T) {
	s := schema(t)
	shown := 0
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && slices.Contains([]string{".git", "out", "testdata"}, d.Name()) {
				return fs.SkipDir
			}
			return err
		}
		if ext := filepath.Ext(name); ext != ".md" && ext != ".yaml" || !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		text := string(data)
		for {
			m := configs.FindStringSubmatchIndex(text)
			if m == nil {
				return nil
			}
			indent := text[m[2]:m[3]]
			var doc []string
			for line := range strings.Lines(text[m[0]:]) {
				if !strings.HasPrefix(line, indent) && strings.TrimSpace(line) != "" || strings.HasPrefix(line, "```") || strings.HasPrefix(line, "---") {
					break
				}
				doc = append(doc, strings.TrimPrefix(line, indent))
			}
			text = text[m[0]+len("apiVersion"):]
			body := strings.Join(doc, "")
			if !strings.Contains(body, "kind: NodeConfig") {
				continue
			}
			shown++
			if _, err := machine.Decode(name, []byte(body)); err != nil {
				t.Errorf("%v\nin\n%s", err, body)
			}
			if err := judge(s, []byte(body)); err != nil {
				t.Errorf("%s: the schema says %v", name, err)
			}
		}
	})
	if err != nil || shown < 4 {
		t.Errorf("found %d configs, %v", shown, err)
	}
}

// everything is a config that has every key.
func everything(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A file with every key in it is good for both, and no key is missing in it.
func TestEverything(t *testing.T) {
	data := everything(t)
	if _, err := machine.Decode("everything.yaml", data); err != nil {
		t.Fatal(err)
	}
	if err := judge(schema(t), data); err != nil {
		t.Error(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, section := range []string{"network", "update", "ntp"} {
		for _, k := range machine.Keys() {
			if k.Name != section {
				continue
			}
			for _, below := range k.Keys {
				if _, ok := doc[section].(map[string]any)[below.Name]; !ok {
					t.Errorf("%s.%s is not in testdata/everything.yaml", section, below.Name)
				}
			}
		}
	}
}

// What Decode refuses for its shape, the schema refuses too: at each place of a file with everything in it, a value of another
// kind, and a key that does not exist.
func TestShape(t *testing.T) {
	s := schema(t)
	var root yaml.Node
	if err := yaml.Unmarshal(everything(t), &root); err != nil {
		t.Fatal(err)
	}
	tried, refused := 0, 0
	try := func(where string, what string) {
		data, err := yaml.Marshal(&root)
		if err != nil {
			t.Fatal(err)
		}
		_, derr := machine.Decode("x", data)
		serr := judge(s, data)
		tried++
		if derr != nil {
			refused++
		}
		if derr != nil && serr == nil {
			t.Errorf("%s: %s: the schema takes it; Decode says %v", where, what, derr)
		}
	}
	var walk func(n *yaml.Node, where string)
	walk = func(n *yaml.Node, where string) {
		kept := *n
		switch n.Kind {
		case yaml.DocumentNode:
			walk(n.Content[0], where)
			return
		case yaml.MappingNode:
			n.Content = append(slices.Clone(n.Content), &yaml.Node{Kind: yaml.ScalarNode, Value: "no such key"}, &yaml.Node{Kind: yaml.ScalarNode, Value: "x"})
			try(where, "an unknown key")
			*n = kept
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(n.Content[i+1], where+"."+n.Content[i].Value)
			}
			*n = yaml.Node{Kind: yaml.SequenceNode}
			try(where, "a list for a section")
		case yaml.SequenceNode:
			for i, c := range n.Content {
				walk(c, fmt.Sprintf("%s[%d]", where, i))
			}
			*n = yaml.Node{Kind: yaml.MappingNode}
			try(where, "a section for a list")
		default:
			*n = yaml.Node{Kind: yaml.SequenceNode}
			try(where, "a list for a value")
			*n = yaml.Node{Kind: yaml.ScalarNode, Value: "%", Style: yaml.DoubleQuotedStyle}
			if kept.Tag == "!!int" || kept.Tag == "!!bool" {
				try(where, "a text for a number or switch")
			}
		}
		*n = kept
	}
	walk(&root, "")
	if refused < 60 {
		t.Errorf("of %d changed files Decode refused %d", tried, refused)
	}
}

// The faults of the table that are of shape.
func TestSchemaRefuses(t *testing.T) {
	s := schema(t)
	for _, text := range []string{
		"apiVersion: v1\nkind: NodeConfig\nrole: server\n",
		head,
		head + "role: agent\n",
		head + "role: master\n",
		server + "hostname: North_1\n",
		server + "update: {policy: sometimes}\n",
		server + "update: {windows: [soon]}\n",
		server + "server: {token: abcdefghijklmnopq}\n",
		server + "agent: {node-label: [a=b]}\n",
		agent + "server: {tls-san: [a]}\n",
		server + "network: {interfaces: [{name: eth0, mtu: 100}]}\n",
		server + "sysctls: {\"../../etc/passwd\": x}\n",
	} {
		_, err := machine.Decode("x", []byte(text))
		var invalid *jsonschema.ValidationError
		if serr := judge(s, []byte(text)); err == nil || !errors.As(serr, &invalid) {
			t.Errorf("%q: Decode says %v, the schema %v", text, err, serr)
		}
	}
}
