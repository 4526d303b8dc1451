package update_test

import (
	"context"
	"errors"
	"flag"
	"testing"

	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
	"github.com/skerry-os/skerry/pkg/update/record"
)

var (
	seed  = flag.Uint64("seed", 1, "of the ways in which a cut leaves what was not flushed")
	tries = flag.Int("tries", 8, "such ways between any two flushes")
)

// Every write and flush of two updates, one kept and one called off, is recorded, together with the moments at which the record
// on the data partition became durable. However the power fails, the firmware finds a slot whose kernel, manifest and hash
// tree are whole and belong together, and the machine that comes back finishes what was begun or begins again.
func TestPowerCut(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	total, operations := 0, 0
	// cuts shows every cut of what do does. old and next are the versions that may run afterwards.
	cuts := func(what, old, next string, do func()) {
		start := b.store.data
		b.disk.Record()
		do()
		operations += b.disk.Operations()
		n := 0
		total += b.disk.Cuts(*seed, *tries, func(c powercut.Cut) {
			n++
			after := c.Disk()
			booted := slottest.UEFI{}.Boot(esp(after), "", everyKernel)
			ver, err := bootable(after, booted, b.one)
			if err != nil {
				t.Fatalf("%s: %s: %v", what, c.What, err)
			}
			if ver != old && ver != next {
				t.Fatalf("%s: %s: runs %s", what, c.What, ver)
			}
			if n%5 == 0 {
				st := &store{data: start}
				if c.Last != "" {
					st.data = c.Last
				}
				b.goesOn(what+": "+c.What, after, booted, ver, st)
			}
		})
	}
	cuts("update", "1.0.0", "1.1.0", func() { check(t, b.apply()) })
	booted := b.boot()
	cuts("keep", "1.1.0", "1.1.0", func() { check(t, b.judge(booted, healthy)) })
	b.runs(b.boot(), slot.B, false, "1.1.0")
	b.publish("1.2.0", 350<<10)
	cuts("second update", "1.1.0", "1.2.0", func() { check(t, b.apply()) })
	booted = b.boot()
	b.runs(booted, slot.A, true, "1.2.0")
	cuts("call off", "1.2.0", "1.1.0", func() {
		if err := b.judge(booted, func(context.Context, *record.Before) (string, error) { return "", errors.New("sick") }); !errors.Is(err, record.ErrVerdict) {
			t.Fatal(err)
		}
	})
	booted = b.boot()
	b.runs(booted, slot.B, false, "1.1.0")
	cuts("settle", "1.1.0", "1.1.0", func() {
		_, err := record.Settle(b.store, slottest.UEFI{}.Selector(esp(b.disk), booted), booted.Slot, "1.1.0", now)
		check(t, err)
	})
	t.Logf("%d cuts of %d writes and flushes (seed %d): a verified slot boots after each", total, operations, *seed)
	if total < 300 {
		t.Errorf("only %d cuts", total)
	}
}

// goesOn lets the machine that came back do what it does then.
func (b *bench) goesOn(what string, d *powercut.After, booted slottest.Boot, ver string, st *store) {
	b.t.Helper()
	sel := slottest.UEFI{}.Selector(esp(d), booted)
	if booted.Trial {
		if err := record.Judge(b.t.Context(), st, sel, booted.Slot, ver, b.updater(d, booted, st).Now, healthy); err != nil {
			b.t.Fatalf("%s: judging: %v", what, err)
		}
	} else {
		if _, err := record.Settle(st, sel, booted.Slot, ver, now); err != nil {
			b.t.Fatalf("%s: settling: %v", what, err)
		}
		u := b.updater(d, booted, st)
		p, err := u.Check(b.t.Context(), true)
		if err != nil {
			return // it runs the newest, or that one is known to have failed
		}
		if err := u.Apply(b.t.Context(), p); err != nil {
			b.t.Fatalf("%s: once more: %v", what, err)
		}
	}
	again := slottest.UEFI{}.Boot(esp(d), "", everyKernel)
	got, err := bootable(d, again, b.one)
	if err != nil {
		b.t.Fatalf("%s: afterwards: %v", what, err)
	}
	if booted.Trial && (again.Slot != booted.Slot || again.Trial) || !booted.Trial && (again.Slot == booted.Slot || got == ver) {
		b.t.Fatalf("%s: afterwards %v, release %s", what, again, got)
	}
}
