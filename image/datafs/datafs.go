// Package datafs is what stands on the data partition around its ext4 filesystem: whether a filesystem that is found there is this
// machine's, or is left over from a medium's earlier life.
//
// ext4 leaves the first 1024 bytes of its partition alone. An image brings the mark "fresh" there: until a machine has mounted the
// filesystem that it made itself, nothing else on the partition counts, however whole it looks. Copies of an earlier life's
// superblock are 128 MiB and more behind the partition's begin, where no image reaches and writing it does not erase them. The
// mark "used" takes the place of "fresh" then, and from there on nothing but a person may make the filesystem anew. A partition
// without a mark is of an image from before there was "fresh": what is found on it is kept.
package datafs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// Label is the label of the filesystem.
const Label = "skerry-data"

var (
	freshMark = []byte("SKERRY FRESH 1\n")
	usedMark  = []byte("SKERRY DATA 1\n")
)

const (
	sector     = 512
	superAt    = 1024
	superSize  = 1024
	groupBytes = 32768 * 4096        // of a filesystem with blocks of 4 KiB: the first copy is where the second group begins
	smallCopy  = int64(8193 * 1024)  // and of one with blocks of 1 KiB
	copyRoom   = 4096                // what a copy is cleared with
	bsdAt      = 64                  // see Fresh
	bsdMagic   = uint32(0x8256_4557) // likewise
)

// Fresh is the partition's first sector as an image brings it. mke2fs clears that sector unless it holds a BSD disk label; with one's
// magic the mark outlives mke2fs, so that a power cut during the first boot, whenever it is, leaves a partition that is fresh.
func Fresh() []byte {
	b := make([]byte, sector)
	copy(b, freshMark)
	binary.LittleEndian.PutUint32(b[bsdAt:], bsdMagic)
	return b
}

// Device is a data partition.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// State is what a data partition holds.
type State int

// The states, and what init does about each.
const (
	New  State = iota // fresh, or never finished: make the filesystem, whatever else is found
	Made              // made, not yet used: check it, and make it anew if that fails
	Used              // in use: check and repair it, never make it anew
	Torn              // was in use or may have been, and its superblock is gone: repair from a copy, never make it anew
)

// Probe says what the data partition r of size bytes holds. A first boot that lost power leaves New; a superblock destroyed later
// leaves the mark "used", or the copies, and so Torn.
func Probe(r io.ReaderAt, size int64) (State, error) {
	head := make([]byte, 4096)
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return New, err
	}
	used, super := bytes.HasPrefix(head, usedMark), superblock(head[superAt:])
	switch {
	case bytes.HasPrefix(head, freshMark):
		return New, nil
	case super && used:
		return Used, nil
	case super:
		return Made, nil
	case used:
		return Torn, nil
	}
	for _, at := range []int64{groupBytes, smallCopy} {
		copied := make([]byte, superSize)
		if at+superSize > size {
			continue
		}
		if _, err := r.ReadAt(copied, at); err != nil && !errors.Is(err, io.EOF) {
			return New, err
		}
		if superblock(copied) {
			return Torn, nil
		}
	}
	return New, nil
}

// superblock says whether b is an ext4 superblock with our label: magic at 56, label at 120.
func superblock(b []byte) bool {
	return binary.LittleEndian.Uint16(b[56:]) == 0xef53 && bytes.HasPrefix(b[120:136], []byte(Label))
}

// Copies are the places, rising, where a filesystem on a partition of size bytes may have copies of its superblock: the groups 1 and
// the powers of 3, 5 and 7 (sparse_super).
func Copies(size int64) (places [][2]int64) {
	groups := []int64{1}
	for _, base := range []int64{3, 5, 7} {
		for g := base; g*groupBytes < size; g *= base {
			groups = append(groups, g)
		}
	}
	at := []int64{smallCopy}
	for _, g := range groups {
		at = append(at, g*groupBytes)
	}
	slices.Sort(at)
	for _, a := range at {
		if a < size {
			places = append(places, [2]int64{a, min(a+copyRoom, size)})
		}
	}
	return places
}

// Clear makes a partition of size bytes fresh: whatever it held is gone for good, and mke2fs may run. Power may fail anywhere.
func Clear(d Device, size int64) error {
	if err := mark(d, Fresh()); err != nil {
		return err
	}
	for _, p := range append([][2]int64{{sector, copyRoom}}, Copies(size)...) {
		if _, err := d.WriteAt(make([]byte, p[1]-p[0]), p[0]); err != nil {
			return err
		}
	}
	return d.Sync()
}

// MarkUsed says that the filesystem is in use from now on.
func MarkUsed(d Device) error {
	return mark(d, append(bytes.Clone(usedMark), make([]byte, sector-len(usedMark))...))
}

func mark(d Device, b []byte) error {
	if _, err := d.WriteAt(b, 0); err != nil {
		return err
	}
	return d.Sync()
}
