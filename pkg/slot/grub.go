package slot

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// GRUBConfig is where GRUB finds the script on the boot volume.
const GRUBConfig = "grub.cfg"

// GRUBScript is what GRUB runs on a PC with a BIOS. Like UBootScript it counts a trial's tries down BEFORE it starts the kernel,
// and starts the kept slot when there are none left, when what it wrote does not read back, and when there is no state. A
// kernel that does not load makes it restart the machine, which is a try too.
//
// A slot's kernel is a unified kernel image, of which a BIOS knows nothing: the script takes kernel and initramfs out of it, by
// the places that its description names (GRUBKernel), and says on the command line which board this is, which slot and whether
// it is a trial. A BIOS verifies nothing: whoever can write the boot partition owns the machine.
func GRUBScript(board string) string { return strings.ReplaceAll(grubScript, "BOARD", board) }

// What a command line says of the slot, besides skerry.board and skerry.slots.
const (
	wordSlot  = "skerry.slot"
	wordTrial = "skerry.trial"
	wordESP   = "skerry.esp"
)

const grubScript = `# Skerry: which slot, and how often yet. Written by pkg/slot.
serial --unit=0 --speed=115200
terminal_output console serial
probe --set=skerry_esp --part-uuid ${root}
set skerry_state=none
for skerry_file in skerry-1.env skerry-2.env; do
	if test "${skerry_state}" = none; then
		set skerry_slot=none
		set skerry_trial=
		set skerry_tries=
		set skerry_failed=
		load_env -f /${skerry_file} skerry_slot skerry_trial skerry_tries skerry_failed
		if test "${skerry_slot}" = a; then
			set skerry_state=${skerry_file}
		elif test "${skerry_slot}" = b; then
			set skerry_state=${skerry_file}
		fi
	fi
done
if test "${skerry_state}" = none; then
	set skerry_slot=a
	set skerry_trial=
fi
set skerry_pick=${skerry_slot}
set skerry_on_trial=no
if test -n "${skerry_trial}"; then
	set skerry_pick=${skerry_trial}
	set skerry_on_trial=yes
	if test "${skerry_tries}" = 3; then
		set skerry_tries=2
	elif test "${skerry_tries}" = 2; then
		set skerry_tries=1
	elif test "${skerry_tries}" = 1; then
		set skerry_tries=0
	else
		set skerry_pick=${skerry_slot}
		set skerry_on_trial=no
		set skerry_failed=${skerry_trial}
		set skerry_trial=
		set skerry_tries=
	fi
	set skerry_left=${skerry_tries}
	save_env -f /${skerry_state} skerry_slot skerry_trial skerry_tries skerry_failed
	set skerry_tries=unread
	load_env -f /${skerry_state} skerry_tries
	if test "${skerry_tries}" = "${skerry_left}"; then
		if test "${skerry_state}" = skerry-1.env; then
			save_env -f /skerry-2.env skerry_slot skerry_trial skerry_tries skerry_failed
		fi
	else
		set skerry_pick=${skerry_slot}
		set skerry_on_trial=no
	fi
fi
echo "Skerry: slot ${skerry_pick}, trial ${skerry_trial}, tries left ${skerry_tries} (${skerry_state})"
if load_env -f /EFI/Linux/os-${skerry_pick}.env skerry_linux skerry_initrd skerry_args; then
	if loopback skerry /EFI/Linux/os-${skerry_pick}.efi; then
		if linux (skerry)${skerry_linux} ${skerry_args} skerry.board=BOARD skerry.slots=grub skerry.esp=${skerry_esp} skerry.slot=${skerry_pick} skerry.trial=${skerry_on_trial}; then
			if initrd (skerry)${skerry_initrd}; then
				boot
			fi
		fi
	fi
fi
echo "Skerry: slot ${skerry_pick} does not start"
sleep 3
reboot
`

// GRUBFiles are what lies beside the kernels of a machine that was never updated, by path; both slots have this kernel.
func GRUBFiles(board string, kernel io.ReaderAt) (map[string][]byte, error) {
	files := map[string][]byte{GRUBConfig: []byte(GRUBScript(board))}
	data, err := GRUBKernel(kernel)
	for _, id := range IDs {
		files[describedPath(id)] = data
	}
	return files, err
}

