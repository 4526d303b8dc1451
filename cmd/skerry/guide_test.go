package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/image/imagetest"
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

// readmeCommands are those of the README's page about cards.
func readmeCommands(t *testing.T) (out []string) {
	t.Helper()
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(data), "\n## A box of cards\n")
	page, _, ok := strings.Cut(page, "\n## ")
	if !ok {
		t.Fatal("the README has no page about cards")
	}
	for line := range strings.Lines(page) {
		if c, ok := strings.CutPrefix(line, "    "); ok {
			c, _, _ = strings.Cut(c, " # ")
			out = append(out, strings.TrimSpace(c))
		}
	}
	return out
}

// stand is what a bench has in the place of programs that take an hour, or a cluster: make says what the real Makefile would do, with these
// very words, and kubectl keeps what it was asked.
const stand = `#!/bin/bash
case ${0##*/} in
make) exec env -u MAKEFLAGS -u MAKELEVEL -u ARCH -u OUT %s --no-print-directory -C '%s' --dry-run --always-make "$@" ;;
kubectl) test -e kubeconfig && cat >kubectl.in </dev/stdin; echo "kubectl $*" ;;
esac
`

// Every command of the way in FLEET.md is run by a shell, one after the other in one folder, as it stands there, and yes is typed where it
// is asked for. Only the devices are files, since nobody's are to be written. What make builds is there already, small, where the Makefile
// puts it. e2e asks a cluster with the kubeconfig. The README shows the same commands.
func TestFleetGuide(t *testing.T) {
	way, later := guide(t)
	if len(way) == 0 || len(way) > 10 {
		t.Fatalf("the way to a cluster takes %d commands", len(way))
	}
	if last := way[len(way)-1]; last != "kubectl --kubeconfig kubeconfig get nodes" {
		t.Errorf("the way ends with %s", last)
	}
	if shown := readmeCommands(t); !slices.Equal(shown, way) {
		t.Errorf("the README shows\n%s\nand FLEET.md\n%s", strings.Join(shown, "\n"), strings.Join(way, "\n"))
	}
	make := imagetest.Tool(t, "make", "make")
	b := releasetest.New(t, 1<<20)
	b.Beside(t, "release-arm64", "arm64", "rpi4")
	b.Beside(t, "release-arm", "arm", "beaglebone-black")
	dir := t.TempDir()
	out := filepath.Dir(b.Release)
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Symlink(out, filepath.Join(dir, "out")))
	bin := filepath.Join(dir, "stand")
	for _, d := range []string{bin, filepath.Join(out, "bin"), filepath.Join(out, "amd64/usr/bin")} {
		check(os.MkdirAll(d, 0o755))
	}
	for _, name := range []string{filepath.Join(bin, "make"), filepath.Join(out, "amd64/usr/bin/kubectl")} {
		check(os.WriteFile(name, fmt.Appendf(nil, stand, make, repository), 0o755))
	}
	check(os.Symlink(exe, filepath.Join(out, "bin/skerry")))
	for _, name := range []string{"sdb", "sdc"} {
		f, err := os.Create(filepath.Join(dir, name))
		check(err)
		check(f.Truncate(2 << 30))
		_ = f.Close()
	}
	// The shell goes on from one command to the next with its variables, of which the second line of the page sets one.
	path := bin + ":" + os.Getenv("PATH")
	run := func(line string) string {
		t.Helper()
		cmd := exec.Command("bash", "-euc", "set -o pipefail\n"+deviceName.ReplaceAllString(line, "$1")+"\nprintf %s \"$PATH\" >path")
		cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), "PATH="+path, "PWD="+dir), strings.NewReader("yes\n")
		said, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, said)
		}
		now, err := os.ReadFile(filepath.Join(dir, "path"))
		check(err)
		path = string(now)
		return string(said)
	}
	said := map[string]string{}
	for _, line := range way {
		said[line] = run(line)
	}
	for i, wants := range [][]string{
		0: {"release build --arch amd64 --keys out/keys -o out/release\n", "release build --arch arm64 --keys out/keys -o out/release-arm64\n", "release build --arch arm --keys out/keys -o out/release-arm\n",
			"-o out/bin/skerry ./cmd/skerry", "release programs --arch amd64 -o out/amd64"},
		2: {"1 servers, 23 agents"},
		3: {"fleet home is good"},
		4: {"24 cards in cards"},
		5: {"DEVICE"},
		6: {"sdb is server-1", "sdc is agent-1", "22 of 24 cards are still to be written; next is agent-2"},
		7: {"server-1", "beaglebone-black", "rpi4"},
		8: {"https://192.168.1.10:6443"},
		9: {"kubectl --kubeconfig kubeconfig get nodes"},
	} {
		for _, want := range wants {
			if !strings.Contains(said[way[i]], want) {
				t.Errorf("%s: lacks %q:\n%s", way[i], want, said[way[i]])
			}
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
		out := run(line)
		if !strings.Contains(line, "tokens") {
			continue
		}
		given, err := os.ReadFile(filepath.Join(dir, "kubectl.in"))
		check(err)
		if strings.Count(string(given), "kind: Secret") != 23 || !strings.Contains(out, "kubectl --kubeconfig kubeconfig apply -f -") {
			t.Errorf("%s:\n%s\n%s", line, out, given)
		}
	}
}
