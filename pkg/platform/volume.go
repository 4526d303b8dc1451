package platform

import (
	"bytes"
	"encoding/binary"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Filesystems that a volume may have, as the kernel calls them.
const (
	ISO9660 = "iso9660"
	VFAT    = "vfat"
)

// Volume reads the label of the ISO 9660 or FAT filesystem that a device holds. kind is empty for anything else.
func Volume(r io.ReaderAt) (label, kind string) {
	b := make([]byte, 2048)
	if _, err := r.ReadAt(b, 32<<10); err == nil && string(b[:6]) == "\x01CD001" { // ECMA-119, 8.4
		return strings.TrimSpace(string(b[40:72])), ISO9660
	}
	if n, err := r.ReadAt(b[:512], 0); err != nil || n < 512 || b[510] != 0x55 || b[511] != 0xaa {
		return "", ""
	}
	le := binary.LittleEndian
	sector, perFAT16, rootEntries := int64(le.Uint16(b[11:])), int64(le.Uint16(b[22:])), int64(le.Uint16(b[17:]))
	reserved, fats := int64(le.Uint16(b[14:])), int64(b[16])
	switch {
	case bytes.Equal(b[82:87], []byte("FAT32")):
		return strings.TrimSpace(string(b[71:82])), VFAT
	case !bytes.Equal(b[54:57], []byte("FAT")) || sector < 512 || sector > 4096:
		return "", ""
	}
	// The label in the root folder counts more than the one in the boot sector.
	root := make([]byte, min(rootEntries, 512)*32)
	if _, err := r.ReadAt(root, (reserved+fats*perFAT16)*sector); err == nil {
		for ; len(root) >= 32 && root[0] != 0; root = root[32:] {
			// Windows also sets the archive bit; with all of the lower four it is a piece of a long name.
			if attr := root[11]; attr&0x3f != 0x0f && attr&0x18 == 0x08 && root[0] != 0xe5 {
				return strings.TrimSpace(string(root[:11])), VFAT
			}
		}
	}
	return strings.TrimSpace(string(b[43:54])), VFAT
}

// FindVolume looks through the block devices of sys for a volume with one of the labels, small and capital letters alike, and
// gives the device's name and its filesystem. open opens a device by name. Earlier labels win.
func FindVolume(sys fs.FS, open func(name string) (io.ReaderAt, func(), error), labels ...string) (device, kind string) {
	names, _ := fs.Glob(sys, "class/block/*")
	best := len(labels)
	for _, name := range names {
		name = name[len("class/block/"):]
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "dm-") || strings.HasPrefix(name, "ram") {
			continue
		}
		r, done, err := open(name)
		if err != nil {
			continue // a drive without a disk in it
		}
		label, k := Volume(r)
		done()
		if n := slices.Index(labels, strings.ToLower(label)); n >= 0 && n < best {
			best, device, kind = n, name, k
		}
	}
	return device, kind
}
