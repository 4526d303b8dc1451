package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/image/releasetest"
)

var deviceName = regexp.MustCompile(`/dev/(sd[a-z])`)

// guide reads the commands of image/fleet/FLEET.md: those of the way to a cluster, and those that come later.
func guide(t *testing.T) (way, later []string) {
	t.Helper()
	data, err := os.ReadFile("../../image/fleet/FLEET.md")
	if err != nil {
		t.Fatal(err)
	}
	first, rest, ok := strings.Cut(string(data), "<!-- end of commands -->")
	if !ok {
		t.Fatal("FLEET.md has no end of commands")
	}
	read := func(text string) (out []string) {
		for line := range strings.Lines(text) {
			if c, ok := strings.CutPrefix(line, "    $ "); ok {
				out = append(out, strings.TrimSpace(c))
			}
		}
		return out
	}
	return read(first), read(rest)
}

// Every command of FLEET.md is run as it stands there, with files in the place of card readers. make release and kubectl are of other
// programs: the release is a small one here, and e2e asks a cluster with the kubeconfig.
func TestFleetGuide(t *testing.T) {
	way, later := guide(t)
	if len(way) == 0 || len(way) > 10 {
		t.Fatalf("the way to a cluster takes %d commands", len(way))
	}
	if last := way[len(way)-1]; last != "kubectl --kubeconfig kubeconfig get nodes" {
		t.Errorf("the way ends with %s", last)
	}
	b := releasetest.New(t, 1<<20)
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(b.Release), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sdb", "sdc"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			err = f.Truncate(2 << 30)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(line string) string {
		t.Helper()
		line, apply, _ := strings.Cut(line, " | ")
		args := strings.Fields(deviceName.ReplaceAllString(line, "$1"))
		if args[0] != "skerry" {
			return ""
		}
		if slices.Contains(args, "flash") && !slices.Contains(args, "--list") {
			args = slices.Insert(args, 2, "--yes")
		}
		cmd := &exec.Cmd{Path: exe, Args: args, Dir: dir}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out.String())
		}
		if apply != "" && apply != "kubectl --kubeconfig kubeconfig apply -f -" {
			t.Errorf("%s: goes to %s", line, apply)
		}
		return out.String()
	}
	said := map[string]string{}
	for _, line := range way {
		said[line] = run(line)
	}
	for line, want := range map[string]string{
		"skerry fleet build -o cards":           "20 cards in cards",
		"skerry flash cards /dev/sdb /dev/sdc":  "18 of 20 cards are still to be written; next is agent-2",
		"skerry fleet cards cards":              "server-1",
		"skerry fleet kubeconfig -o kubeconfig": "https://192.168.1.10:6443",
	} {
		if !strings.Contains(said[line], want) {
			t.Errorf("%s: lacks %q:\n%s", line, want, said[line])
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "kubeconfig"))
	var k map[string]any
	if err == nil {
		err = yaml.Unmarshal(data, &k)
	}
	if err != nil || k["current-context"] != "home" {
		t.Errorf("kubeconfig: %v %v", err, k["current-context"])
	}

	// For the part about one card, every node needs a name of its hardware.
	name := filepath.Join(dir, "fleet.yaml")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range later {
		if strings.Contains(line, "--generic") {
			text = regexp.MustCompile(`\{name: ([a-z0-9-]+),`).ReplaceAll(text, []byte("{name: $1, serial: of-$1,"))
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out := run(line); strings.Contains(line, "tokens") && strings.Count(out, "kind: Secret") != 19 {
			t.Errorf("%s:\n%s", line, out)
		}
	}
}
