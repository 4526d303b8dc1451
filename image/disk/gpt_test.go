package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/skerry-os/skerry/image/imagetest"
)

const mib = 1 << 20

func example() *Table {
	return &Table{
		Size: 40 * mib, GUID: mustGUID("00112233-4455-6677-8899-aabbccddeeff"),
		Partitions: []Partition{
			{Name: "esp", Type: TypeESP, GUID: mustGUID("11111111-2222-3333-4444-555555555555"), Start: mib, Size: 8 * mib},
			{Name: "config", Type: TypeBasic, GUID: mustGUID("a1111111-2222-3333-4444-555555555555"), Start: 9 * mib, Size: 8 * mib},
			{Name: "dätä", Type: TypeLinux, GUID: mustGUID("b1111111-2222-3333-4444-555555555555"), Start: 20 * mib, Size: 19 * mib, Attr: 1 << 60},
		},
	}
}

func encode(t *testing.T, tab *Table) []byte {
	t.Helper()
	head, tail, err := tab.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(head)) != tab.HeadSize() || int64(len(tail)) != tab.TailSize() {
		t.Fatalf("head is %d bytes, tail %d", len(head), len(tail))
	}
	b := make([]byte, tab.Size)
	copy(b, head)
	copy(b[len(b)-len(tail):], tail)
	return b
}

