// Package uki makes unified kernel images: the systemd EFI stub with kernel, initramfs and command line as sections of one PE
// file, which UEFI firmware starts and, where Secure Boot is on, checks as a whole. It also signs PE files (Authenticode) and
// makes the signed variables that bring the keys into a firmware. All of it is plain Go: no signing tool, no EFI library.
package uki

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Offsets of the optional header's fields; the first three are the same in PE32 and PE32+.
const (
	optSectionAlign  = 32
	optFileAlign     = 36
	optSizeOfImage   = 56
	optSizeOfHeaders = 60
	optCheckSum      = 64

	coffSize    = 20
	sectionSize = 40

	securityDirectory = 4
)

// image is a PE file taken apart just far enough to add sections and a signature.
type image struct {
	data     []byte
	coff     int // offset of the COFF header
	opt      int // offset of the optional header
	dirs     int // offset of the data directories
	table    int // offset of the section table
	sections []section
}

type section struct {
	Name                        string
	VirtualSize, VirtualAddress uint32
	RawSize, RawOffset          uint32
}

var le = binary.LittleEndian

// parse reads the headers of a PE file and refuses what does not lie inside it.
func parse(data []byte) (*image, error) {
	if len(data) > math.MaxInt32 {
		return nil, fmt.Errorf("is %d bytes; a PE file here is below 2 GiB", len(data))
	}
	if len(data) < 0x40 || string(data[:2]) != "MZ" {
		return nil, errors.New("is not a PE file")
	}
	p := &image{data: data}
	pe := int64(le.Uint32(data[0x3c:]))
	if pe+4+coffSize > int64(len(data)) || string(data[pe:pe+4]) != "PE\x00\x00" {
		return nil, errors.New("has no PE header")
	}
	p.coff = int(pe) + 4
	p.opt = p.coff + coffSize
	optLen := int(le.Uint16(data[p.coff+16:]))
	p.table = p.opt + optLen
	n := int(le.Uint16(data[p.coff+2:]))
	if optLen < 2 || p.table+n*sectionSize > len(data) {
		return nil, errors.New("ends inside its headers")
	}
	rva := 92 // offset of NumberOfRvaAndSizes
	switch magic := le.Uint16(data[p.opt:]); magic {
	case 0x10b:
	case 0x20b:
		rva = 108
	default:
		return nil, fmt.Errorf("has an optional header of kind %#x", magic)
	}
	if optLen < rva+4+8*(securityDirectory+1) || le.Uint32(data[p.opt+rva:]) <= securityDirectory {
		return nil, errors.New("has no place for a signature")
	}
	p.dirs = p.opt + rva + 4
	if h := p.sizeOfHeaders(); int64(h) > int64(len(data)) || int(h) < p.table+n*sectionSize {
		return nil, fmt.Errorf("says that its headers are %d bytes", h)
	}
	for a := range 2 {
		if v := le.Uint32(data[p.opt+optSectionAlign+4*a:]); v == 0 || v&(v-1) != 0 || v > 1<<20 {
			return nil, fmt.Errorf("has an alignment of %d", v)
		}
	}
	for i := range n {
		h := data[p.table+i*sectionSize:]
		s := section{
			Name: strings.TrimRight(string(h[:8]), "\x00"), VirtualSize: le.Uint32(h[8:]), VirtualAddress: le.Uint32(h[12:]),
			RawSize: le.Uint32(h[16:]), RawOffset: le.Uint32(h[20:]),
		}
		if int64(s.RawOffset)+int64(s.RawSize) > int64(len(data)) || int64(s.VirtualAddress)+int64(s.VirtualSize) > math.MaxInt32 {
			return nil, fmt.Errorf("section %q lies outside the file", s.Name)
		}
		p.sections = append(p.sections, s)
	}
	return p, nil
}

func (p *image) sizeOfHeaders() uint32 { return le.Uint32(p.data[p.opt+optSizeOfHeaders:]) }

// security gives offset and size of the certificate table; both are 0 in an unsigned file.
func (p *image) security() (offset, size uint32) {
	d := p.data[p.dirs+8*securityDirectory:]
	return le.Uint32(d), le.Uint32(d[4:])
}

