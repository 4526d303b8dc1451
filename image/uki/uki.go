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
	out, err := AddSections(p.Stub,
		Section{".osrel", p.OSRelease},
		Section{".cmdline", []byte(p.Cmdline)},
		Section{".uname", []byte(p.Uname)},
		Section{".initrd", p.Initrd},
		Section{".linux", p.Linux}, // last: a kernel that unpacks itself in place grows beyond its section
	)
	if err != nil {
		return nil, fmt.Errorf("unified kernel image: the EFI stub %w", err)
	}
	return out, nil
}
