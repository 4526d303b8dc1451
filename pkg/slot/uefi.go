package slot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"unicode/utf16"
)

// loaderGUID is the vendor of the variables that systemd-boot leaves for the OS:
// https://systemd.io/BOOT_LOADER_INTERFACE/
const loaderGUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// ErrNotNamed means that the firmware left no word of which slot it started: the kernel was started by something else.
var ErrNotNamed = errors.New("the firmware names no slot")

// UEFI is the Selector of machines with UEFI firmware and systemd-boot, which counts the tries of an entry in its file name:
// os-b+3-0.efi has three tries left. The zero values of all but Vars serve for reading what the loader left.
type UEFI struct {
	Vars fs.FS // efivarfs, /sys/firmware/efi/efivars
	Set  Variables
	ESP  Volume
	Disk DiskPath // where the ESP is, for boot entries
}

// entry matches the file names of the two boot entries: os-a.efi, os-b.efi, and with systemd-boot's counters of tries left
// and done, os-b+3.efi, os-b+2-1.efi.
var entry = regexp.MustCompile(`^os-([ab])(\+[0-9]+(-[0-9]+)?)?(\.efi)?$`)

// Booted says which entry systemd-boot started. An entry with counters is on trial.
func (u UEFI) Booted() (id ID, trial bool, err error) {
	name, err := u.text("LoaderEntrySelected")
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, ErrNotNamed
	}
	if err != nil {
		return "", false, err
	}
	m := entry.FindStringSubmatch(strings.ToLower(name))
	if m == nil {
		return "", false, fmt.Errorf("the boot loader started entry %q, which is not one of Skerry's (os-a.efi, os-b.efi)", name)
	}
	// It names the path to rename when a trial went well; without counters there is none. But one stays from an entry that did
	// not load before this one, when the firmware started the loader again without a restart.
	counts, err := u.text("LoaderBootCountPath")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	c := entry.FindStringSubmatch(strings.ToLower(counts[strings.LastIndexByte(counts, '\\')+1:]))
	return ID(m[1]), m[2] != "" || c != nil && c[1] == m[1], nil
}

// ESPID gives the PARTUUID, in small letters, of the partition that the boot loader was started from. It tells the disk the
// machine was started from where several hold Skerry.
func (u UEFI) ESPID() (string, error) {
	id, err := u.text("LoaderDevicePartUUID")
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotNamed
	}
	return strings.ToLower(id), err
}

// SecureBoot says whether the firmware let only signed code start. A firmware without the variable does not.
func (u UEFI) SecureBoot() (bool, error) {
	const name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c" // UEFI's own variables
	data, err := fs.ReadFile(u.Vars, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if len(data) != 5 { // attributes, then one byte
		return false, fmt.Errorf("EFI variable %s: %d bytes are not a yes or no", name, len(data))
	}
	return data[4] == 1, nil
}

// text reads a variable of the loader: four bytes of attributes, then UTF-16 with a zero at the end.
func (u UEFI) text(name string) (string, error) {
	name += "-" + loaderGUID
	data, err := fs.ReadFile(u.Vars, name)
	if err != nil {
		return "", err
	}
	if len(data) < 4 || len(data)%2 != 0 {
		return "", fmt.Errorf("EFI variable %s: %d bytes are not a text", name, len(data))
	}
	var units []uint16
	for b := data[4:]; len(b) > 0; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		units = append(units, c)
	}
	return string(utf16.Decode(units)), nil
}
