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
	"math"
	"slices"
	"unicode/utf16"
)

// The layout of a GPT with 512-byte sectors.
const (
	Sector     = 512
	Entries    = 128 // what most disks have room for, and the most here
	minEntries = 4
	entrySize  = 128
	headerSize = 92

	HeadSize = 2*Sector + Entries*entrySize // MBR, header, 128 entries: at the start of the disk
	TailSize = Entries*entrySize + Sector   // entries, header: at the end
)

// Table is a GPT. Offsets and sizes are in bytes.
type Table struct {
	Size       int64 // of the disk
	GUID       GUID
	Partitions []Partition // entry 1 first, without gaps
	// Room is for how many entries the table has room, a multiple of 4; 0 is Entries. With 56 it ends at 8 KiB, where some
	// boot ROMs look for their loader.
	Room int
	// MBR is the number of the partition that stands in the MBR too, as FAT, for boot ROMs that know no GPT; 0 for none.
	// Linux and U-Boot use the GPT all the same.
	MBR int
	// BIOS says that a BIOS starts from the disk: the MBR's entry is marked active, without which some start nothing. In front of
	// it is then Code, of CodeSize bytes or nil.
	BIOS bool
	Code []byte
}

// CodeSize is how much of the first sector is code, in bytes.
const CodeSize = 440

func (t *Table) room() int {
	if t.Room == 0 {
		return Entries
	}
	return t.Room
}

// HeadSize is how long the table's copy at the start of the disk is, MBR included.
func (t *Table) HeadSize() int64 { return int64(2*Sector + t.room()*entrySize) }

// TailSize is how long its copy at the end is.
func (t *Table) TailSize() int64 { return int64(t.room()*entrySize + Sector) }

// Partition is one entry of a Table.
type Partition struct {
	Name  string
	Type  GUID
	GUID  GUID
	Start int64
	Size  int64
	Attr  uint64
}

// Encode gives the bytes for the start of the disk and for its end.
func (t *Table) Encode() (head, tail []byte, err error) {
	if err := t.validate(); err != nil {
		return nil, nil, err
	}
	entries := make([]byte, t.room()*entrySize)
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
	head = append(t.mbr(), t.header(entries, 1, last, 2)...)
	head = append(head, entries...)
	tail = append(slices.Clip(entries), t.header(entries, last, 1, last-uint64(len(entries)/Sector))...)
	return head, tail, nil
}

func (t *Table) header(entries []byte, self, other, first uint64) []byte {
	le := binary.LittleEndian
	h := make([]byte, Sector)
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], self)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[40:], uint64(t.HeadSize()/Sector))
	le.PutUint64(h[48:], uint64((t.Size-t.TailSize())/Sector-1))
	t.GUID.put(h[56:])
	le.PutUint64(h[72:], first)
	le.PutUint32(h[80:], uint32(t.room()))
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
	return h
}

// mbr keeps old tools from taking the disk for empty. With a partition in it, it is what others call a hybrid MBR: the entry
// that stands for the GPT then ends where that partition starts.
func (t *Table) mbr() []byte {
	b := make([]byte, Sector)
	const active = 0x80
	gpt, size := b[446:462], t.Size/Sector-1
	if t.MBR > 0 {
		p, fat := t.Partitions[t.MBR-1], b[446:462]
		copy(fat, []byte{active, 0xfe, 0xff, 0xff, 0x0c, 0xfe, 0xff, 0xff}) // bootable, FAT32, no CHS
		binary.LittleEndian.PutUint32(fat[8:], uint32(p.Start/Sector))
		binary.LittleEndian.PutUint32(fat[12:], uint32(p.Size/Sector))
		gpt, size = b[462:478], p.Start/Sector-1
	}
	copy(gpt, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff}) // not bootable, from head 0 sector 2, GPT, to the end of CHS
	if t.BIOS {
		copy(b[:CodeSize], t.Code)
		gpt[0] = active
	}
	binary.LittleEndian.PutUint32(gpt[8:], 1)
	binary.LittleEndian.PutUint32(gpt[12:], uint32(min(size, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (t *Table) validate() error {
	if r := t.room(); r < minEntries || r > Entries || r%minEntries != 0 {
		return fmt.Errorf("gpt: room for %d entries: is not a multiple of %d up to %d", r, minEntries, Entries)
	}
	if t.Size%Sector != 0 || t.Size < t.HeadSize()+t.TailSize() {
		return fmt.Errorf("gpt: a disk of %d bytes is not whole sectors or has no room for a table", t.Size)
	}
	if len(t.Partitions) > t.room() {
		return fmt.Errorf("gpt: %d partitions; at most %d fit", len(t.Partitions), t.room())
	}
	var errs []error
	switch {
	case t.MBR == 0:
	case t.MBR < 0 || t.MBR > len(t.Partitions):
		return fmt.Errorf("gpt: partition %d is to be in the MBR; there are %d", t.MBR, len(t.Partitions))
	case t.Partitions[t.MBR-1].Start/Sector > math.MaxUint32 || t.Partitions[t.MBR-1].Size/Sector > math.MaxUint32:
		errs = append(errs, fmt.Errorf("gpt: entry %d: lies behind what an MBR can say", t.MBR))
	}
	end := t.HeadSize()
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
		case p.Size > t.Size-t.TailSize() || p.Start > t.Size-t.TailSize()-p.Size:
			errs = append(errs, fmt.Errorf("gpt: entry %d (%s): ends after the last usable byte, %d", i+1, p.Name, t.Size-t.TailSize()))
		}
		end = p.Start + p.Size
	}
	return errors.Join(errs...)
}
