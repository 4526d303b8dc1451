package powercut

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func sectors(fill byte, n int) []byte { return bytes.Repeat([]byte{fill}, n*Sector) }

// logOf makes a log as the kernel's header describes it.
func logOf(entries ...[]byte) []byte {
	super := make([]byte, Sector)
	for i, v := range []uint64{logMagic, logVersion, uint64(len(entries)), Sector} {
		binary.LittleEndian.PutUint64(super[i*8:], v)
	}
	return append(super, slices.Concat(entries...)...)
}

func entry(sector, count, flags, dataLen uint64, data []byte) []byte {
	e := make([]byte, Sector)
	for i, v := range []uint64{sector, count, flags, dataLen} {
		binary.LittleEndian.PutUint64(e[i*8:], v)
	}
	return append(e, data...)
}

func TestReadLog(t *testing.T) {
	mark := append([]byte("kept"), make([]byte, Sector-4)...)
	d, err := ReadLog(sectors(0, 8), bytes.NewReader(logOf(
		entry(1, 2, 0, 0, sectors('a', 2)),
		entry(0, 0, logFlush, 0, nil),
		entry(6, 1, logFUA, 0, sectors('b', 1)),
		entry(0, 8, logDiscard, 0, nil),
		entry(0, 0, logMark, 4, mark),
		entry(7, 1, 0, 0, sectors('c', 1)),
	)))
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	d.Cuts(1, 0, func(c Cut) {
		seen = append(seen, fmt.Sprintf("%s %s", strings.Map(func(r rune) rune { return max(r, '.') }, every(c.data)), c.Last))
	})
	want := []string{"........ ", ".aa..... ", ".aa...b. ", ".aa...b. kept", ".aa...bc kept"}
	if !slices.Equal(seen, want) {
		t.Errorf("the cuts are %q, want %q", seen, want)
	}
	if w, want := d.Writes(Part{At: 2 * Sector, Len: Sector}, Part{At: 7 * Sector, Len: Sector}), []int{1, 5}; !slices.Equal(w, want) {
		t.Errorf("operations %v write there, want %v", w, want)
	}
	d.Only(Part{At: 6 * Sector, Len: 2 * Sector})
	seen = nil
	d.Cuts(1, 0, func(c Cut) { seen = append(seen, strings.Map(func(r rune) rune { return max(r, '.') }, every(c.data))) })
	if want := []string{"........", "......b.", "......b.", "......bc"}; !slices.Equal(seen, want) {
		t.Errorf("the cuts of two sectors are %q, want %q", seen, want)
	}
}

// A write that goes through the disk's cache is there once the next operation began, and takes nothing along that was written
// before it; a flush does.
func TestAWriteThroughIsNoFlush(t *testing.T) {
	type seen struct{ without, with, neither int }
	for name, tt := range map[string]struct {
		second []byte
		want   func(s seen) bool
	}{
		"through":       {entry(2, 1, logFUA, 0, sectors('b', 1)), func(s seen) bool { return s.without > 0 && s.with > 0 && s.neither == 0 }},
		"flush before":  {entry(2, 1, logFlush|logFUA, 0, sectors('b', 1)), func(s seen) bool { return s.without == 0 && s.with > 0 && s.neither == 0 }},
		"neither":       {entry(2, 1, 0, 0, sectors('b', 1)), func(s seen) bool { return s.without > 0 && s.with > 0 && s.neither > 0 }},
		"in the cache":  {entry(1, 2, 0, 0, sectors('b', 2)), func(s seen) bool { return s.with > 0 && s.neither > 0 }},
		"over the same": {entry(1, 2, logFUA, 0, sectors('b', 2)), func(s seen) bool { return s.without == 0 && s.with > 0 && s.neither == 0 }},
	} {
		d, err := ReadLog(sectors(0, 8), bytes.NewReader(logOf(entry(1, 1, 0, 0, sectors('a', 1)), tt.second, entry(4, 1, 0, 0, sectors('c', 1)))))
		if err != nil {
			t.Fatal(err)
		}
		var s seen
		d.Cuts(1, 300, func(c Cut) {
			disk := every(c.data)
			if disk[4] != 'c' {
				return // the last write had begun in the others
			}
			switch {
			case disk[2] != 'b':
				s.neither++
			case disk[1] == 0:
				s.without++
			default:
				s.with++
			}
		})
		if !tt.want(s) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// every is the first byte of each sector.
func every(disk []byte) string {
	var b strings.Builder
	for i := 0; i < len(disk); i += Sector {
		b.WriteByte(disk[i])
	}
	return b.String()
}

func TestReadLogRefuses(t *testing.T) {
	good := logOf(entry(1, 2, 0, 0, sectors('a', 2)))
	otherMagic := bytes.Clone(good)
	otherMagic[0]++
	otherSectors := bytes.Clone(good)
	binary.LittleEndian.PutUint64(otherSectors[24:], 4096)
	for name, log := range map[string][]byte{
		"empty":                 nil,
		"half a superblock":     good[:100],
		"magic":                 otherMagic,
		"sectors":               otherSectors,
		"no entry":              good[:Sector],
		"half an entry":         good[:Sector+20],
		"half of the data":      good[:3*Sector],
		"outside the disk":      logOf(entry(7, 2, 0, 0, sectors('a', 2))),
		"a sector beyond count": logOf(entry(1<<63, 1, 0, 0, sectors('a', 1))),
		"more than memory":      logOf(entry(0, 1<<60, 0, 0, nil)),
		"a long mark":           logOf(entry(0, 0, logMark, 1<<40, nil)),
	} {
		if _, err := ReadLog(sectors(0, 8), bytes.NewReader(log)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// QEMU writes such logs, and its disk afterwards is what the last cut shows.
func TestReadLogOfQEMU(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	disk, log := filepath.Join(dir, "disk"), filepath.Join(dir, "log")
	for name, content := range map[string][]byte{disk: make([]byte, size), log: nil} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-io", "--image-opts",
		"driver=blklogwrites,file.driver=file,file.filename="+disk+",log.driver=file,log.filename="+log,
		"-c", "write -P 0x61 0 64k", "-c", "flush", "-c", "write -P 0x62 32k 4k", "-c", "write -z 36k 4k", "-c", "discard 512k 64k", "-c", "write -P 0x63 960k 64k", "-c", "flush")
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("SKERRY_TOOLS") == "" {
			t.Skipf("qemu-io: %v: %s", err, out)
		}
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := ReadLog(make([]byte, size), f)
	if err != nil {
		t.Fatal(err)
	}
	var last []byte
	d.Cuts(1, 0, func(c Cut) { last = c.data })
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(last, want) || last[0] != 'a' || last[33<<10] != 'b' || last[37<<10] != 0 || last[size-1] != 'c' {
		t.Error("the log does not lead to the disk that QEMU left")
	}
}
