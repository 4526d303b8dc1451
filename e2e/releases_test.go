package e2e

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
)

// change is what makes a release of another one. Each is whole and signed: what is wrong with it shows when it runs.
type change struct {
	version string
	board   string                 // default: x86-uefi; one whose firmware loads a UKI
	cmdline [2]string              // a part of the kernel's command line and one of the same length in its place
	root    func(dir string) error // of the files of the root
}

// altered makes a release of the one at from.
func altered(t *testing.T, from, keyDir string, c change) string {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), c.version)
	check(os.CopyFS(dir, os.DirFS(from)))
	set, err := keys.Load(keyDir, nil)
	check(err)
	rel, err := release.Open(os.DirFS(dir), set.Trusted())
	check(err)
	m := *rel.Manifest()
	m.Version = c.version
	before := m.Root.RootHash
	m.Root = alteredRoot(t, filepath.Join(dir, "root.img"), c)

	id := cmp.Or(c.board, "x86-uefi")
	old := m.Boards
	board, ok := old[id]
	if !ok {
		t.Fatalf("%s: nothing for board %s", from, id)
	}
	name := filepath.Join(dir, filepath.FromSlash(board.Boot.Path))
	run(t, "sbattach", "--remove", name)
	kernel, err := os.ReadFile(name)
	check(err)
	for _, r := range [][2]string{{before, m.Root.RootHash}, c.cmdline} {
		if r[0] == "" {
			continue
		}
		if bytes.Count(kernel, []byte(r[0])) != 1 || len(r[0]) != len(r[1]) {
			t.Fatalf("the command line has no %q to replace by %q", r[0], r[1])
		}
		kernel = bytes.Replace(kernel, []byte(r[0]), []byte(r[1]), 1)
	}
	kernel, err = uki.Sign(kernel, set.BootSigners()...)
	check(err)
	check(os.WriteFile(name, kernel, 0o644))
	boot, err := release.Describe(board.Boot.Path, bytes.NewReader(kernel))
	check(err)
	m.Boards = map[string]release.Board{}
	for id, other := range old { // boards that share the kernel image; what new images have beside it stays as it was
		if other.Boot == board.Boot {
			other.Boot = boot
			m.Boards[id] = other
		}
	}
	manifest, sig, err := release.Sign(&m, set.ReleaseSigners()...)
	check(err)
	check(os.WriteFile(filepath.Join(dir, release.ManifestName), manifest, 0o644))
	check(os.WriteFile(filepath.Join(dir, release.SignatureName), sig, 0o644))
	return dir
}

// alteredRoot makes the root anew.
func alteredRoot(t *testing.T, img string, c change) release.Root {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	files := filepath.Join(t.TempDir(), "root")
	run(t, "fsck.erofs", "--extract="+files, img)
	name := filepath.Join(files, filepath.FromSlash(machine.ReleaseFile))
	data, err := os.ReadFile(name)
	check(err)
	var id machine.Release
	check(json.Unmarshal(data, &id))
	id.Version = c.version
	data, err = json.Marshal(id)
	check(err)
	check(os.WriteFile(name, data, 0o644))
	if c.root != nil {
		check(c.root(files))
	}
	check(os.Remove(img))
	run(t, "mkfs.erofs", "--quiet", "--all-root", "-x-1", "-zlz4hc,3", "-C32768", fmt.Sprintf("-T%d", id.BuildTime.Unix()), img, files)
	check(os.RemoveAll(files))
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	check(err)
	defer f.Close()
	fi, err := f.Stat()
	check(err)
	salt := bytes.Repeat([]byte{7}, 32)
	tree, err := verity.Build(f, fi.Size(), salt)
	check(err)
	_, err = f.WriteAt(tree.Bytes, fi.Size())
	check(err)
	_, err = f.Seek(0, 0)
	check(err)
	file, err := release.Describe("root.img", f)
	check(err)
	return release.Root{File: file, DataSize: fi.Size(), RootHash: hex.EncodeToString(tree.RootHash), Salt: hex.EncodeToString(salt)}
}

// replaced puts a program in the place of one of the root's.
func replaced(name string, program []byte) func(dir string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), program, 0o755) }
}

// patched changes a text in a program to one of the same length.
func patched(name, from, to string) func(dir string) error {
	return func(dir string) error {
		name := filepath.Join(dir, name)
		data, err := os.ReadFile(name)
		if err == nil && !bytes.Contains(data, []byte(from)) || len(from) != len(to) {
			err = fmt.Errorf("%s: holds no %q to replace by %q", name, from, to)
		}
		if err != nil {
			return err
		}
		return os.WriteFile(name, bytes.ReplaceAll(data, []byte(from), []byte(to)), 0o755)
	}
}

// program compiles a few lines.
func program(t *testing.T, imports, body string) []byte {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	b.WriteString("package main\n\n")
	for i := range slices.Values(strings.Fields(imports)) {
		fmt.Fprintf(&b, "import %q\n", i)
	}
	fmt.Fprintf(&b, "\nfunc main() {\n%s\n}\n", body)
	src, out := filepath.Join(dir, "main.go"), filepath.Join(dir, "main")
	if err := os.WriteFile(src, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "go", "build", "-ldflags=-s -w", "-o", out, src)
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
