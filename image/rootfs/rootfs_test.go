package rootfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/skerry-os/skerry/image/imagetest"
)

func sample(t *testing.T) *Tree {
	t.Helper()
	host := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(host, bytes.Repeat([]byte("program "), 10_000), 0o700); err != nil {
		t.Fatal(err)
	}
	tree := New("bin", "lib")
	for _, err := range []error{
		tree.AddHost("bin/prog", host),
		tree.AddBytes("lib/x/libx.so", []byte("library"), 0o644),
		tree.AddLink("etc/hosts", "/run/hosts"),
		tree.AddDir("proc", 0o555),
		tree.AddBytes("empty", nil, 0o600),
		tree.AddFS("usr/share", fstest.MapFS{"doc/a": {Data: []byte("a")}, "keep/.keep": {}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func TestPathsAreMergedAndParentsMade(t *testing.T) {
	tree := sample(t)
	var got []string
	for _, e := range tree.Entries() {
		got = append(got, e.Mode.String()+" "+e.Path)
	}
	want := []string{
		"Lrwxrwxrwx bin", "-rw------- empty", "drwxr-xr-x etc", "Lrwxrwxrwx etc/hosts", "Lrwxrwxrwx lib", "dr-xr-xr-x proc", "drwxr-xr-x usr",
		"drwxr-xr-x usr/bin", "-rwxr-xr-x usr/bin/prog", "drwxr-xr-x usr/lib", "drwxr-xr-x usr/lib/x", "-rw-r--r-- usr/lib/x/libx.so",
		"drwxr-xr-x usr/share", "drwxr-xr-x usr/share/doc", "-rw-r--r-- usr/share/doc/a", "drwxr-xr-x usr/share/keep",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

func TestConflictsAreRefused(t *testing.T) {
	tree := sample(t)
	for name, err := range map[string]error{
		"other bytes":    tree.AddBytes("usr/lib/x/libx.so", []byte("other"), 0o644),
		"other mode":     tree.AddBytes("usr/lib/x/libx.so", []byte("library"), 0o600),
		"below a file":   tree.AddBytes("empty/x", nil, 0o644),
		"below a link":   tree.AddBytes("etc/hosts/x", nil, 0o644),
		"link for a dir": tree.AddLink("usr/share", "x"),
	} {
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tree.AddBytes("lib/x/libx.so", []byte("library"), 0o644); err != nil {
		t.Errorf("the same again: %v", err)
	}
	host := filepath.Join(t.TempDir(), "copy")
	for content, want := range map[string]error{"library": nil, "librarY": ErrConflict} {
		if err := os.WriteFile(host, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := tree.AddFile("lib/x/libx.so", host, 0o644); !errors.Is(err, want) {
			t.Errorf("%q from elsewhere: %v, want %v", content, err, want)
		}
	}
	if err := tree.Add(Entry{Path: "dev/null", Mode: fs.ModeDevice}); err == nil {
		t.Error("a device was accepted")
	}
}

func TestDigestSeesEveryChange(t *testing.T) {
	base, err := sample(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := sample(t).Digest(); again != base {
		t.Error("equal trees differ")
	}
	for name, change := range map[string]func(*Tree) error{
		"name": func(x *Tree) error { return x.AddDir("new", 0o755) },
		"data": func(x *Tree) error {
			x.entries["empty"] = Entry{Path: "empty", Mode: 0o600, Data: []byte("x")}
			return nil
		},
		"mode": func(x *Tree) error { x.entries["empty"] = Entry{Path: "empty", Mode: 0o644}; return nil },
		"link": func(x *Tree) error {
			x.entries["bin"] = Entry{Path: "bin", Mode: fs.ModeSymlink | 0o777, Link: "usr/sbin"}
			return nil
		},
	} {
		tree := sample(t)
		if err := change(tree); err != nil {
			t.Fatal(err)
		}
		if got, err := tree.Digest(); err != nil || got == base {
			t.Errorf("%s changed and the digest did not (%v)", name, err)
		}
	}
}

func TestCPIOReadsBack(t *testing.T) {
	var one, two bytes.Buffer
	when := time.Unix(1_700_000_000, 0)
	if err := sample(t).CPIO(&one, when); err != nil {
		t.Fatal(err)
	}
	if err := sample(t).CPIO(&two, when); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("the same tree gave two archives (%v)", err)
	}
	a, err := cpio.ArchiveFromReader(cpio.Newc.Reader(bytes.NewReader(one.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	rec, ok := a.Get("usr/bin/prog")
	if !ok || rec.FileSize != 80_000 || rec.Mode != 0o100755 {
		t.Errorf("usr/bin/prog: %+v", rec.Info)
	}
	if rec, ok := a.Get("etc/hosts"); !ok || rec.Mode != 0o120777 {
		t.Errorf("etc/hosts: %+v", rec.Info)
	}
}

// The image is the same bytes whoever writes it, wherever, and erofs-utils' own checker agrees with it.
func TestEROFS(t *testing.T) {
	imagetest.Tool(t, "mkfs.erofs", "erofs-utils")
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	o := EROFSOptions{Time: time.Unix(1_700_000_000, 0), UUID: "5c4e7a55-0000-4000-8000-000000000001", Compress: "lz4hc,9", Cluster: 65536}
	var images [][]byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "root.img")
		if err := sample(t).EROFS(t.Context(), out, o); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, data)
		if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
			if said, err := exec.Command(fsck, out).CombinedOutput(); err != nil {
				t.Errorf("fsck.erofs: %v: %s", err, said)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), ".stage-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same tree gave two images")
	}
}
