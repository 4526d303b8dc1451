package image

import (
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// maxBoot bounds an EFI program before it is read into memory.
const maxBoot = 512 << 20

// signatures checks what Secure Boot firmware will check once it has enrolled the disk's own keys: that each EFI program is
// signed by db. Programs whose digest is wrong were named already; a wrong one here is the release's fault.
func (i *inspection) signatures(p *Plan) {
	if !p.SecureBoot || slices.ContainsFunc(i.faults, inESP) {
		return
	}
	var db *Extent
	var programs []Extent
	for n, e := range p.Extents {
		switch {
		case strings.HasSuffix(e.What, "/db.auth"):
			db = &p.Extents[n]
		case strings.HasSuffix(strings.ToLower(e.What), ".efi"):
			programs = append(programs, e)
		}
	}
	certs, err := uki.Enrolled(i.read(*db))
	if err != nil {
		i.fault(db.Where, db.Offset, "%s: %v", db.What, err)
		return
	}
	for _, e := range programs {
		if err := uki.Verify(i.read(e), certs...); err != nil {
			i.fault(e.Where, e.Offset, "%s: %v", e.What, err)
		}
	}
}

// kernels checks that each slot's kernel is told the root it will find: a release that was put together from two builds
// would stop in stage 1.
func (i *inspection) kernels(p *Plan, root release.Root) {
	board := p.Board
	if b, err := boards.Load(board); err == nil && b.Slots == boards.GRUB { // its boot loader says the rest
		board = b.Base
	}
	want := []string{"skerry.board=" + board, "skerry.roothash=" + root.RootHash}
	if slices.ContainsFunc(i.faults, inESP) {
		return
	}
	for _, e := range p.Extents {
		if e.What != "/"+KernelPath(slot.A) && e.What != "/"+KernelPath(slot.B) {
			continue
		}
		sections, err := uki.Sections(i.read(e))
		if err != nil {
			i.fault(e.Where, e.Offset, "%s: %v", e.What, err)
			continue
		}
		args := strings.Fields(strings.TrimRight(string(sections[".cmdline"]), "\x00\n"))
		for _, w := range want {
			if !slices.Contains(args, w) {
				i.fault(e.Where, e.Offset, "%s: its command line lacks %s", e.What, w)
			}
		}
	}
}

func inESP(err error) bool {
	var f Fault
	return errors.As(err, &f) && f.Where == boards.ESP
}

// read gives an extent's bytes; one that cannot be read was named already.
func (i *inspection) read(e Extent) []byte {
	b, _ := io.ReadAll(io.NewSectionReader(i.r, e.Offset, min(e.Size, maxBoot)))
	return b
}
