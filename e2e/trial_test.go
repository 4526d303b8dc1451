package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// arm brings a release into slot b of a disk whose machine is off, by the code with which machines do it, and tells the firmware
// to try it. So trials need no Kubernetes before they begin, which takes an emulated processor minutes.
func (u *updates) arm(disk, dir string) {
	t := u.t
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	u.publish(dir)
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	check(err)
	defer f.Close()
	part := func(name string) powercut.Part {
		start, size := partition(t, disk, name)
		return powercut.Part{D: f, At: start, Len: size}
	}
	set, err := keys.Load(u.keys, nil)
	check(err)
	root, err := os.ReadFile(filepath.Join(u.keys, keys.RepositoryDir, repository.RootFile))
	check(err)
	src, err := repository.NewSource(u.repo, nil)
	check(err)
	esp := part("esp")
	up := &update.Updater{
		Machine: update.Machine{
			Arch: "amd64", Board: "x86-uefi", Version: versionOf(t, built(t, "release")), Booted: slot.A,
			Selector: slot.UEFI{Vars: fstest.MapFS{slottest.Selected: slottest.Variable("os-a.efi")}, ESP: slot.Volume{Device: esp, Size: esp.Size()}},
			Roots:    map[slot.ID]update.Device{slot.A: part("root-a"), slot.B: part("root-b")},
			Trusted:  set.Trusted(),
		},
		Store: record.File(filepath.Join(t.TempDir(), "record.json")), Source: src, Root: root, Dir: t.TempDir(), Now: time.Now,
	}
	p, err := up.Check(t.Context(), false)
	check(err)
	check(up.Apply(t.Context(), p))
}

// entry is the path of slot b's kernel on the ESP while it is tried, and the ESP as mtools names it.
func entry(t *testing.T, disk string) (esp, name string) {
	t.Helper()
	start, _ := partition(t, disk, "esp")
	esp = fmt.Sprintf("%s@@%d", disk, start)
	name = regexp.MustCompile(`(?i)os-b\+[0-9-]+\.efi`).FindString(run(t, "mdir", "-b", "-i", esp, "::/EFI/Linux"))
	if name == "" {
		t.Fatal("nothing is tried")
	}
	return esp, "::/EFI/Linux/" + name
}

// damage changes one byte in the middle of the kernel that is tried.
func damage(t *testing.T, disk string) {
	t.Helper()
	esp, name := entry(t, disk)
	kernel := filepath.Join(t.TempDir(), "kernel")
	mtools(t, "mcopy", "-n", "-i", esp, name, kernel)
	fi, err := os.Stat(kernel)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, kernel, fi.Size()/2, 1)
	mtools(t, "mcopy", "-o", "-i", esp, kernel, name)
}

// Releases that are whole and signed and no good, each in its way. The machine leaves every one by itself.
func TestBrokenReleasesAreLeft(t *testing.T) {
	trial := strings.Repeat(`switch root: slot b|`, 3)
	for name, tt := range map[string]struct {
		change
		lines string // what the console says, in this order
		after string // and what it says when the old release runs again
	}{
		"kernel panics": {
			change{cmdline: [2]string{" loglevel=4 ", " rdinit=/no "}},
			strings.Repeat(`\] Kernel panic - not syncing|`, 3),
			"", // the machine was not the one that armed it, so it has nothing to say
		},
		"config is rejected": { // a key has another name
			change{root: patched("usr/sbin/init", `yaml:"hostname"`, `yaml:"nodename"`)},
			trial,
			`update: release .* did not come up: it started 3 times and got as far as "settle config", where it stopped: .*unknown key "hostname"`,
		},
		"server ends": {
			change{root: replaced("usr/bin/skerryd", program(t, "os fmt", `fmt.Println("the table is gone"); os.Exit(3)`))},
			`judge slot: the trial failed: release .* skerryd ended 8 times, the last time with: exit status 3: the table is gone`,
			"",
		},
		"node is never Ready": {
			change{root: replaced("usr/bin/skerryd", program(t, "time", `time.Sleep(1e18)`))},
			`judge slot: the trial failed: release .* at the deadline it still waits for `,
			"",
		},
		"init hangs": { // the watchdog bites
			change{root: replaced("usr/sbin/init", program(t, "time", `time.Sleep(1e18)`))},
			trial,
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpdates(t, "deadline: 5m", false, "--secure-boot=false")
			u.o.TPM = false
			tt.version = "98.0.0"
			u.arm(u.o.Image, altered(t, built(t, "release"), u.keys, tt.change))
			n := u.power()
			for line := range strings.SplitSeq(tt.lines, "|") {
				if line != "" {
					n.expect(patience, line)
				}
			}
			n.expect(patience, `skerry: switch root: slot a, release `+versionOf(t, built(t, "release")))
			if tt.after != "" {
				n.expect(patience, tt.after) // before anything that may fail again
			}
			n.expect(patience, `skerry: start node: ok`)
			if strings.Contains(n.Text(), "is kept") {
				t.Error("it was kept")
			}
		})
	}
}

