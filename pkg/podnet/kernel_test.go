package podnet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/linux"
)

// TestMain can be a machine's init: e2e boots these tests on the image's kernel, which has WireGuard, where the one that runs
// them usually has not.
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	code := 1
	if err := boot(); err != nil {
		fmt.Println("boot:", err)
	} else {
		code = m.Run()
	}
	fmt.Printf("exit code %d\n", code)
	unix.Sync()
	fmt.Println(linux.PowerOff())
}

// boot mounts what tests need, and the release's root, whose modules it loads.
func boot() error {
	for _, mount := range linux.KernelMounts() {
		if err := mount.Do(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/tmp", "/run", "/sysroot"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	modules := filepath.Join("usr/lib/modules", unix.ByteSliceToString(name.Release[:]))
	if err := load(filepath.Join("/", modules), "virtio_blk", "erofs"); err != nil {
		return err
	}
	root := linux.Mount{Source: "/dev/vda", Target: "/sysroot", FS: "erofs", Flags: unix.MS_RDONLY}
	if err := root.Do(); err != nil {
		return err
	}
	return load(filepath.Join("/sysroot", modules), "veth", "vxlan", "wireguard")
}

func load(dir string, names ...string) error {
	l, err := kmod.NewLoader(dir)
	if err != nil {
		return err
	}
	return l.LoadAll(names)
}
