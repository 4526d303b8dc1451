package uki

import (
	"errors"
	"fmt"
	"strings"
)

// Parts are what goes into a unified kernel image.
type Parts struct {
	Stub      []byte // systemd's linux*.efi.stub
	OSRelease []byte // what boot loaders show
	Cmdline   string
	Uname     string // kernel release, as uname -r
	Tree      []byte // device tree; nil for the firmware's own
	Initrd    []byte
	Linux     []byte
}

// MaxCmdline is what the x86 and ARM kernels take.
const MaxCmdline = 2047

// Assemble makes the unsigned image.
func Assemble(p Parts) ([]byte, error) {
	if len(p.Cmdline) > MaxCmdline || strings.ContainsAny(p.Cmdline, "\n\x00") {
		return nil, fmt.Errorf("kernel command line: is %d bytes; it must be one line of at most %d", len(p.Cmdline), MaxCmdline)
	}
	if len(p.Linux) == 0 || len(p.Initrd) == 0 {
		return nil, errors.New("unified kernel image: needs a kernel and an initramfs")
	}
	sections := []Section{{".osrel", p.OSRelease}, {".cmdline", []byte(p.Cmdline)}, {".uname", []byte(p.Uname)}}
	if len(p.Tree) > 0 {
		sections = append(sections, Section{".dtb", p.Tree})
	}
	// The kernel is last: one that unpacks itself in place grows beyond its section.
	out, err := AddSections(p.Stub, append(sections, Section{".initrd", p.Initrd}, Section{".linux", p.Linux})...)
	if err != nil {
		return nil, fmt.Errorf("unified kernel image: the EFI stub %w", err)
	}
	return out, nil
}
