package netboot

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/release"
)

// BIOSLoader is a release's iPXE for machines with BIOS firmware.
const BIOSLoader = "netboot/undionly.kpxe"

// OverlayFile is a release's second initramfs for a board: the installer and the drivers of network cards.
func OverlayFile(board string) string { return "netboot/" + board + ".cpio.zst" }

// Release is a release that machines are started with.
type Release struct {
	*release.Release
	files fs.FS
	dir   string
}

// OpenRelease opens a release folder.
func OpenRelease(dir string, trusted []ed25519.PublicKey) (*Release, error) {
	files := os.DirFS(dir)
	r, err := release.Open(files, trusted)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Release{r, files, dir}, nil
}

// path is the release's folder in URLs: its version and architecture.
func (r *Release) path() string { return r.Manifest().Arch + "-" + r.Manifest().Version }

// boards lists those of the release that can be started over the network.
func (r *Release) boards() []string {
	return slices.DeleteFunc(r.Manifest().BoardIDs(), func(id string) bool {
		_, err := r.file(OverlayFile(id))
		return err != nil
	})
}

func (r *Release) file(name string) (release.File, error) {
	for _, f := range r.Manifest().AllFiles() {
		if f.Path == name {
			return f, nil
		}
	}
	return release.File{}, fmt.Errorf("release %s: lacks %s; build it again with this version of skerry", r.Manifest().Version, name)
}

// read gives a file of the release, checked.
func (r *Release) read(name string) ([]byte, error) {
	f, err := r.file(name)
	if err != nil {
		return nil, err
	}
	data, err := fs.ReadFile(r.files, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.dir, err)
	}
	if err := f.Check(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%s: %w; fetch the release again", r.dir, err)
	}
	return data, nil
}

// Kernel is what a board's machines load: the release's kernel with the installer in its initramfs and the pin of this
// server's CA on its command line.
type Kernel struct {
	Board   string
	Arch    string
	Release *Release
	Signed  bool
	EFI     []byte // for UEFI: one file

	// For firmware that is not UEFI, through iPXE.
	Linux, Initrd []byte
	Cmdline       string
}

// Compose makes the kernel image of a board. Without keys it is not signed, and firmware with Secure Boot refuses it.
func Compose(r *Release, board, pin string, db []uki.Signer) (*Kernel, error) {
	m := r.Manifest()
	b, ok := m.Boards[board]
	if !ok {
		return nil, fmt.Errorf("release %s: has nothing for board %s, only for %s", m.Version, board, strings.Join(m.BoardIDs(), ", "))
	}
	image, err := r.read(b.Boot.Path)
	if err != nil {
		return nil, err
	}
	overlay, err := r.read(OverlayFile(board))
	if err != nil {
		return nil, err
	}
	p, err := uki.Split(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", r.dir, b.Boot.Path, err)
	}
	p.Cmdline += " " + protocol.PinArg + "=" + pin
	p.Initrd = join(p.Initrd, overlay)
	k := &Kernel{Board: board, Arch: m.Arch, Release: r, Linux: p.Linux, Initrd: p.Initrd, Cmdline: p.Cmdline}
	if k.EFI, err = uki.Assemble(p); err != nil {
		return nil, err
	}
	if db != nil {
		if k.EFI, err = uki.Sign(k.EFI, db...); err != nil {
			return nil, err
		}
		k.Signed = true
	}
	return k, nil
}

// join puts one initramfs behind another, as the kernel reads them: each begins at a multiple of four.
func join(a, b []byte) []byte {
	return slices.Concat(a, make([]byte, -len(a)&3), b)
}

// kernelFile is where a signed kernel image is kept, so that the key that signs need not be where machines are served.
func kernelFile(dir string, r *Release, board, pin string) string {
	return filepath.Join(dir, "kernels", fmt.Sprintf("%s-%s-%.16s.efi", board, r.Manifest().Version, pin))
}

// Prepare makes the kernel images of a release for this state folder's CA, signs and keeps them.
func Prepare(dir string, r *Release, db []uki.Signer) ([]*Kernel, error) {
	ca, err := OpenAuthority(dir)
	if err != nil {
		return nil, err
	}
	list := r.boards()
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: release %s has no board that can be started over the network (no netboot/*.cpio.zst); build it again with this version of skerry", r.dir, r.Manifest().Version)
	}
	var out []*Kernel
	for _, board := range list {
		k, err := Compose(r, board, ca.Pin(), db)
		if err != nil {
			return nil, err
		}
		name := kernelFile(dir, r, board, ca.Pin())
		if k.Signed {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return nil, err
			}
			if err := atomicfile.Write(name, k.EFI, 0o644); err != nil {
				return nil, err
			}
		} else if kept, err := os.ReadFile(name); err == nil && sameButSigned(kept, k.EFI) {
			k.EFI, k.Signed = kept, true
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// sameButSigned says whether a signed image is of the same parts as an unsigned one.
func sameButSigned(signed, plain []byte) bool {
	p, err := uki.Split(signed)
	if err != nil {
		return false
	}
	again, err := uki.Assemble(p)
	return err == nil && bytes.Equal(again, plain)
}

// startedBy is the board whose kernel image starts a board's machines over the network: its own, or for one with a BIOS that of
// its base, whose installer then takes the board with the BIOS.
func startedBy(board string) string {
	if b, err := boards.Load(board); err == nil && b.Slots == boards.GRUB {
		return b.Base
	}
	return board
}

// defaultBoard is the one for a machine that nobody has named another for.
func defaultBoard(list []*Kernel, arch string) *Kernel {
	for _, k := range list {
		if k.Arch == arch {
			return k
		}
	}
	return nil
}

// loader gives iPXE for BIOS: the release's, else the one that Debian's package ipxe installs.
func loader(releases []*Release) ([]byte, error) {
	var errs []error
	for _, r := range releases {
		if r.Manifest().Arch == "amd64" {
			data, err := r.read(BIOSLoader)
			if err == nil {
				return data, nil
			}
			errs = append(errs, err)
		}
	}
	data, err := os.ReadFile("/usr/lib/ipxe/undionly.kpxe")
	if err == nil {
		return data, nil
	}
	return nil, errors.Join(append(errs, fmt.Errorf("%w; install the package ipxe", err))...)
}

// bytesFile is a file in memory.
type bytesFile struct{ *bytes.Reader }

func (bytesFile) Close() error { return nil }

var _ io.ReaderAt = bytesFile{}
