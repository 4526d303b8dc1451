package compose

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/release"
)

// shells are names of programs that take commands from a person, wherever they lie.
var shells = regexp.MustCompile(`^(a|ba|c|da|fi|k|mk|r|tc|z)?sh$|^(busybox|toybox|skerry-debug|sshd|dropbear|getty|agetty|login|su|sudo)$`)

// shellsIn lists the shells of a root, by name and by what the files hold.
func shellsIn(t *testing.T, root fs.FS) (found []string) {
	t.Helper()
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if shells.MatchString(path.Base(p)) {
			found = append(found, p)
			return nil
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			return err
		}
		data, err := fs.ReadFile(root, p)
		if bytes.Contains(data, []byte("\x00BusyBox v")) || bytes.HasPrefix(data, []byte("#!")) {
			found = append(found, p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return found
}

// checkShell sees that a release has a shell if it is for that, and that no other has one.
func checkShell(t *testing.T, root fs.FS, m *release.Manifest) {
	t.Helper()
	found := shellsIn(t, root)
	if !m.Debug && len(found) > 0 {
		t.Errorf("a release without a shell has %v", found)
	}
	for _, name := range []string{"usr/bin/busybox", "usr/bin/sh", debugProgram} {
		if m.Debug && !slices.Contains(found, name) {
			t.Errorf("a debug release has no %s, but %v", name, found)
		}
	}
	if !m.Debug {
		return
	}
	for name, want := range map[string]string{"usr/bin/sh": "busybox", "usr/sbin/modprobe": "init"} {
		if to, err := fs.ReadLink(root, name); err != nil || to != want {
			t.Errorf("%s leads to %q, %v; want %s", name, to, err, want)
		}
	}
}

// What the source lays into every root has no shell, and what Debian's packages and Go's builds give is listed: none is in there.
func TestNoShellInEveryRoot(t *testing.T) {
	src, err := FindSource(t.Context(), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range []string{"all", "server", "agent"} {
		dir := filepath.Join(src.Dir, "overlays", layer)
		if _, err := os.Stat(dir); err == nil {
			if found := shellsIn(t, os.DirFS(dir)); len(found) > 0 {
				t.Errorf("overlays/%s has %v", layer, found)
			}
		}
	}
	var names []string
	for _, packages := range []map[string][]string{debianPrograms, wifiPrograms} {
		for _, files := range packages {
			names = append(names, files...)
		}
	}
	for name := range links {
		names = append(names, name)
	}
	for _, p := range programsOf(false) {
		if p.debug {
			t.Errorf("%s is built for every release", p.out)
		}
		names = append(names, p.out)
	}
	for _, name := range names {
		if shells.MatchString(path.Base(name)) {
			t.Errorf("every root has %s", name)
		}
	}
	debug := 0
	for _, p := range programs {
		if !p.debug {
			continue
		}
		debug++
		if strings.HasPrefix(p.out, "usr/") {
			t.Errorf("%s would go into every root that is built after a debug release", p.out)
		}
	}
	if got := programsOf(true); debug == 0 || len(got) != len(programs) {
		t.Errorf("a debug release is built of %d programs of %d, %d of its own", len(got), len(programs), debug)
	}
}

// busyboxWith is a program with busybox's table in it.
func busyboxWith(names ...string) []byte {
	return []byte("\x7fELF\x00BusyBox v1.35.0\x00" + strings.Join(append([]string{"\x00[", "[["}, names...), "\x00") + "\x00\x00more\x00")
}

// Busybox goes by each of its names that no program of the root has, in either folder, and by none that would meddle.
func TestBusyboxHidesNothing(t *testing.T) {
	var names []string
	for c := 'a'; c <= 'z'; c++ {
		names = append(names, string(c)+"1", string(c)+"2")
	}
	names = append(names, "init", "ip", "kubectl", "losetup", "modprobe", "mount", "nft", "sh", "vi", "watchdog")
	slices.Sort(names)
	host := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(host, busyboxWith(names...), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := rootfs.New(mergedFolders("amd64")...)
	there := map[string]string{"usr/sbin/init": "init", "usr/bin/kubectl": "skerryd", "bin/mount": "util-linux", "sbin/nft": "nft"}
	for name, text := range there {
		if err := tree.AddBytes(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.AddLink("usr/sbin/modprobe", "init"); err != nil {
		t.Fatal(err)
	}
	if err := addBusybox(tree, host); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"usr/bin/busybox": true, "usr/bin/sh": true, "usr/bin/[": true, "usr/bin/[[": true, "usr/bin/a1": true, "usr/bin/z2": true, "usr/bin/vi": true, "bin/sh": true,
		"usr/bin/init": false, "usr/bin/modprobe": false, "usr/bin/nft": false, "usr/bin/watchdog": false, "usr/bin/losetup": false,
		"usr/bin/more": false,
	} {
		if _, ok := tree.Get(name); ok != want {
			t.Errorf("%s: is there: %v, want %v", name, ok, want)
		}
	}
	dir := t.TempDir()
	if err := tree.Stage(dir); err != nil {
		t.Fatal(err)
	}
	for name, text := range there {
		if data, err := os.ReadFile(filepath.Join(dir, tree.Canonical(name))); err != nil || string(data) != text {
			t.Errorf("%s is %q, %v", name, data, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "usr/bin/sh")); err != nil || to != "busybox" {
		t.Errorf("sh leads to %s, %v", to, err)
	}
}

func TestBusyboxThatIsAnother(t *testing.T) {
	for name, data := range map[string][]byte{
		"no table":   []byte("\x7fELF\x00sh\x00"),
		"few":        busyboxWith("ls", "sh"),
		"not sorted": busyboxWith(append(slices.Repeat([]string{"z"}, 60), "sh")...),
		"no sh":      busyboxWith(slices.Repeat([]string{"z"}, 60)...),
	} {
		if got, err := applets(data); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A debug release calls itself one where Kubernetes shows what nodes run; the others' bytes are as ever.
func TestOSRelease(t *testing.T) {
	if got := string(osRelease("1.2.3", false)); got != "ID=skerry\nNAME=Skerry\nVERSION=\"1.2.3\"\nVERSION_ID=\"1.2.3\"\nPRETTY_NAME=\"Skerry 1.2.3\"\n" {
		t.Errorf("%q", got)
	}
	if got := string(osRelease("1.2.3", true)); !strings.Contains(got, "PRETTY_NAME=\"Skerry 1.2.3 (debug)\"\n") || !strings.Contains(got, "VARIANT_ID=debug\n") {
		t.Errorf("%q", got)
	}
}

// checkShellSBOM sees that the SBOM has busybox, and where its licence is, in a debug release alone.
func checkShellSBOM(t *testing.T, file string, debug bool) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(doc.Packages, func(p spdxPackage) bool { return p.Name == shellPackage })
	if (i >= 0) != debug {
		t.Errorf("%s is in the SBOM: %v", shellPackage, i >= 0)
	}
	if i >= 0 && (doc.Packages[i].Declared != "GPL-2.0-only" || !strings.Contains(doc.Packages[i].SourceInfo, "usr/share/doc/busybox-static/copyright")) {
		t.Errorf("%+v", doc.Packages[i])
	}
}
