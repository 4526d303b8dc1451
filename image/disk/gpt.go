// Package disk makes and reads the partition table of an image. It works on bytes, so that a plan can hold the finished
// table before anything is written, and reading is strict: the table of an image is exactly what Encode gives, and a damaged
// copy is named, not repaired in silence. (That, and readers which trust the entry size they read, is why no library stands
// behind it; the tests hold it against go-diskfs and sgdisk.)
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// The layout of a GPT with 512-byte sectors and 128 entries, which is the only one here.
const (
	Sector     = 512
	Entries    = 128
	entrySize  = 128
	headerSize = 92
	tableSize  = Entries * entrySize

	HeadSize = 2*Sector + tableSize // protective MBR, header, entries: at the start of the disk
	TailSize = tableSize + Sector   // entries, header: at the end
)

// Table is a GPT. Offsets and sizes are in bytes.
type Table struct {
	Size       int64 // of the disk
	GUID       GUID
	Partitions []Partition // entry 1 first, without gaps
}

// Partition is one entry of a Table.
type Partition struct {
	Name  string
	Type  GUID
	GUID  GUID
	Start int64
	Size  int64
	Attr  uint64
}

// Encode gives the bytes for the first HeadSize and the last TailSize bytes of the disk.
func (t *Table) Encode() (head, tail []byte, err error) {
	if err := t.validate(); err != nil {
		return nil, nil, err
	}
	entries := make([]byte, tableSize)
	for i, p := range t.Partitions {
		e := entries[i*entrySize:]
		p.Type.put(e)
		p.GUID.put(e[16:])
		binary.LittleEndian.PutUint64(e[32:], uint64(p.Start/Sector))
		binary.LittleEndian.PutUint64(e[40:], uint64((p.Start+p.Size)/Sector-1))
		binary.LittleEndian.PutUint64(e[48:], p.Attr)
		for j, u := range utf16.Encode([]rune(p.Name)) {
			binary.LittleEndian.PutUint16(e[56+2*j:], u)
		}
	}
	last := uint64(t.Size/Sector - 1)
	head = append(t.protectiveMBR(), t.header(entries, 1, last, 2)...)
	head = append(head, entries...)
	tail = append(entries[:tableSize:tableSize], t.header(entries, last, 1, last-tableSize/Sector)...)
	return head, tail, nil
}

func (t *Table) header(entries []byte, self, other, first uint64) []byte {
	le := binary.LittleEndian
	h := make([]byte, Sector)
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], self)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[40:], HeadSize/Sector)
	le.PutUint64(h[48:], uint64((t.Size-TailSize)/Sector-1))
	t.GUID.put(h[56:])
	le.PutUint64(h[72:], first)
	le.PutUint32(h[80:], Entries)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
	return h
}

// protectiveMBR keeps old tools from taking the disk for empty.
func (t *Table) protectiveMBR() []byte {
	b := make([]byte, Sector)
	e := b[446:]
	copy(e, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff}) // not bootable, from head 0 sector 2, GPT, to the end of CHS
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(t.Size/Sector-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (t *Table) validate() error {
	if t.Size%Sector != 0 || t.Size < HeadSize+TailSize {
		return fmt.Errorf("gpt: a disk of %d bytes is not whole sectors or has no room for a table", t.Size)
	}
	if len(t.Partitions) > Entries {
		return fmt.Errorf("gpt: %d partitions; at most %d fit", len(t.Partitions), Entries)
	}
	var errs []error
	end := int64(HeadSize)
	for i, p := range t.Partitions {
		switch {
		case p.Type == (GUID{}):
			errs = append(errs, fmt.Errorf("gpt: entry %d: has no type", i+1))
		case len(utf16.Encode([]rune(p.Name))) > 36:
			errs = append(errs, fmt.Errorf("gpt: entry %d: name %q is longer than 36 characters", i+1, p.Name))
		case p.Start%Sector != 0 || p.Size%Sector != 0 || p.Size <= 0:
			errs = append(errs, fmt.Errorf("gpt: entry %d (%s): is not whole sectors", i+1, p.Name))
		case p.Start < end:
			errs = append(errs, fmt.Errorf("gpt: entry %d (%s): starts at %d, inside what ends at %d", i+1, p.Name, p.Start, end))
		case p.Size > t.Size-TailSize || p.Start > t.Size-TailSize-p.Size:
			errs = append(errs, fmt.Errorf("gpt: entry %d (%s): ends after the last usable byte, %d", i+1, p.Name, t.Size-TailSize))
		}
		end = p.Start + p.Size
	}
	return errors.Join(errs...)
}
