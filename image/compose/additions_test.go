package compose

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/image/oci"
	"github.com/skerry-os/skerry/image/rootfs"
)

func TestAdditions(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("over/etc/motd", "a mountain")
	write("clash/etc/hosts", "other")
	image := func(name, arch string) string {
		t.Helper()
		var buf bytes.Buffer
		if err := (oci.Image{Ref: "example.org/app:1", Arch: arch, Program: "app", Binary: []byte("x")}).Write(&buf); err != nil {
			t.Fatal(err)
		}
		return write(name, buf.String())
	}
	archive := image("app.tar", "amd64")

	tree := rootfs.New("bin")
	if err := tree.AddBytes("etc/hosts", []byte("the release's"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := Additions{Overlays: []string{filepath.Join(dir, "over")}, Archives: []string{archive}, KernelArgs: []string{"mitigations=off", "quiet", "console=ttyS1,115200n8"}}
	if err := a.check("amd64"); err != nil {
		t.Error(err)
	}
	if err := a.add(tree); err != nil {
		t.Error(err)
	}
	if _, ok := tree.Get("etc/motd"); !ok {
		t.Error("etc/motd is missing")
	}
	if err := (Additions{Overlays: []string{filepath.Join(dir, "clash")}}).add(tree); err == nil || !strings.Contains(err.Error(), "etc/hosts: is in the tree already") {
		t.Errorf("a file of the release was changed: %v", err)
	}
	for want, bad := range map[string]Additions{
		"decides what is booted":    {KernelArgs: []string{"skerry.roothash=00"}},
		"decides what is booted, ":  {KernelArgs: []string{"init=/bin/sh"}},
		"is not one word":           {KernelArgs: []string{"a b"}},
		"is not a folder":           {Overlays: []string{archive}},
		"is not a tar archive":      {Archives: []string{write("rubbish.tar", strings.Repeat("x", 1024))}},
		"holds no container images": {Archives: []string{write("empty.tar", strings.Repeat("\x00", 1024))}},
		"example.org/app:1: is for linux/arm64; the release is for linux/amd64": {Archives: []string{image("arm.tar", "arm64")}},
		"is not a file that ends in .":                                          {Archives: []string{filepath.Join(dir, "app.zip")}},
	} {
		if err := bad.check("amd64"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", bad, err, want)
		}
	}
}

// A person's archive becomes a small one and a filesystem that holds all that the image does, and is the same bytes each time.
func TestAddArchive(t *testing.T) {
	imagetest.Tool(t, "mksquashfs", "squashfs-tools")
	unsquashfs := imagetest.Tool(t, "unsquashfs", "squashfs-tools")
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o750, Uid: 1000, Gid: 2000},
		{Typeflag: tar.TypeReg, Name: "bin/ping", Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		{Typeflag: tar.TypeLink, Name: "bin/ping6", Linkname: "bin/ping"},
		{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeSymlink, Name: "sbin", Linkname: "bin", Mode: 0o777},
	} {
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := oci.WriteLayered(&archive, []oci.Layered{{Refs: []string{"example.org/app:1"}, Arch: "amd64", Layers: [][]byte{layer.Bytes()}}}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "app.tar")
	if err := os.WriteFile(file, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	var digests []string
	for range 2 {
		tree := rootfs.New()
		dir := t.TempDir()
		if err := addArchive(t.Context(), tree, file, "amd64", dir); err != nil {
			t.Fatal(err)
		}
		if err := addArchive(t.Context(), tree, file, "amd64", dir); err == nil || !strings.Contains(err.Error(), "another has the same file name") {
			t.Errorf("two archives of one name: %v", err)
		}
		sum, err := tree.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, sum)
		var squashed string
		for _, e := range tree.Entries() {
			if path.Ext(e.Path) == servedExt {
				squashed = e.Host
			}
		}
		out, err := exec.Command(unsquashfs, "-lln", "-d", "", squashed).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range []string{"drwxr-x--- 1000/2000", "-rwsr-xr-x 0/0", "/bin/ping6", "crw-rw-rw- 0/0", "1,  3", "/sbin -> bin"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("the filesystem has no %q:\n%s", want, out)
			}
		}
		if os.Geteuid() == 0 {
			to := filepath.Join(t.TempDir(), "out")
			if out, err := exec.Command(unsquashfs, "-no-progress", "-d", to, squashed, "bin").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var value [64]byte
			if n, err := unix.Getxattr(filepath.Join(to, "bin/ping"), "security.capability", value[:]); err != nil || n != 20 {
				t.Errorf("the program has lost its capability: %d, %v", n, err)
			}
		}
	}
	if digests[0] != digests[1] {
		t.Error("the same archive gave two trees")
	}
}