func TestReadGivesWhatWasEncoded(t *testing.T) {
	got, err := Read(bytes.NewReader(encode(t, example())), 40*mib)
	if err != nil || !reflect.DeepEqual(got, example()) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// No bit of either copy, nor of the protective MBR, can change unnoticed; and as long as one copy is whole, the table is read.
func TestEveryChangedByteIsNamed(t *testing.T) {
	b := encode(t, example())
	want := example()
	for _, span := range [][2]int{{0, HeadSize}, {len(b) - TailSize, len(b)}} {
		for i := span[0]; i < span[1]; i++ {
			if unused := b[i] == 0 && i%17 != 0; unused {
				continue // most of a table is empty entries
			}
			b[i] ^= 0x10
			got, err := Read(bytes.NewReader(b), int64(len(b)))
			b[i] ^= 0x10
			var f Fault
			if !errors.As(err, &f) || f.Offset > int64(i) || f.Offset < int64(i)-Entries*entrySize {
				t.Fatalf("byte %d changed: error %v", i, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("byte %d changed: read %+v", i, got)
			}
		}
	}
}

func TestBothCopiesDamaged(t *testing.T) {
	b := encode(t, example())
	b[Sector+60] ^= 1
	b[len(b)-TailSize] ^= 1
	if got, err := Read(bytes.NewReader(b), int64(len(b))); got != nil || err == nil || strings.Count(err.Error(), "checksum") != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for want, change := range map[string]func(*Table){
		"whole sectors or":        func(tab *Table) { tab.Size++ },
		"inside what ends":        func(tab *Table) { tab.Partitions[1].Start = 8 * mib },
		"inside what ends at":     func(tab *Table) { tab.Partitions[0].Start = Sector },
		"after the last usable":   func(tab *Table) { tab.Partitions[2].Size = 20 * mib },
		"longer than 36":          func(tab *Table) { tab.Partitions[0].Name = strings.Repeat("x", 37) },
		"has no type":             func(tab *Table) { tab.Partitions[0].Type = GUID{} },
		"(esp): is not whole sec": func(tab *Table) { tab.Partitions[0].Size = 100 },
	} {
		tab := example()
		change(tab)
		if _, _, err := tab.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestSgdiskAgrees(t *testing.T) {
	sgdisk := imagetest.Tool(t, "sgdisk", "gdisk")
	file := write(t)
	if out := imagetest.Run(t, sgdisk, "-v", file); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
	out := imagetest.Run(t, sgdisk, "-i", "3", file)
	for _, want := range []string{"'dätä'", "B1111111-2222-3333-4444-555555555555", "First sector: 40960 (", "Last sector: 79871 ("} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk does not say %q:\n%s", want, out)
		}
	}
}

func TestDiskfsAgrees(t *testing.T) {
	f, err := os.Open(write(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	tab, err := gpt.Read(f, Sector, Sector)
	if err != nil || tab.RecoveredFromBackup || !tab.ProtectiveMBR || tab.Verify(f, 40*mib) != nil {
		t.Fatalf("read %+v: %v", tab, err)
	}
	for i, p := range example().Partitions {
		got := tab.Partitions[i]
		if got.Name != p.Name || !strings.EqualFold(got.GUID, p.GUID.String()) || !strings.EqualFold(string(got.Type), p.Type.String()) ||
			int64(got.Start)*Sector != p.Start || int64(got.Size) != p.Size || got.Attributes != p.Attr {
			t.Errorf("entry %d: %+v, want %+v", i+1, got, p)
		}
	}
}

func write(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, encode(t, example()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Whatever a table says, with checksums that hold, reading it ends, and what is read without a fault can be written.
func FuzzRead(f *testing.F) {
	head, tail, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(40), []byte{1, 2, 3}, uint16(32), []byte{9})
	f.Fuzz(func(t *testing.T, inHeader uint16, h []byte, inEntries uint16, e []byte) {
		b := append(bytes.Clone(head), tail...)
		header, entries := b[Sector:2*Sector], b[2*Sector:HeadSize]
		copy(header[int(inHeader)%headerSize:headerSize], h)
		copy(entries[int(inEntries)%(4*entrySize):], e)
		le := binary.LittleEndian
		le.PutUint32(header[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(header[16:], 0)
		le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:headerSize]))
		r := bytes.NewReader(b)
		for _, size := range []int64{int64(len(b)), SizeOf(r, int64(len(b)))} {
			tab, err := Read(r, size)
			if err == nil {
				if _, _, err := tab.Encode(); err != nil {
					t.Fatalf("read without a fault, cannot be written: %v", err)
				}
			}
		}
	})
}

// A boot ROM that looks for its loader at 8 KiB, and one that knows no GPT: both kinds of table read back, are held to every
// byte, and are what sgdisk takes for right.
func TestTablesForBootROMs(t *testing.T) {
	for name, change := range map[string]func(*Table){
		"56 entries": func(tab *Table) { tab.Room = 56 },
		"hybrid":     func(tab *Table) { tab.MBR = 1 },
		"both":       func(tab *Table) { tab.Room, tab.MBR = 56, 2 },
		"BIOS":       func(tab *Table) { tab.BIOS, tab.Code = true, bytes.Repeat([]byte{0xeb}, CodeSize) },
	} {
		tab := example()
		change(tab)
		b := encode(t, tab)
		if tab.Room == 56 && (tab.HeadSize() != 8192 || !bytes.Equal(b[8192:9000], make([]byte, 808))) {
			t.Errorf("%s: the table reaches beyond 8 KiB", name)
		}
		got, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil || !reflect.DeepEqual(got, tab) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if got, err := ReadFirst(bytes.NewReader(b), int64(len(b))); err != nil || !reflect.DeepEqual(got, tab) {
			t.Errorf("%s: the first copy alone: %+v, %v", name, got, err)
		}
		for _, i := range []int64{446 + 9, 446 + 16 + 8, Sector + 80, 2*Sector + 3, tab.Size - tab.TailSize(), tab.Size - 400} {
			b[i] ^= 0x10
			if _, err := Read(bytes.NewReader(b), int64(len(b))); err == nil {
				t.Errorf("%s: byte %d changed, and nobody noticed", name, i)
			}
			b[i] ^= 0x10
		}
		clear(b[Sector : 2*Sector]) // the second copy tells its size itself
		if got, err := Read(bytes.NewReader(b), int64(len(b))); err == nil || got == nil || got.Room != tab.Room || len(got.Partitions) != 3 {
			t.Errorf("%s: without the first copy: %+v, %v", name, got, err)
		}
	}
}

func TestSgdiskAgreesOnHybrid(t *testing.T) {
	tab := example()
	tab.Room, tab.MBR = 56, 1
	sgdiskSays(t, tab, "No problems found", "holds up to 56 entries")
}

func TestSgdiskAgreesOnBIOS(t *testing.T) {
	tab := example()
	tab.BIOS, tab.Code = true, bytes.Repeat([]byte{0xeb}, CodeSize)
	sgdiskSays(t, tab, "No problems found", "required to boot from a GPT disk on some BIOS-based")
}

func sgdiskSays(t *testing.T, tab *Table, wants ...string) {
	t.Helper()
	sgdisk := imagetest.Tool(t, "sgdisk", "gdisk")
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, encode(t, tab), 0o600); err != nil {
		t.Fatal(err)
	}
	out := imagetest.Run(t, sgdisk, "-v", "-p", file)
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk does not say %q:\n%s", want, out)
		}
	}
}
