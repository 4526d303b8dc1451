// Package grub makes what a PC's BIOS starts: GRUB's boot sector and its core image, out of the files of Debian's package
// grub-pc-bin, as grub-mkimage and grub-bios-setup do (util/mkimage.c and util/setup.c in GRUB's source). The same files give
// the same bytes, on any host.
package grub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/ulikunitz/xz/lzma"

	"github.com/skerry-os/skerry/image/disk"
)

// Folder is where the package keeps its files.
const Folder = "usr/lib/grub/i386-pc"

// Modules are what the core image brings: all that slot.GRUBScript asks for.
var Modules = []string{
	"biosdisk", "part_gpt", "fat", "normal", "loadenv", "loopback", "linux", "probe", "test", "echo", "sleep", "reboot", "serial", "terminal",
}

// Prefix is the folder of grub.cfg: the top of the first partition of the disk that the BIOS started from.
const Prefix = "(,gpt1)"

const sector = disk.Sector

var le = binary.LittleEndian

// Places in boot.img and diskboot.img (include/grub/i386/pc/boot.h).
const (
	kernelSector    = 0x5c        // 8 bytes: where the core image starts, in sectors
	bootDriveCheck  = 0x66        // 2 bytes: a jump that believes what the BIOS says of the drive
	blocklistSector = sector - 12 // 8 bytes: where the rest of the core image is, then 2 bytes: how many sectors it has
	blocklistLength = sector - 4
)

// Places in lzma_decompress.img (include/grub/offsets.h).
const (
	compressedSize   = 0x08
	uncompressedSize = 0x0c
)

// kernelBase is where the uncompressed kernel is linked to, and most the sectors that fit below what the BIOS keeps for itself.
const (
	kernelBase = 0x9000
	most       = (0x78000 - 0x8000) / sector
)

// MBR gives the code of the boot sector, disk.CodeSize bytes, for a core image at byte at of the disk.
func MBR(files fs.FS, at int64) ([]byte, error) {
	b, err := read(files, "boot.img", sector)
	if err != nil {
		return nil, err
	}
	le.PutUint64(b[kernelSector:], uint64(at/sector))
	// Some BIOSes pass a wrong number for the drive: what is no hard disk's is taken for the first one's.
	copy(b[bootDriveCheck:], []byte{0x90, 0x90})
	return b[:disk.CodeSize], nil
}

// Core gives the core image for byte at of the disk, whole sectors.
func Core(files fs.FS, at int64) ([]byte, error) {
	whole, err := payload(files)
	if err != nil {
		return nil, err
	}
	packed, err := compress(whole)
	if err != nil {
		return nil, err
	}
	start, err := read(files, "lzma_decompress.img", 0)
	if err != nil {
		return nil, err
	}
	if len(start) < uncompressedSize+4 {
		return nil, errors.New("lzma_decompress.img: is too short")
	}
	le.PutUint32(start[compressedSize:], uint32(len(packed))) //nolint:gosec // less than most sectors
	le.PutUint32(start[uncompressedSize:], uint32(len(whole)))
	rest := slices.Concat(start, packed)
	sectors := (len(rest) + sector - 1) / sector
	if sectors > most {
		return nil, fmt.Errorf("the core image takes %d sectors; %d fit into the memory that a BIOS leaves", sectors, most)
	}
	first, err := read(files, "diskboot.img", sector)
	if err != nil {
		return nil, err
	}
	le.PutUint64(first[blocklistSector:], uint64(at/sector+1))
	le.PutUint16(first[blocklistLength:], uint16(sectors)) //nolint:gosec // at most most
	return slices.Concat(first, rest, make([]byte, sectors*sector-len(rest))), nil
}

// read gives a file of the package; size 0 is any.
func read(files fs.FS, name string, size int) ([]byte, error) {
	b, err := fs.ReadFile(files, name)
	if err == nil && size > 0 && len(b) != size {
		err = fmt.Errorf("%s: is %d bytes, not %d", name, len(b), size)
	}
	return b, err
}

// The parts behind the kernel (include/grub/kernel.h): each has a header of its kind and its size with the header.
const (
	magic      = 0x676d696d
	kindELF    = 0
	kindPrefix = 3
)

// payload is what is unpacked in memory: the kernel, and behind it the modules and the prefix.
func payload(files fs.FS) ([]byte, error) {
	data, err := read(files, "kernel.img", 0)
	if err != nil {
		return nil, err
	}
	out, err := load(data)
	if err != nil {
		return nil, fmt.Errorf("kernel.img: %w", err)
	}
	names, err := resolve(files)
	if err != nil {
		return nil, err
	}
	var parts []byte
	add := func(kind uint32, data []byte) {
		size := (len(data) + 3) &^ 3
		parts = le.AppendUint32(le.AppendUint32(parts, kind), uint32(size+8)) //nolint:gosec // a module's size
		parts = append(append(parts, data...), make([]byte, size-len(data))...)
	}
	for _, name := range names {
		data, err := read(files, name+".mod", 0)
		if err != nil {
			return nil, err
		}
		add(kindELF, data)
	}
	add(kindPrefix, []byte(Prefix+"\x00"))
	const head = 12
	for _, n := range []int{magic, head, head + len(parts)} {
		out = le.AppendUint32(out, uint32(n)) //nolint:gosec // a few modules' size
	}
	return append(out, parts...), nil
}

// load lays out the kernel's sections as they are in memory, up to the end of its data.
func load(data []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if f.Machine != elf.EM_386 || f.Entry != kernelBase {
		return nil, fmt.Errorf("is for %v and starts at %#x, not for i386 at %#x", f.Machine, f.Entry, kernelBase)
	}
	var out []byte
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS {
			continue
		}
		content, err := s.Data()
		if err != nil {
			return nil, err
		}
		at := int64(s.Addr) - kernelBase //nolint:gosec // 32 bits
		if at < int64(len(out)) || at > math.MaxUint16 {
			return nil, fmt.Errorf("section %s lies at %#x, inside the one before or far from it", s.Name, s.Addr)
		}
		out = append(append(out, make([]byte, at-int64(len(out)))...), content...)
	}
	return out, nil
}

// resolve gives the modules with what they depend on, each behind that.
func resolve(files fs.FS) ([]string, error) {
	list, err := read(files, "moddep.lst", 0)
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(list)) {
		name, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			needs[name] = strings.Fields(deps)
		}
	}
	var out []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		deps, ok := needs[name]
		if !ok {
			return fmt.Errorf("moddep.lst: has no module %s", name)
		}
		for _, d := range slices.Backward(deps) { // as grub-mkimage does
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, name)
		return nil
	}
	for _, name := range Modules {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compress gives LZMA without a header, as the decompressor in front of it reads: it knows lc=3, lp=0, pb=2 and both sizes.
func compress(data []byte) ([]byte, error) {
	const header = 13
	var out bytes.Buffer
	w, err := lzma.WriterConfig{Properties: &lzma.Properties{LC: 3, LP: 0, PB: 2}, DictCap: 1 << 20, SizeInHeader: true, Size: int64(len(data))}.NewWriter(&out)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes()[header:], nil
}
