package slot_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"testing/fstest"
	"unicode/utf16"

	"github.com/skerry-os/skerry/pkg/slot"
)

const guid = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// variable is the file that efivarfs has for a text: attributes, UTF-16, a zero.
func variable(text string) *fstest.MapFile {
	b := []byte{6, 0, 0, 0}
	for _, c := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return &fstest.MapFile{Data: b}
}

func TestUEFIBooted(t *testing.T) {
	for _, tt := range []struct {
		entry, countPath string
		id               slot.ID
		trial, bad       bool
	}{
		{entry: "os-a.efi", id: slot.A},
		{entry: "os-b.efi", id: slot.B},
		{entry: "OS-B.EFI", id: slot.B}, // systemd-boot keeps the case that FAT gives it
		{entry: "os-b+3.efi", id: slot.B, trial: true},
		{entry: "os-b+2-1.efi", id: slot.B, trial: true},
		{entry: "os-b", id: slot.B},
		{entry: "os-b.efi", countPath: `\EFI\Linux\os-b+2-1.efi`, id: slot.B, trial: true}, // newer loaders cut the counters off
		{entry: "os-a.efi", countPath: `\EFI\Linux\os-b+0-3.efi`, id: slot.A},              // of the entry that did not load before
		{entry: "os-c.efi", bad: true},
		{entry: "auto-windows", bad: true},
		{entry: "os-a.efi.bak", bad: true},
		{entry: "", bad: true},
	} {
		vars := fstest.MapFS{"LoaderEntrySelected" + guid: variable(tt.entry)}
		if tt.countPath != "" {
			vars["LoaderBootCountPath"+guid] = variable(tt.countPath)
		}
		id, trial, err := slot.UEFI{Vars: vars}.Booted()
		if id != tt.id || trial != tt.trial || (err != nil) != tt.bad {
			t.Errorf("%q: slot %q, trial %v, %v", tt.entry, id, trial, err)
		}
	}
}

func TestUEFINotNamed(t *testing.T) {
	u := slot.UEFI{Vars: fstest.MapFS{}}
	if _, _, err := u.Booted(); !errors.Is(err, slot.ErrNotNamed) {
		t.Errorf("slot: %v", err)
	}
	if _, err := u.ESPID(); !errors.Is(err, slot.ErrNotNamed) {
		t.Errorf("esp: %v", err)
	}
}

func TestUEFIDamaged(t *testing.T) {
	for _, data := range []string{"", "abc", "abcde"} {
		u := slot.UEFI{Vars: fstest.MapFS{"LoaderEntrySelected" + guid: {Data: []byte(data)}}}
		if _, _, err := u.Booted(); err == nil || errors.Is(err, slot.ErrNotNamed) {
			t.Errorf("%q: %v", data, err)
		}
	}
}

func TestUEFIESP(t *testing.T) {
	u := slot.UEFI{Vars: fstest.MapFS{"LoaderDevicePartUUID" + guid: variable("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")}}
	if id, err := u.ESPID(); err != nil || id != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
		t.Errorf("got %q, %v", id, err)
	}
}

func TestSecureBoot(t *testing.T) {
	const name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	for _, c := range []struct {
		data []byte
		on   bool
		bad  bool
	}{{[]byte{6, 0, 0, 0, 1}, true, false}, {[]byte{6, 0, 0, 0, 0}, false, false}, {[]byte{6, 0, 0, 0}, false, true}, {nil, false, false}} {
		vars := fstest.MapFS{}
		if c.data != nil {
			vars[name] = &fstest.MapFile{Data: c.data}
		}
		on, err := slot.UEFI{Vars: vars}.SecureBoot()
		if on != c.on || (err != nil) != c.bad {
			t.Errorf("%v: %v, %v", c.data, on, err)
		}
	}
}
