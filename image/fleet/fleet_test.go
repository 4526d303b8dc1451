package fleet

import (
	"errors"
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

var update = flag.Bool("update", false, "rewrite the golden files (make golden); read the diff before you commit it")

// boardList grows with every board.
var boardList = regexp.MustCompile("is not one of [^;]*; `skerry board list`")

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || string(want) != got {
		t.Errorf("%s: %v; got\n%s\nwant\n%s", name, err, got, want)
	}
}

// Each file in testdata/faults has what is said of it beside it: everything at once, each fault at its place.
func TestFaults(t *testing.T) {
	names, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Decode(filepath.Base(name), data)
		if err == nil {
			t.Errorf("%s: has no fault", name)
			continue
		}
		for _, e := range split(err) {
			var f strictyaml.Fault
			if !errors.As(e, &f) || f.Line == 0 && name != "testdata/faults/empty.yaml" {
				t.Errorf("%s: %v: has no place", name, e)
			}
		}
		golden(t, strings.TrimSuffix(name, ".yaml")+".golden", boardList.ReplaceAllString(err.Error(), "is not one of …; `skerry board list`")+"\n")
	}
}

// The configs of a fleet with everything in it are what one would have written by hand.
func TestNodeConfigs(t *testing.T) {
	f, err := Load("testdata/whole.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for i := range f.Nodes {
		n := &f.Nodes[i]
		data, err := f.NodeConfig(n, placeholder)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := machine.Decode(n.Name, data); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		all.Write(data)
		all.WriteString("---\n")
	}
	golden(t, "testdata/whole.golden", all.String())
}

// Check names what is wrong outside of the file, at its place in the file.
func TestCheck(t *testing.T) {
	b := releasetest.New(t, 1<<20)
	dir := filepath.Dir(b.Release)
	foreign := *b.Signed.Manifest()
	foreign.Arch = "arm64"
	arm := *b
	arm.Release = filepath.Join(dir, "arm64")
	if err := os.Mkdir(arm.Release, 0o755); err != nil {
		t.Fatal(err)
	}
	arm.Sign(t, &foreign)
	_, err := keys.New(filepath.Join(dir, "other"), "somebody else", keys.Source{})
	if err != nil {
		t.Fatal(err)
	}
	few := *b
	few.Release = filepath.Join(dir, "few")
	if err := os.Mkdir(few.Release, 0o755); err != nil {
		t.Fatal(err)
	}
	without := *b.Signed.Manifest()
	without.Boards = maps.Clone(without.Boards)
	without.Boards["aws"] = without.Boards["x86-uefi"]
	delete(without.Boards, "x86-uefi")
	few.Sign(t, &without)
	head := "apiVersion: skerry/v1alpha1\nkind: Fleet\nname: x\n"
	nodes := "nodes: [{name: a, board: x86-uefi, role: server}]\n"
	for text, want := range map[string]string{
		head + "keys: keys\nreleases: {amd64: release}\n" + nodes:                  "",
		head + "keys: nokeys\nreleases: {amd64: release}\n" + nodes:                "fleet.yaml:4:7: keys: open " + dir + "/nokeys/release.pub: no such file or directory; name the folder",
		head + "keys: other\nreleases: {amd64: release}\n" + nodes:                 "; name the folder with the key it was signed with as keys",
		head + "keys: keys\nreleases: {amd64: few}\n" + nodes:                      "a: release 1.2.3 has nothing for board x86-uefi, only for [aws]",
		head + "keys: keys\nreleases: {amd64: arm64}\n" + nodes:                    "fleet.yaml:5:19: releases.amd64: " + dir + "/arm64 is a release for arm64; name one for amd64",
		head + "keys: keys\nreleases: {amd64: nothing, arm64: release}\n" + nodes:  "fleet.yaml:5:19: releases.amd64: " + dir + "/nothing is not a release's folder; make one with: skerry release build --arch amd64",
		head + "keys: keys\nreleases: {amd64: nothing, arm64: release }\n" + nodes: "fleet.yaml:5:35: releases.arm64: " + dir + "/release is a release for amd64",
	} {
		f, err := Decode(filepath.Join(dir, "fleet.yaml"), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		err = f.Check()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// What `skerry fleet new` writes can be built as it is.
func TestNew(t *testing.T) {
	for _, s := range []Sketch{
		{Name: "home", Boards: []Batch{{"x86-uefi", 3}}, Servers: 1, Address: netip.MustParsePrefix("192.0.2.10/24"), Gateway: netip.MustParseAddr("192.0.2.1")},
		{Name: "big", Boards: []Batch{{"x86-uefi", 1000}}, Servers: 3, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")},
		{Name: "desk", Boards: []Batch{{"x86-uefi", 3}, {"rpi4", 20}, {"beaglebone-black", 1}}, Servers: 3, Address: netip.MustParsePrefix("192.0.2.10/24"), Gateway: netip.MustParseAddr("192.0.2.1")},
	} {
		text, err := New(s)
		if err != nil {
			t.Errorf("%s: %v\n%s", s.Name, err, text)
			continue
		}
		if s.Name == "home" {
			golden(t, "testdata/new.golden", string(text))
		}
	}
	if _, err := New(Sketch{Name: "x", Boards: []Batch{{"x86-uefi", 3}}, Servers: 3, Address: netip.MustParsePrefix("192.0.2.254/30"), Gateway: netip.MustParseAddr("192.0.2.253")}); err == nil {
		t.Error("addresses outside of the network")
	}
}

// Whatever is read, a fleet without a fault makes node configs without one.
func FuzzDecode(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/faults/*.yaml"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fl, err := Decode("fleet.yaml", data)
		if err != nil {
			return
		}
		for i := range fl.Nodes {
			out, err := fl.NodeConfig(&fl.Nodes[i], placeholder)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := machine.Decode("config.yaml", out); err != nil {
				t.Fatalf("%v\nof\n%s\nwrote\n%s", err, data, out)
			}
		}
	})
}
