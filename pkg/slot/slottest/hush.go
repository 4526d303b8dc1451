package slottest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/slot"
)

// UBoot is U-Boot with Skerry's boot script: the script's own text, run by a shell that knows just its commands.
type UBoot struct{}

// Once says no.
func (UBoot) Once() bool { return false }

// New makes a boot volume without a state.
func (UBoot) New(t testing.TB) *powercut.Disk {
	return powercut.New(Volume(t, map[string][]byte{"EFI/Linux/os-a.efi": Kernel(slot.A), "EFI/Linux/os-b.efi": Kernel(slot.B)}))
}

// Selector needs nothing but the volume.
func (UBoot) Selector(d Disk, _ Boot) slot.Selector {
	return slot.UBoot{Boot: slot.Volume{Device: d, Size: VolumeSize}}
}

// Boot runs the script until it starts a kernel.
func (UBoot) Boot(d Disk, _ string, loads func([]byte) bool) Boot {
	for range 10 { // a kernel that does not load makes the script reset
		h := &hush{d: d, loads: loads, vars: map[string]string{
			"devtype": "mmc", "devnum": "0", "distro_bootpart": "1", "ramdisk_addr_r": "0x43300000", "bootargs": "of before",
		}}
		h.run(strings.Split(slot.UBootScript, "\n"))
		if !h.reset { // it starts a kernel or resets
			return h.booted
		}
	}
	return Boot{}
}

// hush is U-Boot's shell. Memory is one place: the script uses no other.
type hush struct {
	d      Disk
	vars   map[string]string
	memory []byte
	loads  func([]byte) bool
	booted Boot
	reset  bool
}

func (h *hush) over() bool { return h.reset || h.booted.Slot != "" }

// run runs lines, and gives whether the last command went well.
func (h *hush) run(lines []string) (ok bool) {
	for i := 0; i < len(lines) && !h.over(); i++ {
		line := strings.TrimSpace(lines[i])
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "", "#":
		case "if":
			end := i + closing(lines[i:], "if ", "fi")
			h.branch(lines[i:end])
			i = end
		case "for":
			end := i + closing(lines[i:], "for ", "done")
			name, list, _ := strings.Cut(strings.TrimSuffix(rest, "; do"), " in ")
			for item := range strings.FieldsSeq(list) {
				h.vars[name] = item
				h.run(lines[i+1 : end])
			}
			i = end
		default:
			ok = h.command(line)
		}
	}
	return ok
}

// closing gives the index of the line that closes the block which the first line opens.
func closing(lines []string, opens, closes string) int {
	depth := 0
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, opens) {
			depth++
		}
		if line == closes {
			if depth--; depth == 0 {
				return i
			}
		}
	}
	panic("the boot script has no " + closes + " for: " + lines[0])
}

// branch runs an if with its elifs and else.
func (h *hush) branch(lines []string) {
	depth, taken, start := 0, false, -1
	finish := func(end int) {
		if start >= 0 {
			h.run(lines[start:end])
		}
		start = -1
	}
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "if ") {
			depth++
		}
		if depth == 1 {
			condition, is := strings.CutPrefix(strings.TrimPrefix(line, "el"), "if ")
			if is || line == "else" {
				finish(i)
				if !taken && (line == "else" || h.command(strings.TrimSuffix(condition, "; then"))) {
					taken, start = true, i+1
				}
			}
		}
		if line == "fi" {
			depth--
		}
	}
	finish(len(lines))
}

var reference = regexp.MustCompile(`\$\{([a-z_]+)\}`)

// words splits a command as the shell does: what is between quotes is one word, whatever is in it.
func (h *hush) words(line string) (out []string) {
	for i, part := range strings.Split(line, `"`) {
		text := reference.ReplaceAllStringFunc(part, func(r string) string { return h.vars[r[2:len(r)-1]] })
		if i%2 == 1 {
			out = append(out, text)
		} else {
			out = append(out, strings.Fields(text)...)
		}
	}
	return out
}

func (h *hush) command(line string) bool {
	w := h.words(line)
	e := open(h.d)
	switch w[0] {
	case "echo", "sleep":
		return true
	case "setenv":
		delete(h.vars, w[1])
		if len(w) > 2 {
			h.vars[w[1]] = strings.Join(w[2:], " ")
		}
		return true
	case "test":
		if w[1] == "-n" {
			return w[2] != ""
		}
		return w[2] == "=" && w[1] == w[3]
	case "load": // mmc 0:1 ADDR FILE
		data, ok := text(e, w[4])
		h.memory = []byte(data)
		return ok && w[1] == "mmc" && w[2] == "0:1"
	case "env":
		if w[1] == "import" {
			return h.importEnv(number(w[4]), w[5:])
		}
		return h.exportEnv(number(w[4]), w[6:])
	case "fatwrite": // mmc 0:1 ADDR FILE SIZE
		return h.write(e, w[4], h.memory[:number(w[5])])
	case "bootefi":
		if h.vars["bootargs"] != "" {
			panic("the boot script passes bootargs on, which would stand in the place of the kernel image's own")
		}
		if h.loads(h.memory) {
			id := slot.ID(h.vars["skerry_pick"])
			h.booted = Boot{Slot: id, Trial: string(id) == h.vars["skerry_trial"], Kernel: string(h.memory)}
		}
		return false
	case "reset":
		h.reset = true
		return false
	}
	panic("the boot script has a command that is not known here: " + line)
}

func number(hex string) int {
	n, err := strconv.ParseUint(hex, 16, 32)
	must(err)
	return int(n)
}

// importEnv is env import -c ADDR SIZE NAME…
func (h *hush) importEnv(size int, names []string) bool {
	if len(h.memory) < size || crc32.ChecksumIEEE(h.memory[4:size]) != binary.LittleEndian.Uint32(h.memory) {
		return false
	}
	for v := range strings.SplitSeq(string(h.memory[4:size]), "\x00") {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			break
		}
		if slices.Contains(names, name) {
			h.vars[name] = value
		}
	}
	return true
}

// exportEnv is env export -c -s SIZE ADDR NAME…; names that are not set are left out.
func (h *hush) exportEnv(size int, names []string) bool {
	b := make([]byte, 4, size)
	for _, name := range slices.Sorted(maps.Keys(h.vars)) {
		if slices.Contains(names, name) {
			b = append(append(b, name+"="+h.vars[name]...), 0)
		}
	}
	if len(b) >= size {
		panic(fmt.Sprintf("the boot script's state is %d bytes", len(b)))
	}
	h.memory = b[:size]
	binary.LittleEndian.PutUint32(h.memory, crc32.ChecksumIEEE(h.memory[4:]))
	return true
}

// write is U-Boot's: a file that is there is written in place.
func (h *hush) write(e *fat.Editor, name string, data []byte) bool {
	f, ok := e.Find(name)
	if !ok {
		return e.Write(name, int64(len(data)), bytes.NewReader(data)) == nil
	}
	_, err := h.d.WriteAt(data, f.Offset())
	return err == nil && f.Size == int64(len(data))
}
