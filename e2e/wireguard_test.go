package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/skerry-os/skerry/image/uki"
)

// The pod network's own tests, with WireGuard, on the image's kernel with the image's modules. Two nodes in namespaces of one
// machine: the test program is its init.
func TestImageKernelWireGuard(t *testing.T) {
	if !*inVM {
		t.Skip("boots the image's kernel in QEMU: add -vm (or run make test)")
	}
	boot, err := os.ReadFile(built(t, "release/boot/x86-uefi.efi"))
	if err != nil {
		t.Fatal(err)
	}
	sections, err := uki.Sections(boot)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	init := filepath.Join(dir, "init")
	if out, err := exec.Command("go", "test", "-c", "-o", init, "../pkg/podnet").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(init)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel unpacks one archive after the other: our init takes the place of the image's, beside its modules.
	archive := bytes.NewBuffer(slices.Concat(sections[".initrd"], make([]byte, -len(sections[".initrd"])&3)))
	w := cpio.Newc.Writer(archive)
	if err := w.WriteRecord(cpio.StaticFile("init", string(program), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"kernel": sections[".linux"], "initrd": archive.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-drive", "if=virtio,format=raw,readonly=on,file="+built(t, "release/root.img"),
		"-kernel", filepath.Join(dir, "kernel"), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS0 quiet panic=-1 -- -test.v -test.run=PodsReach|WireGuard").CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v", err)
	}
	text := strings.ReplaceAll(string(out), "\r", "")
	for _, want := range []string{"--- PASS: TestPodsReachPods/wireguard_over_IPv4", "--- PASS: TestPodsReachPods/wireguard_over_IPv6", "--- PASS: TestWireGuardPeers", "\nexit code 0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the machine does not say %q", want)
		}
	}
	t.Log(text)
}
