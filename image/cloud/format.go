// Package cloud stores a disk in the formats that virtual machines and clouds take.
//
// Every format is written in one pass, by rising offsets, keeps holes out where it can, and gives the same bytes for the same
// disk. What it takes to publish such a file is in the packages below this one, one for each cloud.
package cloud

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Format is how a disk is stored in a file.
type Format string

// The formats. Raw is what is written to a medium.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"  // QEMU, Proxmox, OpenStack
	VHD   Format = "vhd"    // Azure and Hyper-V: fixed size, a footer behind the disk
	VMDK  Format = "vmdk"   // VMware: streamOptimized, which is compressed
	TarGz Format = "tar.gz" // Google: disk.raw in a tar file, compressed
)

// Formats lists them for flags and messages.
var Formats = []Format{Raw, QCOW2, VHD, VMDK, TarGz}

// Known says whether this is a format, and which there are if it is not.
func (f Format) Known() error {
	if slices.Contains(Formats, f) {
		return nil
	}
	names := make([]string, len(Formats))
	for i, g := range Formats {
		names[i] = string(g)
	}
	return fmt.Errorf("image format %q: is not one of %s", f, strings.Join(names, ", "))
}

// File is what a disk is stored in: empty, and reading as zeros where nothing was written.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Disk is a disk that is being stored. It is written by rising offsets; what is left out reads as zeros. Close writes what
// the format has at its end; the file stays open.
type Disk interface {
	io.WriterAt
	Close() error
}

// Create starts to store a disk of size bytes in f. id names the disk where a format wants that.
func Create(f File, format Format, size int64, id [16]byte) (Disk, error) {
	if err := format.Known(); err != nil {
		return nil, err
	}
	if size <= 0 || size%(1<<20) != 0 || size > maxDisk {
		return nil, fmt.Errorf("%s: a disk of %d bytes is not whole MiB, or more than 64 TiB", format, size)
	}
	switch format {
	case QCOW2:
		return newQCOW2(f, size)
	case VHD:
		return newVHD(f, size, id)
	case VMDK:
		return newVMDK(f, size, id)
	case TarGz:
		return newTarGz(f, size)
	}
	return rawDisk{f}, f.Truncate(size)
}

type rawDisk struct{ File }

func (rawDisk) Close() error { return nil }

// Open gives the disk in a file that is not raw, as its beginning says. A raw one gives nil.
func Open(r io.ReaderAt) (interface {
	io.ReaderAt
	Size() int64
}, error) {
	head := make([]byte, 4)
	_, _ = r.ReadAt(head, 0) // what is too short for any format is raw; whoever reads on says so
	switch {
	case string(head) == magic:
		return openQCOW2(r)
	case string(head) == vmdkMagic:
		return openVMDK(r)
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return nil, errors.New("is compressed; unpack it and name disk.raw: tar -xzf FILE")
	}
	return nil, nil
}

// rising is where a disk's next byte goes in formats that are streams.
type rising struct {
	size int64
	next int64
}

// check takes a write of n bytes at off, and gives how many zeros lie before it.
func (r *rising) check(format Format, n int, off int64) (gap int64, err error) {
	if off < r.next {
		return 0, fmt.Errorf("%s: a write at %d after one that ended at %d; it is written from the first byte to the last", format, off, r.next)
	}
	if int64(n) > r.size-off {
		return 0, fmt.Errorf("%s: a write of %d bytes at %d, outside the disk of %d", format, n, off, r.size)
	}
	gap = off - r.next
	r.next = off + int64(n)
	return gap, nil
}