// content is the bytes a section carries, without the padding of the file.
func (p *image) content(s section) []byte {
	return p.data[s.RawOffset : s.RawOffset+min(s.RawSize, s.VirtualSize)]
}

// digest is the Authenticode hash: the file without its checksum, its certificate directory entry and its certificates.
func (p *image) digest() ([]byte, error) {
	h := sha256.New()
	sum := p.opt + optCheckSum
	dir := p.dirs + 8*securityDirectory
	headers := int(p.sizeOfHeaders())
	h.Write(p.data[:sum])
	h.Write(p.data[sum+4 : dir])
	h.Write(p.data[dir+8 : headers])
	hashed := uint64(headers)
	order := slices.SortedFunc(slices.Values(p.sections), func(a, b section) int { return cmp.Compare(a.RawOffset, b.RawOffset) })
	for _, s := range order {
		if s.RawSize > 0 {
			h.Write(p.data[s.RawOffset : s.RawOffset+s.RawSize])
			hashed += uint64(s.RawSize)
		}
	}
	_, certs := p.security()
	end := uint64(len(p.data))
	if hashed+uint64(certs) > end {
		return nil, errors.New("has overlapping sections")
	}
	h.Write(p.data[hashed : end-uint64(certs)])
	return h.Sum(nil), nil
}

// Section is one section to add.
type Section struct {
	Name string // at most 8 bytes
	Data []byte
}

func up[T int | uint32](n, align T) T { return (n + align - 1) &^ (align - 1) }

// AddSections gives a copy of a PE file with more sections, behind those it has.
func AddSections(file []byte, add ...Section) ([]byte, error) {
	p, err := parse(file)
	if err != nil {
		return nil, err
	}
	if _, size := p.security(); size != 0 {
		return nil, errors.New("is signed already; sections come before the signature")
	}
	align, fileAlign := le.Uint32(file[p.opt+optSectionAlign:]), le.Uint32(file[p.opt+optFileAlign:])
	first, address := len(file), uint32(0)
	for _, s := range p.sections {
		if s.RawSize > 0 {
			first = min(first, int(s.RawOffset))
		}
		address = max(address, s.VirtualAddress+s.VirtualSize)
	}
	n := len(p.sections)
	if room := (min(first, int(p.sizeOfHeaders())) - p.table) / sectionSize; n+len(add) > room {
		return nil, fmt.Errorf("has room for %d sections; %d are wanted", room, n+len(add))
	}
	total := up(len(file), int(fileAlign))
	for _, s := range add {
		total += up(len(s.Data), int(fileAlign))
	}
	if total > math.MaxInt32/2 {
		return nil, fmt.Errorf("would become %d bytes", total)
	}
	out := make([]byte, up(len(file), int(fileAlign)), total)
	copy(out, file)
	for i, s := range add {
		if s.Name == "" || len(s.Name) > 8 || len(s.Data) == 0 {
			return nil, fmt.Errorf("section %q of %d bytes: needs a name of 1 to 8 letters and content", s.Name, len(s.Data))
		}
		address = up(address, align)
		h := make([]byte, sectionSize)
		copy(h, s.Name)
		le.PutUint32(h[8:], uint32(len(s.Data)))
		le.PutUint32(h[12:], address)
		le.PutUint32(h[16:], up(uint32(len(s.Data)), fileAlign))
		le.PutUint32(h[20:], uint32(len(out)))
		le.PutUint32(h[36:], 0x40000040) // initialized data, readable
		copy(out[p.table+(n+i)*sectionSize:], h)
		out = append(out, s.Data...)
		out = append(out, make([]byte, up(len(out), int(fileAlign))-len(out))...)
		address += uint32(len(s.Data))
	}
	le.PutUint16(out[p.coff+2:], uint16(n+len(add)))
	le.PutUint32(out[p.opt+optSizeOfImage:], up(address, align))
	le.PutUint32(out[p.opt+optCheckSum:], 0) // nothing checks it, and it would be wrong now
	return out, nil
}

// Sections reads the sections of a PE file by name: how an image is inspected.
func Sections(file []byte) (map[string][]byte, error) {
	p, err := parse(file)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, s := range p.sections {
		out[s.Name] = p.content(s)
	}
	return out, nil
}
