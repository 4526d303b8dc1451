package slot

import (
	"bytes"
	"fmt"
	"io"

	"github.com/skerry-os/skerry/image/fat"
)

// scripted is what boot loaders share that run a script of this package. The state is a small file on the boot volume and a
// copy of it, of one sector each, in the form that the boot loader reads and writes in place. The first file counts if it is
// whole, or else the copy; without either, the state is "slot a, nothing pending". So a write that is cut short costs nothing:
// the first is written before the copy, and the copy is made equal to the first before the first changes.
type scripted struct {
	boot   Volume
	parse  func([]byte) (env, error)
	encode func(env) ([]byte, error)
	// describe makes what the script must know of a kernel, which lies beside it; nil: nothing.
	describe func(kernel io.ReaderAt) ([]byte, error)
}

var stateFiles = [2]string{"skerry-1.env", "skerry-2.env"}

// stateSize is one sector.
const stateSize = 512

// The variables in it.
const (
	envSlot   = "skerry_slot"
	envTrial  = "skerry_trial"
	envTries  = "skerry_tries"
	envFailed = "skerry_failed"
)

// env is the state.
type env map[string]string

// describedPath is where a kernel's description lies.
func describedPath(id ID) string { return "EFI/Linux/os-" + string(id) + ".env" }

func slotFiles(id ID) []string { return []string{kernelPath(id), stagedPath(id), describedPath(id)} }

// firstState gives the state files of a machine that was never updated.
func firstState(encode func(env) ([]byte, error)) map[string][]byte {
	data, err := encode(env{envSlot: string(A)})
	if err != nil { // it is short
		panic(err)
	}
	return map[string][]byte{stateFiles[0]: data, stateFiles[1]: data}
}

func (s scripted) open() (*fat.Editor, env, error) {
	e, err := s.boot.edit()
	if err != nil {
		return nil, nil, err
	}
	v, err := s.read(e)
	return e, v, err
}

// read gives the state that the script would use.
func (s scripted) read(e *fat.Editor) (env, error) {
	for _, name := range stateFiles {
		data, ok, err := e.ReadFile(name, stateSize)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if v, err := s.parse(data); err == nil {
			return v, nil
		}
	}
	return env{}, nil
}

// save writes the state: the copy gets the old one first, if it has another, and the new one last.
func (s scripted) save(e *fat.Editor, v env) error {
	old, err := s.read(e)
	if err != nil {
		return err
	}
	for _, w := range []struct {
		name string
		v    env
	}{{stateFiles[1], old}, {stateFiles[0], v}, {stateFiles[1], v}} {
		data, err := s.encode(w.v)
		if err != nil {
			return err
		}
		if have, ok, err := e.ReadFile(w.name, stateSize); err == nil && ok && bytes.Equal(have, data) {
			continue
		}
		if err := e.Write(w.name, stateSize, bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

func (v env) slot() ID {
	if id, err := Parse(v[envSlot]); err == nil {
		return id
	}
	return A
}

func (v env) trial() ID {
	id, err := Parse(v[envTrial])
	if err != nil {
		return ""
	}
	return id
}

// Booted reads the state: the script takes the trial away when it falls back, so one that is there is what runs.
func (s scripted) Booted() (id ID, trial bool, err error) {
	_, v, err := s.open()
	if err != nil {
		return "", false, err
	}
	if t := v.trial(); t != "" && v[envTries] != fmt.Sprint(Tries) {
		return t, true, nil
	}
	return v.slot(), false, nil
}

// Kept reads the state.
func (s scripted) Kept() (ID, error) {
	_, v, err := s.open()
	return v.slot(), err
}

// Room is what the volume has free and the slot's files would leave, less what writing the state takes.
func (s scripted) Room(id ID) (int64, error) {
	e, err := s.boot.edit()
	if err != nil {
		return 0, err
	}
	room := e.Free() - e.Takes(stateSize)
	for _, name := range stateFiles {
		if _, ok := e.Find(name); !ok {
			room -= e.Takes(stateSize)
		}
	}
	if s.describe != nil {
		room -= e.Takes(mostDescribed)
	}
	for _, name := range slotFiles(id) {
		if f, ok := e.Find(name); ok {
			room += e.Takes(f.Size)
		}
	}
	return max(room, 0), nil
}

// Clear ends a trial and takes the slot's kernel away.
func (s scripted) Clear(id ID) error {
	e, v, err := s.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if v[envTrial] != "" || v[envFailed] != "" {
		v.untry()
		delete(v, envFailed)
		if err := s.save(e, v); err != nil {
			return err
		}
	}
	return removeAll(e, slotFiles(id))
}

func (v env) untry() {
	delete(v, envTrial)
	delete(v, envTries)
}

// Stage writes os-b.new.
func (s scripted) Stage(id ID, kernel io.Reader, size int64) error {
	e, v, err := s.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	return stage(e, stagedPath(id), kernel, size)
}

// Kernel is os-a.efi or os-b.efi.
func (s scripted) Kernel(id ID) (io.ReaderAt, int64, error) {
	e, err := s.boot.edit()
	if err != nil {
		return nil, 0, err
	}
	return kernelIn(e, id, kernelPath(id))
}

// TryOnce names the kernel and sets the count.
func (s scripted) TryOnce(id ID) (rebootArg string, err error) {
	e, v, err := s.open()
	if err != nil {
		return "", err
	}
	if v.slot() == id {
		return "", fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if _, ok := e.Find(kernelPath(v.slot())); !ok {
		return "", fmt.Errorf("slot %s: has no kernel: %w", v.slot(), ErrNoFallback)
	}
	_, staged := e.Find(stagedPath(id))
	_, plain := e.Find(kernelPath(id))
	switch {
	case staged:
		if err := e.Remove(kernelPath(id)); err != nil {
			return "", err
		}
		if err := e.Rename(stagedPath(id), kernelPath(id)); err != nil {
			return "", err
		}
	case !plain:
		return "", fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	if err := s.tell(e, id); err != nil {
		return "", err
	}
	v[envSlot], v[envTrial], v[envTries] = string(v.slot()), string(id), fmt.Sprint(Tries)
	delete(v, envFailed)
	return "", s.save(e, v)
}

// Keep makes the slot the one.
func (s scripted) Keep(id ID) error {
	e, v, err := s.open()
	if err != nil {
		return err
	}
	if _, ok := e.Find(kernelPath(id)); !ok {
		return fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	if err := s.tell(e, id); err != nil {
		return err
	}
	v.untry()
	delete(v, envFailed)
	v[envSlot] = string(id)
	return s.save(e, v)
}

// mostDescribed bounds a kernel's description.
const mostDescribed = 4096

// tell writes what the script must know of a slot's kernel.
func (s scripted) tell(e *fat.Editor, id ID) error {
	f, ok := e.Find(kernelPath(id))
	if s.describe == nil || !ok {
		return nil
	}
	data, err := s.describe(f)
	if err == nil && len(data) > mostDescribed {
		err = fmt.Errorf("takes %d bytes to describe; at most %d are read", len(data), mostDescribed)
	}
	if err != nil {
		return fmt.Errorf("/%s: %w", f.Path, err)
	}
	if have, ok, err := e.ReadFile(describedPath(id), mostDescribed); err == nil && ok && bytes.Equal(have, data) {
		return nil
	}
	return e.Write(describedPath(id), int64(len(data)), bytes.NewReader(data))
}
