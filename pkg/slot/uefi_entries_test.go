package slot_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
)

const global = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// firmware holds variables, and has room for so many writes.
type firmware struct {
	fstest.MapFS
	room    int
	written []string
}

var errFull = errors.New("no space left on device")

func (f *firmware) Write(name string, data []byte) error {
	if f.room--; f.room < 0 {
		return errFull
	}
	f.MapFS[name] = &fstest.MapFile{Data: append([]byte{7, 0, 0, 0}, data...)}
	f.written = append(f.written, name)
	return nil
}

func (f *firmware) Remove(name string) error {
	delete(f.MapFS, name)
	return nil
}

func (f *firmware) order() (out []uint16) {
	v := f.MapFS["BootOrder"+global]
	if v == nil {
		return nil
	}
	for b := v.Data[4:]; len(b) > 0; b = b[2:] {
		out = append(out, binary.LittleEndian.Uint16(b))
	}
	return out
}

func orderOf(n ...uint16) *fstest.MapFile {
	b := []byte{7, 0, 0, 0}
	for _, v := range n {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return &fstest.MapFile{Data: b}
}

var at = slot.DiskPath{Number: 1, Start: 2048, Blocks: 4096, GUID: [16]byte{1, 2}, Loader: `\EFI\BOOT\BOOTX64.EFI`}

func bootVar(n uint16) string { return fmt.Sprintf("Boot%04X%s", n, global) }

func option(data []byte) *fstest.MapFile {
	return &fstest.MapFile{Data: append([]byte{7, 0, 0, 0}, data...)}
}

// An image that does not load ends the loader, and the firmware goes on to its next entry: for each try and for the slot of
// before there is one of ours, before those of others, which stay in their order. Made once, they are not made again.
func TestBootEntriesForImagesThatDoNotLoad(t *testing.T) {
	other := at
	other.Number = 2
	for name, tt := range map[string]struct {
		has   map[uint16][]byte
		order []uint16
		want  []uint16
	}{
		"none":                      {nil, nil, []uint16{0, 1, 2, 3}},
		"others":                    {map[uint16][]byte{0: []byte("disk"), 1: []byte("network")}, []uint16{1, 0}, []uint16{2, 3, 4, 5, 1, 0}},
		"some of ours":              {map[uint16][]byte{0: at.Option(), 7: at.Option(), 1: []byte("network")}, []uint16{1, 7}, []uint16{0, 2, 3, 7, 1}},
		"more of ours than needed":  {map[uint16][]byte{0: at.Option(), 1: at.Option(), 2: at.Option(), 3: at.Option(), 4: at.Option()}, []uint16{4, 0}, []uint16{0, 1, 2, 3, 4}},
		"another partition's":       {map[uint16][]byte{0: other.Option()}, []uint16{0}, []uint16{1, 2, 3, 4, 0}},
		"an entry in no order":      {map[uint16][]byte{9: []byte("disk")}, []uint16{}, []uint16{0, 1, 2, 3}},
		"an order of what is gone":  {nil, []uint16{5}, []uint16{0, 1, 2, 3, 5}},
		"theirs stand before ours ": {map[uint16][]byte{0: at.Option(), 1: at.Option(), 2: at.Option(), 3: at.Option(), 4: []byte("network")}, []uint16{4, 3, 2, 1, 0}, []uint16{0, 1, 2, 3, 4}},
	} {
		f := &firmware{MapFS: fstest.MapFS{}, room: 100}
		for n, data := range tt.has {
			f.MapFS[bootVar(n)] = option(data)
		}
		if tt.order != nil {
			f.MapFS["BootOrder"+global] = orderOf(tt.order...)
		}
		u := slot.UEFI{Vars: f, Set: f, Disk: at}
		if err := u.Prepare(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := f.order(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: the order is %v, want %v", name, got, tt.want)
		}
		for _, n := range f.order()[:slot.Tries+1] {
			if v := f.MapFS[bootVar(n)]; v == nil || !bytes.Equal(v.Data[4:], at.Option()) {
				t.Errorf("%s: entry %d is not ours", name, n)
			}
		}
		for n, data := range tt.has {
			if v := f.MapFS[bootVar(n)]; v == nil || !bytes.Equal(v.Data[4:], data) {
				t.Errorf("%s: entry %d is another", name, n)
			}
		}
		f.written = nil
		if err := u.Prepare(); err != nil || len(f.written) > 0 {
			t.Errorf("%s: the second time %v, wrote %v", name, err, f.written)
		}
	}
}

// A firmware without room refuses the trial before anything is tried; the order never names an entry that is not there.
func TestBootEntriesWithoutRoom(t *testing.T) {
	for room := range slot.Tries + 2 {
		f := &firmware{MapFS: fstest.MapFS{"BootOrder" + global: orderOf(0), bootVar(0): option([]byte("network"))}, room: room}
		if err := (slot.UEFI{Vars: f, Set: f, Disk: at}).Prepare(); !errors.Is(err, errFull) || !strings.HasPrefix(err.Error(), "boot ") {
			t.Errorf("room for %d writes: %v", room, err)
		}
		for _, n := range f.order() {
			if f.MapFS[bootVar(n)] == nil {
				t.Errorf("room for %d writes: the order is %v of %v", room, f.order(), slices.Sorted(maps.Keys(f.MapFS)))
			}
		}
		f.room = 100
		if err := (slot.UEFI{Vars: f, Set: f, Disk: at}).Prepare(); err != nil || len(f.order()) != slot.Tries+2 {
			t.Errorf("after %d writes and with room: %v, %v", room, f.order(), err)
		}
	}
	for name, vars := range map[string]fstest.MapFS{"cut": {"BootOrder" + global: {Data: []byte{7, 0}}}, "odd": {"BootOrder" + global: {Data: []byte{7, 0, 0, 0, 1}}}} {
		f := &firmware{MapFS: vars, room: 100}
		if err := (slot.UEFI{Vars: f, Set: f, Disk: at}).Prepare(); err == nil || len(f.written) > 0 {
			t.Errorf("an order that is %s: %v, wrote %v", name, err, f.written)
		}
	}
	// A machine without variables at run time has none to prepare.
	if err := (slot.UEFI{}).Prepare(); err != nil {
		t.Error(err)
	}
}

// A trial makes the entries first, and takes away what a person chose in the loader's menu, which goes before what is tried.
func TestATrialPreparesTheFirmware(t *testing.T) {
	img := slottest.Volume(t, map[string][]byte{
		"EFI/Linux/os-a.efi": []byte("a"), "EFI/Linux/os-b.new": []byte("b"), "loader/loader.conf": []byte("timeout 0\ndefault os-a.efi\n"),
	})
	for _, full := range []bool{true, false} {
		f := &firmware{MapFS: fstest.MapFS{
			slottest.Selected: slottest.Variable("os-a.efi"), "LoaderEntryDefault" + guid: variable("os-a.efi"), "LoaderEntryOneShot" + guid: variable("os-a.efi"),
		}, room: 100}
		if full {
			f.room = 2
		}
		d := &memory{bytes.Clone(img)}
		u := slot.UEFI{Vars: f, Set: f, Disk: at, ESP: slot.Volume{Device: d, Size: slottest.VolumeSize}}
		_, err := u.TryOnce(slot.B)
		tries := bytes.Contains(d.b, []byte("default os-b+[1-9]*"))
		if full {
			if !errors.Is(err, errFull) || tries {
				t.Errorf("without room: %v; it is tried: %v", err, tries)
			}
			continue
		}
		if err != nil || !tries || len(f.order()) != slot.Tries+1 || f.MapFS["LoaderEntryDefault"+guid] != nil || f.MapFS["LoaderEntryOneShot"+guid] != nil {
			t.Errorf("%v; it is tried: %v; order %v; variables %v", err, tries, f.order(), slices.Sorted(maps.Keys(f.MapFS)))
		}
	}
}

// memory is a volume.
type memory struct{ b []byte }

func (m *memory) ReadAt(b []byte, at int64) (int, error)  { return copy(b, m.b[at:]), nil }
func (m *memory) WriteAt(b []byte, at int64) (int, error) { return copy(m.b[at:], b), nil }
func (m *memory) Sync() error                             { return nil }
