package slot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
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

// UBoot is the Selector of boards whose U-Boot runs UBootScript. The state is apart from U-Boot's own environment, whose place and
// size differ from board to board.
type UBoot struct{ scripted }

// NewUBoot is for a boot volume.
func NewUBoot(boot Volume) UBoot {
	return UBoot{scripted{boot: boot, parse: parseEnv, encode: env.encode}}
}

// UBootState gives the state files of a machine that was never updated, by name.
func UBootState() map[string][]byte { return firstState(env.encode) }

// parseEnv reads what U-Boot's `env export -c` writes: a checksum, texts each ended by a zero, an empty one last, zeros to the end.
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
