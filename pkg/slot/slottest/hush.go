package slottest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
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
	return slot.NewUBoot(slot.Volume{Device: d, Size: VolumeSize})
}

// Boot runs the script until it starts a kernel.
func (UBoot) Boot(d Disk, _ string, loads func([]byte) bool) Boot {
	for range 10 { // a kernel that does not load makes the script reset
		h := &hush{shell: shell{d: d, loads: loads, vars: map[string]string{
			"devtype": "mmc", "devnum": "0", "distro_bootpart": "1", "ramdisk_addr_r": "0x43300000", "bootargs": "of before",
		}}}
		h.do = h.command
		h.run(strings.Split(slot.UBootScript, "\n"))
		if !h.reset { // it starts a kernel or resets
			return h.booted
		}
	}
	return Boot{}
}

// hush is U-Boot's shell. Memory is one place: the script uses no other.
type hush struct {
	shell
	memory []byte
}

func (h *hush) command(w []string) bool {
	e := open(h.d)
	switch w[0] {
	case "setenv":
		delete(h.vars, w[1])
		if len(w) > 2 {
			h.vars[w[1]] = strings.Join(w[2:], " ")
		}
		return true
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
	}
	panic(fmt.Sprintf("the boot script has a command that is not known here: %q", w))
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
