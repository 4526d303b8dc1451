package slot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"unicode/utf16"
)

// efiGlobal is the vendor of UEFI's own variables.
const efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// BootOrder is the variable that every UEFI firmware has whose variables can be had at run time.
const BootOrder = "BootOrder-" + efiGlobal

// DiskPath is where the ESP is, as a boot entry names it.
type DiskPath struct {
	Number        uint32   // of the partition, from 1
	Start, Blocks uint64   // in sectors
	GUID          [16]byte // of the partition, as on disk
	Loader        string   // \EFI\BOOT\BOOTX64.EFI
}

// label is what our boot entries are called in the firmware's menu.
const label = "Skerry"

// retries makes the firmware come back to the loader when an image does not load: systemd-boot then ends, and the firmware
// goes on to its next boot entry. One entry for each try and one for the slot to fall back to, all to the same loader, make
// each of these a counted try, so that a damaged image needs no hand to be left. They are made once and then stay.
//
// Two variables of the loader would go before the file we write; a person who chose an entry in its menu may have left them.
func (u UEFI) retries() error {
	if err := u.Prepare(); err != nil {
		return err
	}
	for _, name := range []string{"LoaderEntryDefault", "LoaderEntryOneShot"} {
		if err := u.removeVariable(name + "-" + loaderGUID); err != nil {
			return fmt.Errorf("EFI variable %s, which goes before what the update says: %w", name, err)
		}
	}
	return nil
}

// Prepare makes the boot entries that a trial needs, while nothing depends on them yet. Made once, they stay.
func (u UEFI) Prepare() error {
	if u.Vars == nil || u.Set == nil || u.Disk.Loader == "" {
		return nil
	}
	order, err := u.order()
	if err != nil {
		return err
	}
	want := u.Disk.Option()
	var ours []uint16
	used := map[uint16]bool{}
	for n := range uint16(256) {
		data, err := fs.ReadFile(u.Vars, bootName(n))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		}
		used[n] = true
		if len(data) > 4 && bytes.Equal(data[4:], want) {
			ours = append(ours, n)
		}
	}
	for n := uint16(0); len(ours) < Tries+1 && n < 256; n++ {
		if used[n] {
			continue
		}
		if err := u.Set.Write(bootName(n), want); err != nil {
			return fmt.Errorf("boot entry %04X: %w", n, err)
		}
		ours = append(ours, n)
	}
	slices.Sort(ours) // as they are found the next time
	ours = ours[:min(len(ours), Tries+1)]
	first := slices.Clone(ours)
	for _, n := range order {
		if !slices.Contains(ours, n) {
			first = append(first, n)
		}
	}
	if slices.Equal(first, order) {
		return nil
	}
	var b []byte
	for _, n := range first {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	if err := u.Set.Write(BootOrder, b); err != nil {
		return fmt.Errorf("boot order: %w", err)
	}
	return nil
}

func bootName(n uint16) string { return fmt.Sprintf("Boot%04X-%s", n, efiGlobal) }

func (u UEFI) order() ([]uint16, error) {
	data, err := fs.ReadFile(u.Vars, BootOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(data) < 4 || len(data)%2 != 0 {
		return nil, fmt.Errorf("EFI variable BootOrder: %d bytes are not an order", len(data))
	}
	var out []uint16
	for b := data[4:]; len(b) > 0; b = b[2:] {
		out = append(out, binary.LittleEndian.Uint16(b))
	}
	return out, nil
}

// Option is an EFI_LOAD_OPTION: attributes, length of the path, name, device path of partition and file.
func (d DiskPath) Option() []byte {
	le := binary.LittleEndian
	hd := []byte{4, 1, 42, 0}
	hd = le.AppendUint32(hd, d.Number)
	hd = le.AppendUint64(hd, d.Start)
	hd = le.AppendUint64(hd, d.Blocks)
	hd = append(hd, d.GUID[:]...)
	hd = append(hd, 2, 2) // a GPT, and the signature is its GUID
	name := text16(d.Loader)
	file := append([]byte{4, 4}, le.AppendUint16(nil, uint16(4+len(name)))...)
	file = append(file, name...)
	paths := slices.Concat(hd, file, []byte{0x7f, 0xff, 4, 0})
	b := le.AppendUint32(nil, 1) // active
	b = le.AppendUint16(b, uint16(len(paths)))
	b = append(b, text16(label)...)
	return append(b, paths...)
}

func text16(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}
