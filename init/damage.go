package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/host"
)

// A kept slot is never judged again, and the firmware starts it however often it fails: a power cut is no fault of a release.
// But its partition may go bad. A damaged block makes the kernel panic when it is read, and the machine would start again
// without end. So starts of a kept slot are counted, in a variable of the firmware, until the node is Ready. They are no
// evidence; they are the occasion to look for some: the third reads the whole root. If that is damaged, and the other slot
// is not, the machine goes over to that one.

// startsVariable holds the slot and the number of its starts, or what the slot that was left had.
const startsVariable = "SkerryStarts-6d0f2f3b-5a0c-4c0e-9b5e-2f6a1e0d7c11"

// mostStarts may fail before the root is read.
const mostStarts = 2

// leftMark is in front of the reason why a slot was left.
const leftMark = "left "

// starts is the count in the firmware's variables; the zero value is that of a machine that has none.
type starts struct{ dir string }

func firmwareStarts() starts {
	dir := linux.EFIVars().Target
	if !exists(filepath.Join(dir, slot.BootOrder)) {
		return starts{}
	}
	return starts{dir}
}

// load gives the count of a slot's starts, and why the other was left if that was the start before.
func (st starts) load(id slot.ID) (n int, left string) {
	if st.dir == "" {
		return 0, ""
	}
	data, err := os.ReadFile(filepath.Join(st.dir, startsVariable))
	if err != nil || len(data) < 4 {
		return 0, ""
	}
	text := string(data[4:])
	if why, ok := strings.CutPrefix(text, leftMark); ok {
		return 0, why
	}
	whose, count, _ := strings.Cut(text, " ")
	if n, err = strconv.Atoi(count); err != nil || whose != string(id) {
		return 0, ""
	}
	return n, ""
}

func (st starts) save(text string) error {
	if st.dir == "" {
		return nil
	}
	return linux.EFIVariables{Dir: st.dir}.Write(startsVariable, []byte(text))
}

func (st starts) clear() error {
	if st.dir == "" || !exists(filepath.Join(st.dir, startsVariable)) {
		return nil
	}
	return linux.EFIVariables{Dir: st.dir}.Remove(startsVariable)
}

// countStart counts a start of a kept slot, and reads the whole root when the ones before came to nothing.
func countStart(_ context.Context, s *system) error {
	if s.boot.Trial {
		return nil // the firmware counts
	}
	st := firmwareStarts()
	n, left := st.load(s.boot.Slot)
	s.boot.Left = left
	if n >= mostStarts {
		s.console.sayf("count start: %d starts did not come to a Ready node; reading the whole root", n)
		if err := s.readRoot(); err != nil {
			return err
		}
		n = 0
	}
	if err := st.save(fmt.Sprintf("%s %d", s.boot.Slot, n+1)); err != nil {
		s.console.sayf("count start: %s; going on", oneLine(err))
	}
	return nil
}

func (s *system) readRoot() error {
	f, err := os.Open(s.root.Dev())
	if err != nil {
		return err
	}
	defer f.Close()
	return wholeRoot(f, s.release.Manifest())
}

func wholeRoot(r io.ReaderAt, m *release.Manifest) error {
	return verity.Verify(r, m.Root.DataSize, m.Root.RootHash, m.Root.Salt)
}

// orLeave makes a fault that a step finds in a kept slot a reason to go over to the other one.
func orLeave(do func(context.Context, *system) error) func(context.Context, *system) error {
	return func(ctx context.Context, s *system) error {
		err := do(ctx, s)
		if err == nil || s.boot.Trial || s.boot.Slot == "" {
			return err
		}
		other := s.boot.Slot.Other()
		if lerr := s.leave(err); lerr != nil {
			return fmt.Errorf("%w; slot %s is no way out: %w", err, other, lerr)
		}
		return fmt.Errorf("%w; slot %s, which is whole, is the one from now on", err, other)
	}
}

// leave makes the other slot the kept one, if there is nothing wrong with it.
func (s *system) leave(why error) error {
	boot := s.boot
	boot.Board = s.cmdline.board // also where the slot's manifest, which names it too, is what is damaged
	h, err := host.Open(machine.Identity{Boot: boot, Release: machine.Release{Arch: runtime.GOARCH}})
	if err != nil {
		return err
	}
	defer func() { _ = h.Close() }()
	other := s.boot.Slot.Other()
	dev := h.Roots[other]
	rel, err := release.ReadTail(dev, dev.Size(), s.keys)
	if err != nil {
		return err
	}
	m := rel.Manifest()
	if f := s.boot.Floor; f != "" && release.CompareVersions(m.Version, f) < 0 {
		return fmt.Errorf("release %s %w: %s", m.Version, release.ErrRollback, f)
	}
	if err := wholeRoot(dev, m); err != nil {
		return err
	}
	text := fmt.Sprintf("%sslot %s: %s", leftMark, s.boot.Slot, oneLine(why))
	return errors.Join(h.Selector.Keep(other), firmwareStarts().save(text[:min(len(text), 500)]))
}
