package kmod_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/kmod"
)

// Files that no kernel takes: every one of them is tried, after those it needs, also where softdeps lead in a circle, and
// the error names each.
func TestLoadAllGoesOn(t *testing.T) {
	files := kernel(t)
	files["kernel/circle/a.ko"] = module(t, "softdep=pre: b", "depends=udp_tunnel")
	files["kernel/circle/b.ko"] = module(t, "softdep=pre: a", "depends=")
	x, err := kmod.Build(files)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var index bytes.Buffer
	if err := x.Write(&index); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, kmod.IndexName), index.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if strings.HasSuffix(name, ".ko") {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte("not for any kernel"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	l, err := kmod.NewLoader(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = l.LoadAll([]string{"erofs", "a", "b", "nothing", "ext4", "a"})
	if err == nil {
		t.Fatal("this kernel takes anything for a module")
	}
	for _, want := range []string{"nothing: no kernel module", "module erofs:", "module libcrc32c:", "module a:", "module b:", "module udp_tunnel:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if err := l.Load("ext4", ""); err != nil {
		t.Errorf("what is built in: %v", err)
	}
	if err := l.Load("a", ""); err == nil || !strings.Contains(err.Error(), "module a:") {
		t.Errorf("a second try: %v", err)
	}
}
