package slot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/fat"
)

// The state is a small file on the boot volume and a copy of it, each as U-Boot's `env export -c` writes it: a checksum, texts
// each ended by a zero, an empty one last, zeros to the end. It is apart from U-Boot's own environment, whose place and size
// differ from board to board. The first file counts if its checksum is right, or else the copy; without either, the state is
// "slot a, nothing pending". So a write that is cut short costs nothing: the first is written before the copy, and the copy
// is made equal to the first before the first changes.
var stateFiles = [2]string{"skerry-1.env", "skerry-2.env"}

// stateSize is one sector: U-Boot writes a file in place.
const stateSize = 512

// The variables in it.
const (
	envSlot   = "skerry_slot"
	envTrial  = "skerry_trial"
	envTries  = "skerry_tries"
	envFailed = "skerry_failed"
)

// UBootScript is what U-Boot runs, from /boot.scr. It counts a trial's tries down BEFORE it starts the kernel, and starts the
// kept slot when there are none left, when it could not write, and when there is no state. A kernel that does not load makes
// it reset, which is a try too. It uses only commands that all of Debian's builds have.
//
// Stock U-Boot verifies nothing: whoever can write the boot partition owns the machine.
const UBootScript = `# Skerry: which slot, and how often yet. Written by pkg/slot.
setenv bootargs
setenv skerry_on "${devtype} ${devnum}:${distro_bootpart}"
setenv skerry_state none
for skerry_file in skerry-1.env skerry-2.env; do
	if test "${skerry_state}" = none; then
		setenv skerry_slot a
		setenv skerry_trial
		setenv skerry_tries
		setenv skerry_failed
		if load ${skerry_on} ${ramdisk_addr_r} ${skerry_file}; then
			if env import -c ${ramdisk_addr_r} 200 skerry_slot skerry_trial skerry_tries skerry_failed; then
				setenv skerry_state ${skerry_file}
			fi
		fi
	fi
done
setenv skerry_pick ${skerry_slot}
if test -n "${skerry_trial}"; then
	setenv skerry_pick ${skerry_trial}
	if test "${skerry_tries}" = 3; then
		setenv skerry_tries 2
	elif test "${skerry_tries}" = 2; then
		setenv skerry_tries 1
	elif test "${skerry_tries}" = 1; then
		setenv skerry_tries 0
	else
		setenv skerry_pick ${skerry_slot}
		setenv skerry_failed ${skerry_trial}
		setenv skerry_trial
		setenv skerry_tries
	fi
	env export -c -s 200 ${ramdisk_addr_r} skerry_slot skerry_trial skerry_tries skerry_failed
	if fatwrite ${skerry_on} ${ramdisk_addr_r} skerry-1.env 200; then
		fatwrite ${skerry_on} ${ramdisk_addr_r} skerry-2.env 200
	else
		setenv skerry_pick ${skerry_slot}
	fi
fi
echo "Skerry: slot ${skerry_pick}, trial ${skerry_trial}, tries left ${skerry_tries} (${skerry_state})"
if load ${skerry_on} ${ramdisk_addr_r} EFI/Linux/os-${skerry_pick}.efi; then
	if test -n "${fdt_addr}"; then
		bootefi ${ramdisk_addr_r} ${fdt_addr}
	else
		bootefi ${ramdisk_addr_r}
	fi
fi
echo "Skerry: slot ${skerry_pick} does not start"
sleep 3
reset
`

// UBoot is the Selector of boards whose U-Boot runs UBootScript.
type UBoot struct{ Boot Volume }

// env is the state.
type env map[string]string

func parseEnv(data []byte) (env, error) {
	if len(data) != stateSize {
		return nil, fmt.Errorf("is %d bytes", len(data))
	}
	if crc32.ChecksumIEEE(data[4:]) != binary.LittleEndian.Uint32(data) {
		return nil, errors.New("has a wrong checksum")
	}
	v := env{}
	for _, text := range bytes.Split(data[4:], []byte{0}) {
		if len(text) == 0 {
			break
		}
		name, value, ok := strings.Cut(string(text), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("holds %.40q, which is no variable", text)
		}
		v[name] = value
	}
	return v, nil
}

