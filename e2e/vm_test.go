package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/vm"
)

// node is the image that `make image` made, in a machine that reaches no network.
type node struct {
	t *testing.T
	o vm.Options
	*vm.VM
}

// machineOf gives the options of a machine for a copy of the image, or skips the test.
func machineOf(t *testing.T) vm.Options {
	t.Helper()
	if !*inVM {
		t.Skip("boots the image in QEMU: add -vm (or run make test)")
	}
	b, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	return vm.Options{Dir: t.TempDir(), Image: copyOf(t, built(t, "skerry.img")), Board: *b.QEMU, Restrict: true}
}

// power turns the machine on; its console is shown when the test fails.
func power(t *testing.T, o vm.Options) *node {
	t.Helper()
	v, err := vm.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.PowerCut()
		checked(t, v.Text())
		if text := v.Text(); t.Failed() {
			t.Logf("the end of the console:\n%s", text[max(0, len(text)-6000):])
		}
	})
	return &node{t, o, v}
}

// checked says whether each start that came to a Ready node had found nothing missing before.
func checked(t *testing.T, console string) {
	t.Helper()
	for _, start := range strings.Split(console, "skerry: mount node filesystems")[1:] {
		if strings.Contains(start, "skerry: node: Ready") && !passed.MatchString(start) {
			t.Error("check-config did not pass in a start; the console says what is missing")
		}
	}
}

var passed = regexp.MustCompile(`skerry: check-config: \d+ checks passed`)

func (n *node) expect(limit time.Duration, expr string) []string {
	n.t.Helper()
	ctx, cancel := context.WithTimeoutCause(n.t.Context(), limit, fmt.Errorf("waited %v", limit))
	defer cancel()
	found, err := n.WaitConsole(ctx, expr)
	if err != nil {
		n.t.Fatal(err)
	}
	return found
}

// cluster fetches a kubeconfig over the wire, as a person does.
func (n *node) cluster() cluster { return n.clusterOf(built(n.t, "run/node.yaml")) }

// From power on with Secure Boot in setup mode to a workload, then through a lost plug, then through an orderly shutdown;
// the pods are there each time. The machine has no network but its own.
func TestImageFromPowerOnToPodsThatOutliveIt(t *testing.T) {
	o := machineOf(t)
	o.TPM = true
	o.Forwards = []vm.Forward{{Guest: 6443}}
	n := power(t, o)
	n.expect(patience, `skerry: switch root`)
	n.expect(patience, `skerry\| slot +a, Secure Boot on`)
	t.Log(n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
	c := n.cluster()
	c.ready()
	c.start()
	before := c.works()

	n.PowerCut()
	n = power(t, o)
	t.Log("after a lost plug: ", n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
	c = n.cluster()
	c.same(before, c.works())

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Fatal("power button: ", err)
	}
	if text := n.Text(); !strings.Contains(text, "skerry: power off: unmounting") {
		t.Error("the machine went off without unmounting")
	}
	n = power(t, o)
	t.Log("after a shutdown: ", n.expect(2*patience, `skerry: (node: Ready.*)`)[1])
	c = n.cluster()
	c.same(before, c.works())
}

// copyOf makes a copy of the image that a test may damage, and that stays as it is when another one is built.
func copyOf(t *testing.T, image string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "machine.img")
	if out, err := exec.Command("cp", "--sparse=always", image, name).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return name
}

// partition gives the bytes of a partition as sgdisk, who is independent of us, sees them.
func partition(t *testing.T, image, name string) (start, size int64) {
	t.Helper()
	for number := 1; number < 9; number++ {
		out, err := exec.Command("sgdisk", "-i", fmt.Sprint(number), image).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Partition name: '"+name+"'") {
			continue
		}
		var first, last int64
		for line := range strings.Lines(string(out)) {
			_, _ = fmt.Sscanf(line, "First sector: %d", &first) // other lines do not match
			_, _ = fmt.Sscanf(line, "Last sector: %d", &last)
		}
		return first * 512, (last - first + 1) * 512
	}
	t.Fatalf("%s: sgdisk finds no partition %s", image, name)
	return 0, 0
}

// flip changes every bit of the bytes at an offset.
func flip(t *testing.T, name string, offset int64, n int) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = ^b[i]
	}
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

// With one byte of the root changed the machine says what is wrong and restarts. It does not hang, and there is no shell.
func TestADamagedRootRestartsAndSaysWhy(t *testing.T) {
	o := machineOf(t)
	// The superblock of the filesystem: it is read first, in both slots.
	for _, p := range []string{"root-a", "root-b"} {
		start, _ := partition(t, o.Image, p)
		flip(t, o.Image, start+1024, 1)
	}
	n := power(t, o)
	n.expect(patience, `device-mapper: verity: .*data block .* is corrupted|skerry: open root: .*(corrupt|verity|input/output)`)
	n.expect(patience, `BdsDxe: starting|systemd-boot|skerry: mount kernel filesystems`) // it starts again
	if text := n.Text(); strings.Contains(text, "skerry: switch root: ok") || strings.Contains(text, "skerry: mount node filesystems") {
		t.Error("the damaged root was used")
	}
}

// With Secure Boot on, a kernel image that was changed, or that somebody else signed, does not start.
func TestAForgedKernelDoesNotStart(t *testing.T) {
	for name, forge := range map[string]func(t *testing.T, uki string){
		"one byte": func(t *testing.T, uki string) {
			fi, err := os.Stat(uki)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, uki, fi.Size()/2, 1)
		},
		"another key": func(t *testing.T, uki string) {
			keys := filepath.Join(t.TempDir(), "keys")
			for _, args := range [][]string{
				{built(t, "bin/skerry"), "keys", "new", keys},
				{"sbattach", "--remove", uki},
				{"sbsign", "--key", filepath.Join(keys, "db.key"), "--cert", filepath.Join(keys, "db.crt"), "--output", uki, uki},
			} {
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := machineOf(t)
			start, _ := partition(t, o.Image, "esp")
			esp := fmt.Sprintf("%s@@%d", o.Image, start)
			for _, entry := range []string{"os-a.efi", "os-b.efi"} {
				uki := filepath.Join(t.TempDir(), entry)
				mtools(t, "mcopy", "-n", "-i", esp, "::/EFI/Linux/"+entry, uki)
				forge(t, uki)
				mtools(t, "mcopy", "-o", "-i", esp, uki, "::/EFI/Linux/"+entry)
			}
			n := power(t, o)
			n.expect(patience, `(?i)access denied|security (policy )?violation`)
			if text := n.Text(); strings.Contains(text, "skerry: ") {
				t.Error("the forged kernel started")
			}
		})
	}
}

func mtools(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