// GRUB is the Selector of PCs whose GRUB runs GRUBScript.
type GRUB struct {
	scripted
	cmdline string
}

// NewGRUB is for a boot volume, and the command line that the kernel was started with.
func NewGRUB(boot Volume, cmdline string) GRUB {
	return GRUB{scripted{boot: boot, parse: parseBlock, encode: block, describe: GRUBKernel}, cmdline}
}

// GRUBState gives the state files of a machine that was never updated, by name.
func GRUBState() map[string][]byte { return firstState(block) }

// Booted reads the command line: the script knows better than the state what it started.
func (g GRUB) Booted() (id ID, trial bool, err error) {
	if id, err = Parse(g.word(wordSlot)); err != nil {
		return "", false, fmt.Errorf("kernel command line: %s: %w", wordSlot, ErrNotNamed)
	}
	return id, g.word(wordTrial) == "yes", nil
}

// ESPID is the GUID of the partition that GRUB was started from, in small letters.
func (g GRUB) ESPID() (string, error) {
	if id := g.word(wordESP); id != "" {
		return strings.ToLower(id), nil
	}
	return "", fmt.Errorf("kernel command line: %s: %w", wordESP, ErrNotNamed)
}

// word is the value of the command line's last word with this key: what comes last is the script's.
func (g GRUB) word(key string) (value string) {
	for w := range strings.FieldsSeq(g.cmdline) {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			value = v
		}
	}
	return value
}

// A block is GRUB's form of variables: a line that says so, lines of name=value with a backslash before each backslash, and #
// to the end of a whole number of sectors. GRUB finds room for longer values among the #.
const blockHead = "# GRUB Environment Block\n"

func block(v env) ([]byte, error) {
	b := []byte(blockHead)
	for _, k := range slices.Sorted(maps.Keys(v)) {
		if strings.Contains(v[k], "\n") {
			return nil, fmt.Errorf("%s: is more than one line", k)
		}
		b = append(b, k+"="+strings.ReplaceAll(v[k], `\`, `\\`)+"\n"...)
	}
	return append(b, bytes.Repeat([]byte("#"), stateSize-len(b)%stateSize)...), nil
}

// parseBlock takes what the script takes: a block that says which slot is kept.
func parseBlock(data []byte) (env, error) {
	text, ok := strings.CutPrefix(string(data), blockHead)
	if !ok || len(data) != stateSize {
		return nil, fmt.Errorf("is %d bytes and no block of variables", len(data))
	}
	v := env{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok && line[0] != '#' && value != "" {
			v[name] = value
		}
	}
	if _, err := Parse(v[envSlot]); err != nil {
		return nil, err
	}
	return v, nil
}

// GRUBKernel describes a unified kernel image for the script, as a block: where kernel and initramfs lie in it, in sectors as
// first+number, and its command line.
func GRUBKernel(image io.ReaderAt) ([]byte, error) {
	f, err := pe.NewFile(image)
	if err != nil {
		return nil, fmt.Errorf("is no unified kernel image: %w", err)
	}
	v := env{}
	for key, name := range map[string]string{"skerry_linux": ".linux", "skerry_initrd": ".initrd"} {
		s := f.Section(name)
		if s == nil || s.Size == 0 {
			return nil, fmt.Errorf("is no unified kernel image: it has no section %s", name)
		}
		if s.Offset%stateSize != 0 {
			return nil, fmt.Errorf("section %s: starts at %d, which is within a sector", name, s.Offset)
		}
		v[key] = fmt.Sprintf("%d+%d", s.Offset/stateSize, (s.Size+stateSize-1)/stateSize)
	}
	s := f.Section(".cmdline")
	if s == nil || s.VirtualSize > s.Size || s.VirtualSize > mostDescribed {
		return nil, errors.New("is no unified kernel image: it has no command line")
	}
	args := make([]byte, s.VirtualSize)
	if _, err := s.ReadAt(args, 0); err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	v["skerry_args"] = strings.TrimRight(string(args), "\x00\n ")
	return block(v)
}
