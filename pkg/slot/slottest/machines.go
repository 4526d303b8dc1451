package slottest

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf16"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/slot"
)

// VolumeSize is the size of the models' volumes.
const VolumeSize = 34 << 20

var when = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Volume makes the bytes of a FAT volume with these files.
func Volume(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	b := make([]byte, VolumeSize)
	var list []fat.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, fat.File{Path: name, Size: int64(len(files[name]))})
	}
	l, err := fat.Lay(fat.Params{Size: VolumeSize, Label: "BOOT", Serial: 1, Time: when}, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range l.Meta {
		copy(b[c.Offset:], c.Data)
	}
	for _, f := range l.Files {
		copy(b[f.Offset:], files[f.Path])
	}
	return b
}

// open is the firmware's own FAT driver; it finds what any reader does.
func open(d Disk) *fat.Editor {
	e, err := fat.Edit(d, d.Size(), when)
	if err != nil {
		panic(fmt.Sprintf("the firmware cannot read its volume: %v", err))
	}
	return e
}

func text(e *fat.Editor, name string) (string, bool) {
	f, ok := e.Find(name)
	if !ok {
		return "", false
	}
	b, err := io.ReadAll(f.Open())
	if err != nil {
		panic(err)
	}
	return string(b), true
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("the firmware cannot write: %v", err))
	}
}

// UEFI is systemd-boot on firmware whose boot order holds the loader Tries+1 times, as slot.UEFI makes it.
type UEFI struct{}

// Once says no.
func (UEFI) Once() bool { return false }

// New makes the ESP as images have it.
func (UEFI) New(t testing.TB) *powercut.Disk {
	return powercut.New(Volume(t, map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": []byte("loader"), "EFI/Linux/os-a.efi": Kernel(slot.A), "EFI/Linux/os-b.efi": Kernel(slot.B),
		"loader/loader.conf": []byte("timeout 0\ndefault os-a.efi\neditor no\n"),
	}))
}

// Selector reads the variables that the loader left.
func (UEFI) Selector(d Disk, b Boot) slot.Selector {
	left, _ := b.State.(loader)
	vars := fstest.MapFS{Selected: Variable(left.entry)}
	if left.counts != "" {
		vars[Counts] = Variable(left.counts)
	}
	return slot.UEFI{Vars: vars, ESP: slot.Volume{Device: d, Size: d.Size()}}
}

// loader is what it leaves: the entry it started, and the last one that it counted, which may not have loaded.
type loader struct{ entry, counts string }

// Counts is the variable that names a counted entry as it was found.
const Counts = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// Selected is the variable that names the entry the loader started.
const Selected = "LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// Variable is the file that efivarfs has for a text.
func Variable(s string) *fstest.MapFile {
	b := []byte{6, 0, 0, 0}
	for _, c := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return &fstest.MapFile{Data: b}
}

var counters = regexp.MustCompile(`^(.*)\+([0-9]+)(?:-([0-9]+))?(\.efi)$`)

