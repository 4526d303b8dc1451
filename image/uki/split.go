package uki

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// added are the sections that Assemble adds to a stub.
var added = []string{".osrel", ".cmdline", ".uname", ".initrd", ".linux"}

// Split takes a unified kernel image apart again, so that one with another command line or initramfs can be made of it. A
// signature goes: it would be wrong for anything else.
func Split(file []byte) (Parts, error) {
	p, err := parse(file)
	if err != nil {
		return Parts{}, err
	}
	content := map[string][]byte{}
	keep, cut, address := 0, len(file), uint32(0)
	for i, s := range p.sections {
		if !slices.Contains(added, s.Name) {
			if i != keep {
				return Parts{}, fmt.Errorf("section %q stands between those of a unified kernel image", s.Name)
			}
			keep++
			address = max(address, s.VirtualAddress+s.VirtualSize)
			continue
		}
		content[s.Name] = p.content(s)
		cut = min(cut, int(s.RawOffset))
	}
	for _, name := range added {
		if len(content[name]) == 0 {
			return Parts{}, fmt.Errorf("is no unified kernel image: it has no section %s", name)
		}
	}
	headers := int(p.sizeOfHeaders())
	if cut < headers || address > math.MaxInt32 {
		return Parts{}, errors.New("has sections inside its headers")
	}
	stub := slices.Clone(file[:cut])
	clear(stub[p.table+keep*sectionSize : p.table+len(p.sections)*sectionSize])
	clear(stub[p.dirs+8*securityDirectory : p.dirs+8*securityDirectory+8])
	le.PutUint16(stub[p.coff+2:], uint16(keep))
	le.PutUint32(stub[p.opt+optSizeOfImage:], up(address, le.Uint32(stub[p.opt+optSectionAlign:])))
	return Parts{
		Stub: stub, OSRelease: content[".osrel"], Cmdline: string(content[".cmdline"]), Uname: string(content[".uname"]),
		Initrd: content[".initrd"], Linux: content[".linux"],
	}, nil
}
