package netboot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/seed"
)

func TestMachinesOfAFleetsFile(t *testing.T) {
	b := bench(t)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	write := func(nodes string) *fleet.Fleet {
		text := fmt.Sprintf("apiVersion: skerry/v1alpha1\nkind: Fleet\nname: lab\nkeys: %s\nreleases: {amd64: %s}\ncluster: {server: \"https://10.11.12.50:6443\"}\nnodes:\n%s", b.Keys, b.Release, nodes)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := fleet.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	const first = "  - {name: north-1, board: x86-uefi, role: server, mac: \"52:54:00:AA:00:01\"}\n"
	f := write(first + "  - {name: south-1, board: x86-uefi, role: agent, serial: S-2}\n")
	n, err := OpenNodes(f, fleet.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	got, ok, err := n.Find(Claim{MAC: "52:54:00:aa:00:01"})
	if err != nil || !ok || got.Name != "north-1" || got.Board != "x86-uefi" || len(got.Beside[seed.Name]) == 0 {
		t.Errorf("the first server: %+v, %v", got, err)
	}
	got, ok, err = n.Find(Claim{MAC: "02:00:00:00:00:01", Serial: "S-2"})
	if err != nil || !ok || got.Name != "south-1" || len(got.Beside) != 0 {
		t.Fatalf("the agent: %+v, %v", got, err)
	}
	c, err := machine.Decode(got.File, got.Config)
	if err != nil || !strings.HasPrefix(c.Cluster.Token, "K10") || c.Cluster.Server != "https://10.11.12.50:6443" {
		t.Errorf("the agent's config: %s, %v", got.Config, err)
	}
	if _, ok, err := n.Find(Claim{MAC: "02:00:00:00:00:01", Serial: "S-3"}); ok || err != nil {
		t.Errorf("somebody else: %v", err)
	}
	for _, mac := range []string{"", "02:00:00:00:00:01"} { // one that says nothing of itself is none of those that have no serial
		if got, ok, err := n.Find(Claim{MAC: mac}); ok || err != nil {
			t.Errorf("nobody: %+v, %v", got, err)
		}
	}
	again, err := OpenNodes(f, fleet.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if same, _, _ := again.Find(Claim{MAC: "02:00:00:00:00:01", Serial: "S-2"}); string(same.Config) != string(got.Config) {
		t.Error("another token after a restart of the server")
	}
	if _, err := OpenNodes(write("  - {name: north-1, board: x86-uefi, role: server}\n"), fleet.Options{Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "neither mac nor serial") {
		t.Errorf("a node without a machine: %v", err)
	}
}

func TestAFolderOfConfigs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"52-54-00-aa-00-01.yaml": releasetest.Config, "S-9.yaml": "role: king\n", "notes.txt": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := Folder(dir)
	if n, ok, err := f.Find(Claim{MAC: "52:54:00:aa:00:01"}); err != nil || !ok || n.Name != "north-1" {
		t.Errorf("%+v, %v", n, err)
	}
	if _, ok, err := f.Find(Claim{MAC: "02:00:00:00:00:02", Serial: "S-9"}); ok || err == nil {
		t.Error("a broken config is used")
	}
	for _, serial := range []string{"../secret", ".hidden", "S-8", ""} {
		if _, ok, err := f.Find(Claim{MAC: "02:00:00:00:00:02", Serial: serial}); ok || err != nil {
			t.Errorf("%q: %v", serial, err)
		}
	}
	if err := f.Check(); err == nil || !strings.Contains(err.Error(), "S-9.yaml") {
		t.Errorf("%v", err)
	}
}

func TestAMachineThatWentSilentIsNoticed(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		m    Machine
		says string
	}{
		"writes":             {Machine{Stage: "writing", Last: now.Add(-5 * time.Second)}, ""},
		"lost its link":      {Machine{Stage: "writing", Last: now.Add(-5 * time.Minute)}, "is its cable in"},
		"loads":              {Machine{Stage: StageBooting, Last: now.Add(-5 * time.Minute)}, ""},
		"installed long ago": {Machine{Stage: "installed", Last: now.Add(-5 * time.Hour)}, ""},
		"failed":             {Machine{Stage: "failed", Last: now.Add(-5 * time.Hour), Error: "no disk"}, "no disk"},
	} {
		if got := c.m.Trouble(now); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
