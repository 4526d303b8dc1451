package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

var (
	cutSeed  = flag.Uint64("cut-seed", 1, "of the ways in which a cut leaves what was not flushed")
	cutTries = flag.Int("cut-tries", 3, "such ways between any two flushes")
	cutBoots = flag.Int("cut-boots", 5, "disks left by a cut that are booted")
)

// A whole machine updates itself while every write and flush to its disk is recorded, from power on to Keep. However the power
// fails, the firmware finds a verified slot on the disk that is left, and the filesystem and the datastore on the data
// partition are whole. Some of these disks are booted, to Ready.
func TestPowerCutsOfAnUpdate(t *testing.T) {
	u := newUpdates(t, "interval: 30s, deadline: 30m", true)
	u.o.TPM = false // its memory is not on the disk; what it says of versions would be of another time
	u.o.Disk = 2 * size.GiB
	old, next := versionOf(t, built(t, "release")), versionOf(t, u.next())
	n := u.power()
	n.expect(long, `skerry: node: Ready`)
	n.cluster().ready()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Fatal("power button: ", err)
	}
	before, log, vars := filepath.Join(t.TempDir(), "before.raw"), filepath.Join(t.TempDir(), "writes"), filepath.Join(t.TempDir(), "vars.fd")
	u.raw(before)
	run(t, "cp", filepath.Join(u.o.Dir, "vars.fd"), vars)

	u.o.WriteLog = log
	n = u.power()
	n.expect(long, `skerry: node: Ready`)
	u.publish(u.next())
	n.expect(long, `skerry: update: slot b, release `+regexp.QuoteMeta(next)+`, is kept`)
	time.Sleep(5 * time.Second) // and what it writes after that
	n.PowerCut()
	u.o.WriteLog = ""

	base, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	part := func(name string) powercut.Part {
		start, size := partition(t, before, name)
		return powercut.Part{At: start, Len: size}
	}
	c := cuts{u: u, old: old, next: next, vars: vars, esp: part("esp"), data: part("data"), roots: map[slot.ID]powercut.Part{slot.A: part("root-a"), slot.B: part("root-b")}}
	set, err := keys.Load(u.keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.trusted = set.Trusted()
	record := func() *powercut.Disk {
		t.Helper()
		f, err := os.Open(log)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := powercut.ReadLog(base, f)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	c.slots(record())
	c.disks(record())
}

// cuts looks at the disks that cuts of an update from old to next left.
type cuts struct {
	u         *updates
	old, next string
	vars      string // the firmware's variables, as they were before
	trusted   []ed25519.PublicKey
	esp, data powercut.Part
	roots     map[slot.ID]powercut.Part
	whole     map[slot.ID]verified
}

// verified is the slot that was looked at last.
type verified struct {
	root   []byte
	kernel string
}

// slots looks for a verified slot after every cut that leaves ESP or roots in another way.
func (c *cuts) slots(d *powercut.Disk) {
	t := c.u.t
	c.whole = map[slot.ID]verified{}
	d.Only(c.esp, c.roots[slot.A], c.roots[slot.B])
	began, runs := time.Now(), map[string]int{}
	total := d.Cuts(*cutSeed, *cutTries, func(cut powercut.Cut) {
		if t.Failed() {
			return
		}
		after := cut.Disk()
		booted := slottest.UEFI{}.Boot(powercut.Part{D: after, At: c.esp.At, Len: c.esp.Len}, "", func([]byte) bool { return true })
		v, err := c.verify(cut, booted)
		if err == nil && v != c.old && v != c.next {
			err = fmt.Errorf("release %s", v)
		}
		if err != nil {
			t.Errorf("seed %d: %s: %v", *cutSeed, cut.What, err)
		}
		runs[v]++
	})
	t.Logf("%d cuts of %d writes and flushes to ESP and roots: a verified slot after each (%d times %s, %d times %s); looked at in %v",
		total, d.Operations(), runs[c.old], c.old, runs[c.next], c.next, time.Since(began).Round(time.Second))
	if runs[c.old] == 0 || runs[c.next] == 0 {
		t.Error("the record does not reach from one release to the other")
	}
}

// verify checks what firmware, stage 1 and the kernel check, to the last block.
func (c *cuts) verify(cut powercut.Cut, booted slottest.Boot) (version string, err error) {
	if booted.Slot == "" {
		return "", errors.New("nothing boots")
	}
	p := c.roots[booted.Slot]
	root := bytes.NewReader(cut.Part(p.At, p.Len))
	rel, err := release.ReadTail(root, p.Len, c.trusted)
	if err != nil {
		return "", fmt.Errorf("slot %s: %w", booted.Slot, err)
	}
	m := rel.Manifest()
	last := c.whole[booted.Slot]
	if last.kernel == booted.Kernel && bytes.Equal(last.root, cut.Part(p.At, p.Len)) {
		return m.Version, nil
	}
	sections, err := uki.Sections([]byte(booted.Kernel))
	if err != nil {
		return "", fmt.Errorf("kernel of slot %s: %w", booted.Slot, err)
	}
	if !strings.Contains(string(sections[".cmdline"]), "skerry.roothash="+m.Root.RootHash) {
		return "", fmt.Errorf("slot %s: kernel and root do not belong together", booted.Slot)
	}
	boot := m.Boards["x86-uefi"].Boot
	if err := errors.Join(boot.Check(strings.NewReader(booted.Kernel)), verity.Verify(root, m.Root.DataSize, m.Root.RootHash, m.Root.Salt)); err != nil {
		return "", fmt.Errorf("slot %s: %w", booted.Slot, err)
	}
	c.whole[booted.Slot] = verified{bytes.Clone(cut.Part(p.At, p.Len)), booted.Kernel}
	return m.Version, nil
}

// disks looks at the data partition of whole disks, spread over the time of the update, and boots some.
func (c *cuts) disks(d *powercut.Disk) {
	t := c.u.t
	slots := d.Writes(c.esp, c.roots[slot.A], c.roots[slot.B])
	boots := spread(slots, *cutBoots/2)
	boots = append(boots, spread(d.Writes(c.esp), *cutBoots-len(boots))...)
	looks := slices.Concat(boots, spread(d.Writes(c.data), 40))
	slices.Sort(looks)
	looks = slices.Compact(looks)
	looked, booted := 0, 0
	// The first way to leave the operations between two flushes is a torn one.
	d.Cuts(*cutSeed, 1, func(cut powercut.Cut) {
		if t.Failed() || len(looks) == 0 || cut.Operation < looks[0] {
			return
		}
		boot := false
		for len(looks) > 0 && looks[0] <= cut.Operation {
			boot = boot || slices.Contains(boots, looks[0])
			looks = looks[1:]
		}
		if err := c.intact(cut); err != nil {
			t.Errorf("seed %d: %s: %v", *cutSeed, cut.What, err)
		}
		looked++
		if boot {
			booted++
			t.Run(fmt.Sprintf("boot %d", booted), func(t *testing.T) { c.boots(t, cut) })
		}
	})
	t.Logf("%d of the %d operations on the whole disk were the last before a cut: filesystem and datastore whole after each; %d of these disks booted", looked, d.Operations(), booted)
	if booted == 0 || looked < 10 {
		t.Error("too few")
	}
}

// spread takes n of a list, evenly.
func spread(list []int, n int) (some []int) {
	if len(list) == 0 {
		return nil
	}
	for i := range n {
		some = append(some, list[len(list)*(2*i+1)/(2*n)])
	}
	return some
}

// intact repairs the data partition as init does, and reads the datastore.
func (c *cuts) intact(cut powercut.Cut) error {
	dir, err := os.MkdirTemp(c.u.t.TempDir(), "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	part := filepath.Join(dir, "data")
	if err := writeSparse(part, cut.Part(c.data.At, c.data.Len)); err != nil {
		return err
	}
	out, err := exec.Command("e2fsck", "-f", "-p", part).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode()&^3 != 0) { // 1 and 2: repaired
		return fmt.Errorf("e2fsck: %w: %s", err, out)
	}
	if out, err := exec.Command("debugfs", "-R", "rdump /lib/skerry/server/db "+dir, part).CombinedOutput(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, out)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "db/state.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	var says string
	var nodes int
	if err := errors.Join(db.QueryRow("PRAGMA integrity_check").Scan(&says),
		db.QueryRow("SELECT count(*) FROM kine WHERE name = '/registry/minions/skerry'").Scan(&nodes)); err != nil {
		return fmt.Errorf("datastore: %w", err)
	}
	if says != "ok" || nodes == 0 {
		return fmt.Errorf("datastore: %s; %d revisions of the node", says, nodes)
	}
	return nil
}

// boots lets a machine find the disk.
func (c *cuts) boots(t *testing.T, cut powercut.Cut) {
	o := c.u.o
	o.Dir, o.Image, o.Vars, o.Forwards = t.TempDir(), filepath.Join(t.TempDir(), "left.raw"), c.vars, nil
	if err := writeSparse(o.Image, cut.Part(0, int64(o.Disk))); err != nil {
		t.Fatal(err)
	}
	n := power(t, o)
	v := n.expect(long, `skerry: switch root: slot . *\S*, release ([^ ,]+)`)[1]
	if v != c.old && v != c.next {
		t.Errorf("%s: release %s", cut.What, v)
	}
	n.expect(long, `skerry: node: Ready`)
	t.Logf("%s: release %s, Ready", cut.What, v)
	n.PowerCut()
}

func writeSparse(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const block = 1 << 20
	zero := make([]byte, block)
	for at := 0; at < len(b); at += block {
		piece := b[at:min(at+block, len(b))]
		if bytes.Equal(piece, zero[:len(piece)]) {
			continue
		}
		if _, err := f.WriteAt(piece, int64(at)); err != nil {
			return err
		}
	}
	return errors.Join(f.Truncate(int64(len(b))), f.Close())
}