// UBootState gives the state files of a machine that was never updated, by name.
func UBootState() map[string][]byte {
	data, err := env{envSlot: string(A)}.encode()
	if err != nil { // it is short
		panic(err)
	}
	return map[string][]byte{stateFiles[0]: data, stateFiles[1]: data}
}

func (v env) encode() ([]byte, error) {
	b := make([]byte, 4, stateSize)
	for _, k := range slices.Sorted(maps.Keys(v)) {
		b = append(append(b, k+"="+v[k]...), 0)
	}
	if len(b) >= stateSize {
		return nil, fmt.Errorf("state of %d bytes: %w: %d fit", len(b), ErrNoRoom, stateSize)
	}
	b = b[:stateSize] // zeros
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b, nil
}

func (u UBoot) open() (*fat.Editor, env, error) {
	e, err := u.Boot.edit()
	if err != nil {
		return nil, nil, err
	}
	v, err := readState(e)
	return e, v, err
}

// readState gives the state that the script would use.
func readState(e *fat.Editor) (env, error) {
	for _, name := range stateFiles {
		data, ok, err := e.ReadFile(name, stateSize)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if v, err := parseEnv(data); err == nil {
			return v, nil
		}
	}
	return env{}, nil
}

// save writes the state: the copy gets the old one first, if it has another, and the new one last.
func save(e *fat.Editor, v env) error {
	old, err := readState(e)
	if err != nil {
		return err
	}
	for _, w := range []struct {
		name string
		v    env
	}{{stateFiles[1], old}, {stateFiles[0], v}, {stateFiles[1], v}} {
		data, err := w.v.encode()
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
func (u UBoot) Booted() (id ID, trial bool, err error) {
	_, v, err := u.open()
	if err != nil {
		return "", false, err
	}
	if t := v.trial(); t != "" && v[envTries] != fmt.Sprint(Tries) {
		return t, true, nil
	}
	return v.slot(), false, nil
}

// Kept reads the state.
func (u UBoot) Kept() (ID, error) {
	_, v, err := u.open()
	return v.slot(), err
}

// Room is what the volume has free and the slot's files would leave, less what writing the state takes.
func (u UBoot) Room(id ID) (int64, error) {
	e, err := u.Boot.edit()
	if err != nil {
		return 0, err
	}
	room := e.Free() - e.Takes(stateSize)
	for _, name := range []string{kernelPath(id), stagedPath(id)} {
		if f, ok := e.Find(name); ok {
			room += e.Takes(f.Size)
		}
	}
	return max(room, 0), nil
}

// Clear ends a trial and takes the slot's kernel away.
func (u UBoot) Clear(id ID) error {
	e, v, err := u.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if v[envTrial] != "" || v[envFailed] != "" {
		v.untry()
		delete(v, envFailed)
		if err := save(e, v); err != nil {
			return err
		}
	}
	return removeAll(e, []string{kernelPath(id), stagedPath(id)})
}

func (v env) untry() {
	delete(v, envTrial)
	delete(v, envTries)
}

// Stage writes os-b.new.
func (u UBoot) Stage(id ID, kernel io.Reader, size int64) error {
	e, v, err := u.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	return stage(e, stagedPath(id), kernel, size)
}

// Kernel is os-a.efi or os-b.efi.
func (u UBoot) Kernel(id ID) (io.ReaderAt, int64, error) {
	e, err := u.Boot.edit()
	if err != nil {
		return nil, 0, err
	}
	return kernelIn(e, id, kernelPath(id))
}

// TryOnce names the kernel and sets the count.
func (u UBoot) TryOnce(id ID) (rebootArg string, err error) {
	e, v, err := u.open()
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
	v[envSlot], v[envTrial], v[envTries] = string(v.slot()), string(id), fmt.Sprint(Tries)
	delete(v, envFailed)
	return "", save(e, v)
}

// Keep makes the slot the one.
func (u UBoot) Keep(id ID) error {
	e, v, err := u.open()
	if err != nil {
		return err
	}
	if _, ok := e.Find(kernelPath(id)); !ok {
		return fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	v.untry()
	delete(v, envFailed)
	v[envSlot] = string(id)
	return save(e, v)
}
