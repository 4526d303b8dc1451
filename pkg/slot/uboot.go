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

// The files of U-Boot's environment on the boot volume, as its FAT driver writes them: two copies, of which the valid one with
// the newer flag counts. Without a valid copy U-Boot has its built-in defaults, which mean "slot a, nothing pending".
var envFiles = [2]string{"uboot.env", "uboot-redund.env"}

// EnvSize is CONFIG_ENV_SIZE.
const EnvSize = 64 << 10

// The variables that Skerry's boot script reads:
//
//	if skerry_trial is set:
//	    if skerry_tries > 0: count it down, saveenv, boot os-${skerry_trial}.efi
//	    else: skerry_failed=${skerry_trial}, unset skerry_trial, saveenv
//	boot os-${skerry_slot}.efi
const (
	envSlot   = "skerry_slot"
	envTrial  = "skerry_trial"
	envTries  = "skerry_tries"
	envFailed = "skerry_failed"
)

// UBoot is the Selector of boards whose U-Boot counts the tries of a slot in its environment.
type UBoot struct{ Boot Volume }

// env is one copy of the environment.
type env struct {
	vars map[string]string
	flag byte
}

// parseEnv reads a copy: checksum, flag, texts each ended by a zero, an empty one last.
func parseEnv(data []byte) (env, error) {
	if len(data) < 6 || len(data) > EnvSize {
		return env{}, fmt.Errorf("is %d bytes", len(data))
	}
	if crc32.ChecksumIEEE(data[5:]) != binary.LittleEndian.Uint32(data) {
		return env{}, errors.New("has a wrong checksum")
	}
	e := env{vars: map[string]string{}, flag: data[4]}
	for _, text := range bytes.Split(data[5:], []byte{0}) {
		if len(text) == 0 {
			break
		}
		k, v, ok := strings.Cut(string(text), "=")
		if !ok || k == "" {
			return env{}, fmt.Errorf("holds %.40q, which is no variable", text)
		}
		e.vars[k] = v
	}
	return e, nil
}

func (e env) encode() ([]byte, error) {
	b := make([]byte, 5, EnvSize)
	b[4] = e.flag
	for _, k := range slices.Sorted(maps.Keys(e.vars)) {
		b = append(append(b, k+"="+e.vars[k]...), 0)
	}
	if len(b) >= EnvSize {
		return nil, fmt.Errorf("environment of %d bytes: %w: %d fit", len(b), ErrNoRoom, EnvSize)
	}
	b = b[:EnvSize] // zeros
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[5:]))
	return b, nil
}

// readEnv gives the environment that U-Boot would use and the number of the copy to write next.
func readEnv(e *fat.Editor) (env, int, error) {
	var found [2]*env
	for i, name := range envFiles {
		data, ok, err := e.ReadFile(name, EnvSize)
		if err != nil {
			return env{}, 0, err
		}
		if !ok {
			continue
		}
		if v, err := parseEnv(data); err == nil {
			found[i] = &v
		}
	}
	switch a, b := found[0], found[1]; {
	case a == nil && b == nil:
		return env{vars: map[string]string{}}, 0, nil
	case b == nil:
		return *a, 1, nil
	case a == nil:
		return *b, 0, nil
	case int8(a.flag-b.flag) >= 0:
		return *a, 1, nil
	default:
		return *b, 0, nil
	}
}

func (u UBoot) open() (*fat.Editor, env, int, error) {
	e, err := u.Boot.edit()
	if err != nil {
		return nil, env{}, 0, err
	}
	v, next, err := readEnv(e)
	return e, v, next, err
}

// save writes the older copy; the newer stays until this one is whole.
func save(e *fat.Editor, v env, next int) error {
	v.flag++
	data, err := v.encode()
	if err != nil {
		return err
	}
	return e.Write(envFiles[next], int64(len(data)), bytes.NewReader(data))
}

func (v env) slot() ID {
	if id, err := Parse(v.vars[envSlot]); err == nil {
		return id
	}
	return A
}

func (v env) trial() ID {
	id, err := Parse(v.vars[envTrial])
	if err != nil {
		return ""
	}
	return id
}

// Booted reads the environment: the script takes the trial away when it falls back, so one that is there is what runs.
func (u UBoot) Booted() (id ID, trial bool, err error) {
	_, v, _, err := u.open()
	if err != nil {
		return "", false, err
	}
	if t := v.trial(); t != "" && v.vars[envTries] != fmt.Sprint(Tries) {
		return t, true, nil
	}
	return v.slot(), false, nil
}

// Kept reads the environment.
func (u UBoot) Kept() (ID, error) {
	_, v, _, err := u.open()
	return v.slot(), err
}

// Room is what the volume has free and the slot's files would leave, less a copy of the environment.
func (u UBoot) Room(id ID) (int64, error) {
	e, err := u.Boot.edit()
	if err != nil {
		return 0, err
	}
	room := e.Free() - e.Takes(EnvSize)
	for _, name := range []string{kernelPath(id), stagedPath(id)} {
		if f, ok := e.Find(name); ok {
			room += e.Takes(f.Size)
		}
	}
	return max(room, 0), nil
}

// Clear ends a trial and takes the slot's kernel away.
func (u UBoot) Clear(id ID) error {
	e, v, next, err := u.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	if v.vars[envTrial] != "" || v.vars[envFailed] != "" {
		v.untry()
		delete(v.vars, envFailed)
		if err := save(e, v, next); err != nil {
			return err
		}
	}
	return removeAll(e, []string{kernelPath(id), stagedPath(id)})
}

func (v env) untry() {
	delete(v.vars, envTrial)
	delete(v.vars, envTries)
}

// Stage writes os-b.new.
func (u UBoot) Stage(id ID, kernel io.Reader, size int64) error {
	e, v, _, err := u.open()
	if err != nil {
		return err
	}
	if v.slot() == id {
		return fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	return stage(e, stagedPath(id), kernel, size)
}

// TryOnce names the kernel and sets the count.
func (u UBoot) TryOnce(id ID) (rebootArg string, err error) {
	e, v, next, err := u.open()
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
	v.vars[envSlot], v.vars[envTrial], v.vars[envTries] = string(v.slot()), string(id), fmt.Sprint(Tries)
	delete(v.vars, envFailed)
	return "", save(e, v, next)
}

// Keep makes the slot the one, and twice: either copy of the environment says so.
func (u UBoot) Keep(id ID) error {
	e, v, next, err := u.open()
	if err != nil {
		return err
	}
	if _, ok := e.Find(kernelPath(id)); !ok {
		return fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	v.untry()
	delete(v.vars, envFailed)
	v.vars[envSlot] = string(id)
	if err := save(e, v, next); err != nil {
		return err
	}
	v.flag++
	return save(e, v, 1-next)
}