// The kernel of the slot that is to be tried is damaged after the firmware was told, so that it does not even load, with Secure
// Boot on: the machine comes to the old one without a hand on it, by the boot entries that it made itself.
func TestAKernelThatDoesNotLoad(t *testing.T) {
	u := newUpdates(t, "deadline: 5m", false)
	n := u.power()
	n.expect(patience, `skerry\| slot +a, Secure Boot on`)
	n.expect(patience, `skerry: judge slot: ok`)
	n.PowerCut()
	u.operate(func(disk string) {
		u.arm(disk, u.next())
		damage(t, disk)
	})
	n = u.power()
	n.expect(patience, `(?i)access denied|security violation`)
	n.expect(patience, `skerry: switch root: slot a`)
	n.expect(patience, `skerry\| slot +a, Secure Boot on`)
	if text := n.Text(); strings.Contains(text, "switch root: slot b") {
		t.Error("the damaged kernel started")
	}
	t.Logf("it was started %d times, by entries of ours %d times", strings.Count(n.Text(), "BdsDxe: starting"), strings.Count(n.Text(), `"Skerry"`))
}

// A kept slot whose partition goes bad is left for the other one, however often the firmware starts it.
func TestADamagedSlotIsLeft(t *testing.T) {
	u := newUpdates(t, "deadline: 5m", false)
	start, _ := partition(t, u.o.Image, "root-a")
	flip(t, u.o.Image, start+1024, 1) // what is read first
	n := u.power()
	for range 2 {
		n.expect(patience, `device-mapper: verity: .*data block .* is corrupted`)
	}
	n.expect(patience, `skerry: count start: 2 starts did not come to a Ready node; reading the whole root`)
	n.expect(patience, `skerry: count start: .*; slot b, which is whole, is the one from now on; restart in`)
	n.expect(patience, `skerry: switch root: slot b`)
	t.Log(n.expect(patience, `skerry: update: (left slot a: .*)`)[1])
}

// An older release on another disk does not start on a machine that ran a newer one, be its floor in the TPM or in the
// firmware's variables.
func TestTheFloorHolds(t *testing.T) {
	for name, tpm := range map[string]bool{"the TPM": true, "the firmware's variables": false} {
		t.Run(name, func(t *testing.T) {
			u := newUpdates(t, "deadline: 5m", false)
			u.o.TPM = tpm
			version := versionOf(t, built(t, "release"))
			n := u.power()
			n.expect(patience, `skerry: check floor: nothing older than `+regexp.QuoteMeta(version)+` starts, says `+name)
			n.expect(patience, `skerry: switch root`)
			n.PowerCut()
			older := altered(t, built(t, "release"), u.keys, change{version: "0.0.0-1-g000000000"})
			image := filepath.Join(t.TempDir(), "older.img")
			run(t, built(t, "bin/skerry"), "image", "build", "--board", "x86-uefi", "--release", older, "--keys", u.keys, "--config", built(t, "run/node.yaml"), "-o", image)
			o := vm.Options{Dir: t.TempDir(), Image: image, Board: u.o.Board, Restrict: true, TPM: tpm, Vars: filepath.Join(u.o.Dir, "vars.fd")}
			if tpm {
				o.TPMState = filepath.Join(u.o.Dir, "tpm")
			}
			n = power(t, o)
			t.Log(n.expect(patience, `skerry: check floor: (release 0.0.0-1-g000000000 is older than this machine may go back to: .*)`)[1])
			n.expect(patience, `BdsDxe: starting|skerry: mount kernel filesystems`) // it does not hang
			if strings.Contains(n.Text(), "switch root: ") {
				t.Error("the older release started")
			}
		})
	}
}
