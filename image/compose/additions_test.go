package compose

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	for _, name := range []string{"etc/motd", "usr/share/skerry/images/added/app.tar"} {
		if _, ok := tree.Get(name); !ok {
			t.Errorf("%s is missing", name)
		}
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
