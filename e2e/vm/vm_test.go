package vm_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/pkg/size"
)

var run = flag.Bool("vm", false, "start machines in QEMU; `make test` does")

func board(t *testing.T) boards.QEMU {
	t.Helper()
	if !*run {
		t.Skip("starts a machine: add -vm (or run make test)")
	}
	b, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	return *b.QEMU
}

func blank(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "blank.img")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, 64<<20)); err != nil {
		t.Fatal(err)
	}
	return name
}

// A machine without a system is enough to try every button: its firmware talks, and says that it finds nothing to boot.
func TestPowerResetAndReopen(t *testing.T) {
	o := vm.Options{Dir: filepath.Join(t.TempDir(), strings.Repeat("long", 40)), Image: blank(t), Board: board(t), Memory: 512 * size.MiB, TPM: true, Accel: vm.TCG,
		Forwards: []vm.Forward{{Guest: 6443}}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	v, err := vm.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	const nothing = `BdsDxe: (failed to load|No bootable)`
	if _, err := v.WaitConsole(ctx, nothing); err != nil {
		t.Fatal(err)
	}
	if err := v.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WaitConsole(ctx, nothing); err != nil {
		t.Fatal("after a reset:", err)
	}
	if addr, err := v.Addr(6443); err != nil || !strings.HasPrefix(addr, "127.0.0.1:") {
		t.Error(addr, err)
	}
	if _, err := v.Addr(22); err == nil {
		t.Error("port 22 leads somewhere")
	}

	again, err := vm.Open(o.Dir)
	if err != nil || !again.Running() || again.PID() != v.PID() {
		t.Fatalf("opened %+v, %v", again, err)
	}
	if _, err := vm.Start(ctx, o); err == nil || !strings.Contains(err.Error(), "runs this machine already") {
		t.Errorf("a second start of the same machine: %v", err)
	}
	again.PowerCut()
	if v.Running() || again.Running() {
		t.Error("the machine runs with its plug pulled")
	}
	if v, err = vm.Start(ctx, o); err != nil { // the TPM of before is out of the way
		t.Fatal("after a lost plug:", err)
	}
	v.PowerCut()
	if _, err := v.WaitConsole(ctx, "never"); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("waiting for a dead machine: %v", err)
	}
}

func TestWhatCannotStartSaysWhy(t *testing.T) {
	b := board(t)
	for name, c := range map[string]struct {
		o    vm.Options
		want string
	}{
		"no image": {vm.Options{Image: "absent.img", Board: b}, "absent.img: no such file"},
		"no such machine": {vm.Options{Image: blank(t), Board: func() boards.QEMU {
			b := b
			b.Machine = "pdp11"
			return b
		}()}, "QEMU ended at once"},
		"no such firmware": {vm.Options{Image: blank(t), Board: func() boards.QEMU {
			b := b
			b.Firmware = "coreboot"
			return b
		}()}, `firmware "coreboot"`},
		"bad accel": {vm.Options{Image: blank(t), Board: b, Accel: "xen"}, "none of auto, kvm, tcg"},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Dir = t.TempDir()
			if c.o.Accel == "" {
				c.o.Accel = vm.TCG
			}
			_, err := vm.Start(t.Context(), c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestOpenWhereNothingWasStarted(t *testing.T) {
	if _, err := vm.Open(t.TempDir()); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}
