// Package slottest is what every slot.Selector promises, and models of the firmwares that read what they write.
package slottest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/slot"
)

// Disk is what a machine boots from.
type Disk interface {
	ReadAt([]byte, int64) (int, error)
	WriteAt([]byte, int64) (int, error)
	Sync() error
	Size() int64 // bytes
}

// Machine is a kind of firmware: a Selector for the OS that runs, and what the firmware does at power on.
type Machine interface {
	// New makes a disk with slot a kept, and kernels in both slots.
	New(t testing.TB) *powercut.Disk
	// Selector is for an OS that the firmware started as booted says.
	Selector(d Disk, booted Boot) slot.Selector
	// Boot is power on, or a restart with arg. loads says whether a kernel image starts; the firmware's own writes go to d.
	Boot(d Disk, arg string, loads func(kernel []byte) bool) Boot
	// Once says that a trial is over with the first restart; else there are slot.Tries of them.
	Once() bool
}

// Boot is what the firmware started. The zero Boot is a machine that stays dark.
type Boot struct {
	Slot   slot.ID
	Trial  bool
	Kernel string // its content
	State  any    // what the firmware leaves for Booted
}

func (b Boot) String() string {
	if b.Slot == "" {
		return "nothing"
	}
	return fmt.Sprintf("slot %s (trial %v)", b.Slot, b.Trial)
}

// Kernel is the content of a slot's kernel in New.
func Kernel(id slot.ID) []byte { return Image("old " + string(id)) }

var fresh = Image("new kernel")

