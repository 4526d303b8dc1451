package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// Fault is a place on the disk where the table is not what it must be.
type Fault struct {
	Offset int64
	Msg    string
}

func (f Fault) Error() string { return fmt.Sprintf("offset %d: %s", f.Offset, f.Msg) }

// Read reads the table of a disk of size bytes. It returns the table of the first copy that is whole, or nil if there is
// none, and a joined error of a Fault for all that is wrong with either copy.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	if size%Sector != 0 || size < HeadSize+TailSize {
		return nil, Fault{0, fmt.Sprintf("a disk of %d bytes is not whole sectors or has no room for a GPT", size)}
	}
	head, tail := make([]byte, HeadSize), make([]byte, TailSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("reading the GPT: %w", err)
	}
	if _, err := r.ReadAt(tail, size-TailSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the second GPT: %w", err)
	}
	first, err1 := parse("the first GPT", head[Sector:2*Sector], head[2*Sector:], Sector, 2*Sector, size)
	room := Entries
	if first != nil {
		room = first.room()
	} else if n := roomIn(tail[TailSize-Sector:]); n > 0 {
		room = n
	}
	tail = tail[TailSize-(room*entrySize+Sector):]
	second, err2 := parse("the second GPT", tail[room*entrySize:], tail[:room*entrySize], size-Sector, size-int64(len(tail)), size)
	t := first
	if t == nil {
		t = second
	}
	if t == nil {
		return nil, errors.Join(err1, err2)
	}
	t.readMBR(head[:Sector])
	errs := []error{err1, err2}
	// Whatever the checksums do not cover is covered by comparing with the one right encoding.
	wantHead, wantTail, err := t.Encode()
	if err != nil {
		return nil, errors.Join(err1, err2, err)
	}
	if err1 == nil {
		errs = append(errs, differ(head, wantHead, 0))
	} else {
		errs = append(errs, differ(head[:Sector], wantHead[:Sector], 0))
	}
	if err2 == nil {
		errs = append(errs, differ(tail, wantTail, size-int64(len(tail))))
	}
	return t, errors.Join(errs...)
}

// readMBR looks at the MBR's first entry: the one that protects the GPT, or a partition of it.
func (t *Table) readMBR(mbr []byte) {
	if t.BIOS = mbr[446] == 0x80 && mbr[446+4] == 0xee; t.BIOS {
		t.Code = mbr[:CodeSize:CodeSize]
	}
	if mbr[446+4] != 0x0c {
		return
	}
	start := int64(binary.LittleEndian.Uint32(mbr[446+8:])) * Sector
	t.MBR = 1 + slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Start == start })
}

// roomIn reads for how many entries a header says there is room; 0 if that is none this program makes.
func roomIn(h []byte) int {
	n := binary.LittleEndian.Uint32(h[80:])
	if n < minEntries || n > Entries || n%minEntries != 0 {
		return 0
	}
	return int(n)
}

func differ(got, want []byte, at int64) error {
	for i := range want {
		if got[i] != want[i] {
			return Fault{at + int64(i), fmt.Sprintf("byte is %#02x; a GPT of these partitions has %#02x here", got[i], want[i])}
		}
	}
	return nil
}

// parse reads one copy. Everything is checked before it is used as a size or a place.
func parse(what string, h, entries []byte, headerAt, entriesAt, size int64) (*Table, error) {
	le := binary.LittleEndian
	bad := func(at int64, format string, a ...any) error {
		return Fault{at, what + ": " + fmt.Sprintf(format, a...)}
	}
	if string(h[:8]) != "EFI PART" {
		return nil, bad(headerAt, "has no signature")
	}
	if n := le.Uint32(h[12:]); n != headerSize {
		return nil, bad(headerAt+12, "header is %d bytes; %d are known", n, headerSize)
	}
	zeroed := append([]byte(nil), h[:headerSize]...)
	le.PutUint32(zeroed[16:], 0)
	if got, want := le.Uint32(h[16:]), crc32.ChecksumIEEE(zeroed); got != want {
		return nil, bad(headerAt, "checksum of the header is %08x; the bytes give %08x", got, want)
	}
	room := roomIn(h)
	if s := le.Uint32(h[84:]); room == 0 || s != entrySize || room*entrySize > len(entries) {
		return nil, bad(headerAt+80, "has %d entries of %d bytes; this program makes and reads up to %d of %d", le.Uint32(h[80:]), s, Entries, entrySize)
	}
	entries = entries[:room*entrySize]
	if got, want := le.Uint32(h[88:]), crc32.ChecksumIEEE(entries); got != want {
		return nil, bad(entriesAt, "checksum of the entries is %08x; the bytes give %08x", got, want)
	}
	t := &Table{Size: size, GUID: takeGUID(h[56:])}
	if room != Entries {
		t.Room = room
	}
	used := 0
	for i := range room {
		e := entries[i*entrySize : (i+1)*entrySize]
		typ := takeGUID(e)
		if typ == (GUID{}) {
			continue
		}
		if used != i {
			return nil, bad(entriesAt+int64(i*entrySize), "entry %d is used and the one before is not", i+1)
		}
		used++
		start, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if start > last || last >= uint64(size/Sector) {
			return nil, bad(entriesAt+int64(i*entrySize+32), "entry %d runs from sector %d to %d on a disk of %d", i+1, start, last, size/Sector)
		}
		t.Partitions = append(t.Partitions, Partition{
			Name: takeName(e[56:]), Type: typ, GUID: takeGUID(e[16:]),
			Start: int64(start) * Sector, Size: int64(last-start+1) * Sector, Attr: le.Uint64(e[48:]),
		})
	}
	if err := t.validate(); err != nil {
		return nil, bad(entriesAt, "%v", err)
	}
	return t, nil
}

func takeName(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// SizeOf gives the size of the disk that the table at the start of r was made for: an image on a larger medium ends before
// the medium does. Without a table that says so it is size.
func SizeOf(r io.ReaderAt, size int64) int64 {
	h := make([]byte, Sector)
	if _, err := r.ReadAt(h, Sector); err != nil || string(h[:8]) != "EFI PART" {
		return size
	}
	le := binary.LittleEndian
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	last := le.Uint64(h[32:])
	if crc32.ChecksumIEEE(h[:headerSize]) != sum || last >= uint64(size/Sector) || last < 2*minTable/Sector {
		return size
	}
	return int64(last+1) * Sector
}

const minTable = 2*Sector + minEntries*entrySize

// ReadFirst reads the copy at the start alone, of a disk of size bytes whose end is not at hand.
func ReadFirst(r io.ReaderAt, size int64) (*Table, error) {
	head := make([]byte, HeadSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("reading the GPT: %w", err)
	}
	t, err := parse("the first GPT", head[Sector:2*Sector], head[2*Sector:], Sector, 2*Sector, size)
	if t != nil {
		t.readMBR(head[:Sector])
	}
	return t, err
}