// Boot does what systemd-boot 254 does: sort the entries, those without tries left last; take the first that the default of
// loader.conf matches, or else the first; count the try in the file's name; start it, or end and be started again.
func (UEFI) Boot(d Disk, _ string, loads func([]byte) bool) Boot {
	counts := ""
	for range slot.Tries + 1 {
		e := open(d)
		var ids []string
		for _, f := range e.Files() {
			dir, name := path.Split(strings.ToLower(f.Path))
			if dir == "efi/linux/" && strings.HasSuffix(name, ".efi") {
				ids = append(ids, name)
			}
		}
		left := func(id string) int {
			if m := counters.FindStringSubmatch(id); m != nil {
				n, _ := strconv.Atoi(m[2])
				return n
			}
			return -1
		}
		slices.SortFunc(ids, func(a, b string) int {
			if x, y := left(a) == 0, left(b) == 0; x != y {
				if x {
					return 1
				}
				return -1
			}
			return -strings.Compare(a, b)
		})
		if len(ids) == 0 {
			return Boot{}
		}
		pick := ids[0]
		conf, _ := text(e, "loader/loader.conf")
		for line := range strings.Lines(conf) {
			if pattern, ok := strings.CutPrefix(strings.TrimSpace(line), "default "); ok {
				if i := slices.IndexFunc(ids, func(id string) bool { ok, _ := path.Match(pattern, id); return ok }); i >= 0 {
					pick = ids[i]
				}
			}
		}
		if n := left(pick); n > 0 {
			m := counters.FindStringSubmatch(pick)
			done, _ := strconv.Atoi(m[3])
			to := fmt.Sprintf("%s+%d-%d%s", m[1], n-1, done+1, m[4])
			must(e.Rename("EFI/Linux/"+pick, "EFI/Linux/"+to))
			pick, counts = to, `\EFI\Linux\`+to
		}
		kernel, _ := text(e, "EFI/Linux/"+pick)
		if !loads([]byte(kernel)) {
			continue
		}
		id := slot.ID(strings.TrimPrefix(pick, "os-")[:1])
		return Boot{Slot: id, Trial: left(pick) >= 0, Kernel: kernel, State: loader{pick, counts}}
	}
	return Boot{}
}

// Pi is the Raspberry Pi's firmware: three volumes on one disk, select, boot-a, boot-b.
type Pi struct{}

// Once says yes: tryboot is for one boot.
func (Pi) Once() bool { return true }

// New makes the three volumes.
func (Pi) New(t testing.TB) *powercut.Disk {
	return powercut.New(slices.Concat(
		Volume(t, map[string][]byte{"autoboot.txt": []byte("[all]\ntryboot_a_b=1\nboot_partition=2\n")}),
		Volume(t, map[string][]byte{"boot.img": Kernel(slot.A)}), Volume(t, map[string][]byte{"boot.img": Kernel(slot.B)})))
}

func (Pi) part(d Disk, n int) powercut.Part {
	return powercut.Part{D: d, At: int64(n-1) * VolumeSize, Len: VolumeSize}
}

// Selector reads the device tree that the firmware passed.
func (p Pi) Selector(d Disk, b Boot) slot.Selector {
	chosen, _ := b.State.(fs.FS)
	v := func(n int) slot.Volume { return slot.Volume{Device: p.part(d, n), Size: VolumeSize} }
	return slot.Pi{Select: v(1), Boot: map[slot.ID]slot.Volume{slot.A: v(2), slot.B: v(3)}, Number: map[slot.ID]int{slot.A: 2, slot.B: 3}, Chosen: chosen}
}

// Boot reads autoboot.txt: the section [tryboot] counts after a restart that asked for it.
func (p Pi) Boot(d Disk, arg string, loads func([]byte) bool) Boot {
	for range 3 {
		conf, _ := text(open(p.part(d, 1)), "autoboot.txt")
		section, number := "all", 0
		for line := range strings.Lines(conf) {
			line = strings.TrimSpace(line)
			if s, ok := strings.CutPrefix(line, "["); ok {
				section = strings.TrimSuffix(s, "]")
			}
			if n, ok := strings.CutPrefix(line, "boot_partition="); ok && (section == "all" || section == "tryboot" && arg == "0 tryboot") {
				number, _ = strconv.Atoi(n)
			}
		}
		try := arg == "0 tryboot" && strings.Contains(conf, "[tryboot]")
		arg = "" // the firmware's next start, if this one does not load
		if number < 2 || number > 3 {
			return Boot{}
		}
		kernel, ok := text(open(p.part(d, number)), "boot.img")
		if !ok || !loads([]byte(kernel)) {
			continue
		}
		word := func(n uint32) *fstest.MapFile { return &fstest.MapFile{Data: binary.BigEndian.AppendUint32(nil, n)} }
		flag := uint32(0)
		if try {
			flag = 1
		}
		return Boot{Slot: slot.IDs[number-2], Trial: try, Kernel: kernel, State: fstest.MapFS{"partition": word(uint32(number)), "tryboot": word(flag)}}
	}
	return Boot{}
}
