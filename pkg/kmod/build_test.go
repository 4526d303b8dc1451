package kmod_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/kmod"
)

// TestRealKernel reads a whole modules folder, named by SKERRY_TEST_MODULES (the lib/modules/<kernel> of an unpacked Debian
// kernel package), and resolves what a verified root needs.
func TestRealKernel(t *testing.T) {
	dir := os.Getenv("SKERRY_TEST_MODULES")
	if dir == "" {
		t.Skip("set SKERRY_TEST_MODULES to the lib/modules/<kernel> folder of a Debian kernel package")
	}
	start := time.Now()
	x, err := kmod.Build(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d modules indexed in %v", len(x.Modules), time.Since(start))
	mods, err := x.Resolve("dm-verity", "erofs", "overlay", "virtio_blk", "ext4", "nf_tables", "fs-vfat", "nls_iso8859_1", "loop")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mods {
		t.Log(m.File)
	}
	if got := x.Match("virtio:d00000002v00001AF4"); len(got) != 1 || got[0] != "virtio_blk" {
		t.Errorf("a virtio disk wants %v", got)
	}
	if got := x.Match("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"); len(got) != 1 || got[0] != "e1000e" {
		t.Errorf("an e1000e card wants %v", got)
	}
	var b bytes.Buffer
	if err := x.Write(&b); err != nil {
		t.Fatal(err)
	}
	t.Logf("the index is %d bytes", b.Len())
}