// Image makes what is built like a unified kernel image: a PE file of a command line, an initramfs and a kernel.
func Image(what string) []byte {
	le := binary.LittleEndian
	head := make([]byte, 512)
	copy(head, "MZ")
	le.PutUint32(head[0x3c:], 0x40)
	copy(head[0x40:], "PE\x00\x00\x64\x86\x03\x00") // x86-64, three sections, no optional header
	out := head
	for i, s := range []struct{ name, data string }{
		{".cmdline", `of=\` + strings.ReplaceAll(what, " ", "-") + " skerry.board=x86-uefi skerry.slot=none"},
		{".initrd", strings.Repeat("initramfs of "+what, 500)}, {".linux", strings.Repeat(what, 4000)},
	} {
		h := head[0x58+40*i:]
		copy(h, s.name)
		size := (len(s.data) + 511) &^ 511
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[16:], uint32(size))
		le.PutUint32(h[20:], uint32(len(out)))
		out = append(append(out, s.data...), make([]byte, size-len(s.data))...)
		head = out[:512]
	}
	return append(out, "signature"...)
}

func all([]byte) bool { return true }

type bench struct {
	testing.TB
	m Machine
	d *powercut.Disk
}

func (b *bench) check(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) boot(arg string) (Boot, slot.Selector) {
	got := b.m.Boot(b.d, arg, all)
	return got, b.m.Selector(b.d, got)
}

func (b *bench) runs(got Boot, id slot.ID, trial bool) {
	b.Helper()
	if got.Slot != id || got.Trial != trial {
		b.Fatalf("boots %v; want slot %s (trial %v)", got, id, trial)
	}
	s := b.m.Selector(b.d, got)
	if g, tr, err := s.Booted(); err != nil || g != id || tr != trial {
		b.Fatalf("Booted says slot %s (trial %v), %v; the firmware started %v", g, tr, err, got)
	}
}

// kernel holds what the selector gives as the slot's kernel against what it must be; nil for none.
func (b *bench) kernel(s slot.Selector, id slot.ID, want []byte) {
	b.Helper()
	r, size, err := s.Kernel(id)
	if want == nil {
		if !errors.Is(err, slot.ErrEmpty) {
			b.Fatalf("the kernel of slot %s, which has none: %v", id, err)
		}
		return
	}
	b.check(err)
	got := make([]byte, size)
	if n, err := r.ReadAt(got, 0); n != len(got) {
		b.Fatalf("the kernel of slot %s: %d of %d bytes: %v", id, n, size, err)
	}
	part := make([]byte, 5000)
	if _, err := r.ReadAt(part, 4321); err != nil || !bytes.Equal(part, got[4321:9321]) {
		b.Fatalf("the kernel of slot %s: a part of it is another: %v", id, err)
	}
	if n, err := r.ReadAt(part, size-7); n != 7 || !errors.Is(err, io.EOF) {
		b.Fatalf("the kernel of slot %s: at its end %d bytes: %v", id, n, err)
	}
	if !bytes.Equal(got, want) {
		b.Fatalf("the kernel of slot %s is another", id)
	}
}

// stage puts a new kernel into slot id.
func (b *bench) stage(s slot.Selector, id slot.ID) {
	b.Helper()
	b.check(s.Clear(id))
	b.kernel(s, id, nil)
	b.check(s.Stage(id, bytes.NewReader(fresh), int64(len(fresh))))
}

// Run runs the suite.
func Run(t *testing.T, m Machine) {
	start := func(t *testing.T) (*bench, slot.Selector) {
		b := &bench{t, m, m.New(t)}
		got, s := b.boot("")
		b.runs(got, slot.A, false)
		return b, s
	}
	t.Run("keep", func(t *testing.T) {
		b, s := start(t)
		b.kernel(s, slot.A, Kernel(slot.A))
		b.kernel(s, slot.B, Kernel(slot.B))
		b.stage(s, slot.B)
		again, _ := b.boot("")
		b.runs(again, slot.A, false) // staged is not tried
		arg, err := s.TryOnce(slot.B)
		b.check(err)
		got, s := b.boot(arg)
		b.runs(got, slot.B, true)
		if got.Kernel != string(fresh) {
			t.Error("another kernel than the staged one was started")
		}
		b.kernel(s, slot.B, fresh)
		if id, err := s.Kept(); id != slot.A || err != nil {
			t.Errorf("kept is %s, %v, during a trial of b", id, err)
		}
		b.check(s.Keep(slot.B))
		b.check(s.Keep(slot.B)) // twice is once
		for range 5 {
			got, s = b.boot("")
			b.runs(got, slot.B, false)
		}
		// And back again.
		b.stage(s, slot.A)
		arg, err = s.TryOnce(slot.A)
		b.check(err)
		got, s = b.boot(arg)
		b.runs(got, slot.A, true)
		b.check(s.Keep(slot.A))
		got, _ = b.boot("")
		b.runs(got, slot.A, false)
	})
	t.Run("by hand", func(t *testing.T) { // to the other slot as it is
		b, s := start(t)
		arg, err := s.TryOnce(slot.B)
		b.check(err)
		got, s := b.boot(arg)
		b.runs(got, slot.B, true)
		if got.Kernel != string(Kernel(slot.B)) {
			t.Error("another kernel than the one there was started")
		}
		b.check(s.Keep(slot.B))
		got, s = b.boot("")
		b.runs(got, slot.B, false)
		b.check(s.Keep(slot.A)) // and at once
		got, _ = b.boot("")
		b.runs(got, slot.A, false)
	})
	t.Run("falls back", func(t *testing.T) {
		b, s := start(t)
		for range 2 { // a second trial has its tries again
			b.stage(s, slot.B)
			arg, err := s.TryOnce(slot.B)
			b.check(err)
			tries := slot.Tries
			if m.Once() {
				tries = 1
			}
			for range tries {
				got, _ := b.boot(arg)
				b.runs(got, slot.B, true)
				arg = ""
			}
			var got Boot
			for range 5 {
				got, s = b.boot("")
				b.runs(got, slot.A, false)
			}
		}
		b.check(s.Clear(slot.B))
		if _, err := s.TryOnce(slot.B); !errors.Is(err, slot.ErrEmpty) {
			t.Errorf("a slot without a kernel: %v", err)
		}
	})
	t.Run("does not load", func(t *testing.T) {
		b, s := start(t)
		b.stage(s, slot.B)
		arg, err := s.TryOnce(slot.B)
		b.check(err)
		got := m.Boot(b.d, arg, func(kernel []byte) bool { return !bytes.Equal(kernel, fresh) })
		b.runs(got, slot.A, false)
	})
	t.Run("called off", func(t *testing.T) {
		b, s := start(t)
		b.stage(s, slot.B)
		arg, err := s.TryOnce(slot.B)
		b.check(err)
		got, s := b.boot(arg)
		b.runs(got, slot.B, true)
		b.check(s.Keep(slot.A)) // the verdict: no good
		got, s = b.boot("")
		b.runs(got, slot.A, false)
		b.check(s.Clear(slot.B))
	})
	t.Run("refuses", func(t *testing.T) {
		b, s := start(t)
		for what, err := range map[string]error{
			"clear": s.Clear(slot.A), "stage": s.Stage(slot.A, bytes.NewReader(fresh), int64(len(fresh))),
			"try": second(s.TryOnce(slot.A)),
		} {
			if !errors.Is(err, slot.ErrInUse) {
				t.Errorf("%s of the kept slot: %v", what, err)
			}
		}
		b.check(s.Clear(slot.B))
		if err := s.Keep(slot.B); !errors.Is(err, slot.ErrEmpty) {
			t.Errorf("keep of an empty slot: %v", err)
		}
		room, err := s.Room(slot.B)
		b.check(err)
		if err := s.Stage(slot.B, bytes.NewReader(make([]byte, room+1<<20)), room+1<<20); !errors.Is(err, slot.ErrNoRoom) {
			t.Errorf("a kernel of more than there is room for: %v", err)
		}
		full := append(bytes.Clone(fresh), make([]byte, room-int64(len(fresh)))...)
		b.check(s.Stage(slot.B, bytes.NewReader(full), room))
		got, s := b.boot("")
		b.runs(got, slot.A, false)
		arg, err := s.TryOnce(slot.B) // for which there is room, too
		b.check(err)
		got, s = b.boot(arg)
		b.runs(got, slot.B, true)
		b.check(s.Keep(slot.B))
	})
	t.Run("power cut", func(t *testing.T) { cuts(t, m) })
}

func second[T any](_ T, err error) error { return err }

// cuts takes the power away at every write of an update that is kept and of one that is not.
func cuts(t *testing.T, m Machine) {
	count := 0
	try := func(d *powercut.Disk, what string, booted Boot, do func(s slot.Selector) error, allowed ...Boot) {
		d.Record()
		if err := do(m.Selector(d, booted)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		count += d.Cuts(7, 5, func(c powercut.Cut) {
			after := c.Disk()
			got := m.Boot(after, "", all)
			ok := false
			for _, a := range allowed {
				ok = ok || got.Slot == a.Slot && got.Trial == a.Trial && (a.Kernel == "" || a.Kernel == got.Kernel)
			}
			if !ok {
				t.Fatalf("%s: %s: boots %v", what, c.What, got)
			}
			if !got.Trial { // the machine that comes back can do the whole thing
				s, other := m.Selector(after, got), got.Slot.Other()
				if err := errors.Join(s.Clear(other), s.Stage(other, bytes.NewReader(fresh), int64(len(fresh))), second(s.TryOnce(other))); err != nil {
					t.Fatalf("%s: %s: afterwards: %v", what, c.What, err)
				}
			}
		})
	}
	oldA := Boot{Slot: slot.A, Kernel: string(Kernel(slot.A))}
	trialB, keptB := Boot{Slot: slot.B, Trial: true, Kernel: string(fresh)}, Boot{Slot: slot.B, Kernel: string(fresh)}
	d := m.New(t)
	booted := m.Boot(d, "", all)
	try(d, "clear", booted, func(s slot.Selector) error { return s.Clear(slot.B) }, oldA)
	try(d, "stage", booted, func(s slot.Selector) error { return s.Stage(slot.B, bytes.NewReader(fresh), int64(len(fresh))) }, oldA)
	arg := ""
	try(d, "try", booted, func(s slot.Selector) (err error) { arg, err = s.TryOnce(slot.B); return err }, oldA, trialB)
	d.Record()
	booted = m.Boot(d, arg, all)
	count += d.Cuts(7, 5, func(c powercut.Cut) { // while the firmware counts: the trial still comes to an end
		after := c.Disk()
		for range slot.Tries {
			m.Boot(after, "", all)
		}
		if got := m.Boot(after, "", all); got.Slot != slot.A || got.Trial || got.Kernel != oldA.Kernel {
			t.Fatalf("counting: %s: boots %v after all tries", c.What, got)
		}
	})
	dropped := powercut.New(bytes.Clone(d.Bytes()))
	try(dropped, "call off", booted, func(s slot.Selector) error { return s.Keep(slot.A) }, oldA, trialB)
	before := []Boot{trialB, keptB}
	if m.Once() {
		before = append(before, oldA)
	}
	try(d, "keep", booted, func(s slot.Selector) error { return s.Keep(slot.B) }, before...)
	booted = m.Boot(d, "", all)
	try(d, "clear again", booted, func(s slot.Selector) error { return s.Clear(slot.A) }, keptB)
	t.Logf("%d cuts", count)
}
