package vm_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/compose"
	"github.com/skerry-os/skerry/image/initramfs"
	"github.com/skerry-os/skerry/pkg/debian"
	"github.com/skerry-os/skerry/pkg/kmod"
)

// releaseKernel gives the kernel that releases have, from the cache of release builds or a Debian mirror.
func releaseKernel(t *testing.T) (image, modules, release string) {
	t.Helper()
	lock, err := compose.Lock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := lock.Followed(b.Arch, b.Kernel.Package, b.Kernel.Suite)
	if err != nil || len(pkgs) != 1 {
		t.Fatalf("%d kernels, %v", len(pkgs), err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	mirrors, err := debian.HostMirrors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	store := &debian.Store{Dir: filepath.Join(cache, "skerry"), Mirrors: mirrors.All(), Retry: 5 * time.Second}
	dir, err := store.Unpack(t.Context(), pkgs[0])
	if err != nil {
		t.Fatal(err)
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("kernels %v, %v", images, err)
	}
	_, release, _ = strings.Cut(filepath.Base(images[0]), "-")
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		if modules = filepath.Join(dir, lib, release); exists(modules) {
			return images[0], modules, release
		}
	}
	t.Fatalf("%s: holds no modules", dir)
	return "", "", ""
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// What tests of the network need of a kernel that hosts may lack is on the kernel that releases have: the package's own tests,
// as process 1 of a machine with nothing else.
func TestNetworkOnReleaseKernel(t *testing.T) {
	board(t) // skips without -vm
	image, modules, release := releaseKernel(t)
	all, err := kmod.Build(os.DirFS(modules))
	if err != nil {
		t.Fatal(err)
	}
	some, err := all.Subset("veth", "bridge", "8021q", "bonding", "af_packet")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "network.test")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "../../pkg/network").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tree, err := initramfs.Content{Init: program, Kernel: release, Modules: some, ModuleDir: modules}.Tree()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := initramfs.Build(tree, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// After --, the kernel's command line is the program's.
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults",
		"-nographic", "-no-reboot", "-serial", "stdio", "-kernel", image, "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 -- -test.v -test.run=TestBridge|TestVLANOnBond|TestNameServersOfRouters")
	var console bytes.Buffer
	qemu.Stdout, qemu.Stderr = &console, &console
	err = qemu.Run()
	text := console.String()
	if err != nil || !strings.Contains(text, "tests end with 0") || strings.Contains(text, "--- SKIP") || !strings.Contains(text, "--- PASS: TestVLANOnBond") {
		t.Errorf("%v; console:\n%s", err, text)
	}
}
