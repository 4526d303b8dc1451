package compose

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/grub"
	"github.com/skerry-os/skerry/image/initramfs"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
)

// bootParts are what every kind of kernel image is made of.
type bootParts struct {
	kernel  *kernel
	linux   []byte
	initrd  []byte
	cmdline string
}

// board makes what one board boots: the kernel image, and what its firmware finds beside it.
func (b *build) board(out *folder, board *boards.Board, rootHash string) (release.Board, error) {
	k, _, err := b.kernel(kernelOf(board))
	if err != nil {
		return release.Board{}, err
	}
	r := release.Board{Kernel: k.release}
	if board.Slots != boards.UEFI {
		r.Slots = board.Slots
	}
	starts := board
	if board.Slots == boards.GRUB {
		if starts, err = boards.Load(board.Base); err != nil {
			return release.Board{}, err
		}
	}
	if r.Boot, err = b.bootImage(out, starts, rootHash); err != nil {
		return release.Board{}, err
	}
	if r.Firmware, err = b.firmware(out, board, k); err != nil || board.Slots != boards.GRUB {
		return r, err
	}
	more, err := b.grub(out, board, r.Boot)
	r.Firmware = append(r.Firmware, more...)
	return r, err
}

// bootImage makes a board's kernel image, unless a board before shares it.
func (b *build) bootImage(out *folder, board *boards.Board, rootHash string) (release.File, error) {
	if f, ok := b.bootImages[board.ID]; ok {
		return f, nil
	}
	done := b.Log.Stage("boot image for " + board.ID)
	parts, err := b.bootParts(board, rootHash)
	if err != nil {
		return release.File{}, err
	}
	image, name := []byte(nil), board.ID+".efi"
	if board.Slots == boards.Pi {
		name = board.ID + ".img"
		image, err = b.ramdisk(board, parts)
	} else {
		image, err = b.unified(board, parts)
	}
	if err != nil {
		return release.File{}, err
	}
	f, err := out.write(path.Join("boot", name), image)
	if err != nil {
		return f, err
	}
	b.bootImages[board.ID] = f
	done(megabytes(f.Size))
	return f, nil
}

// grubPackage has GRUB for machines with a BIOS, and grubAt is where its core image starts on the disk: behind the table, and
// before what the installer leaves of itself in front of the first partition.
const (
	grubPackage = "grub-pc-bin"
	grubAt      = 32 * size.KiB
)

// grub makes the boot loader for a BIOS, and what it is told of the kernel image.
func (b *build) grub(out *folder, board *boards.Board, kernel release.File) ([]release.Firmware, error) {
	dir, _, err := b.packages.dir(grubPackage)
	if err != nil {
		return nil, err
	}
	from := os.DirFS(filepath.Join(dir, grub.Folder))
	code, err := grub.MBR(from, int64(grubAt))
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", grubPackage, err)
	}
	core, err := grub.Core(from, int64(grubAt))
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", grubPackage, err)
	}
	image, err := os.Open(filepath.Join(out.tmp, kernel.Path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }()
	files, err := slot.GRUBFiles(board.ID, image)
	if err != nil {
		return nil, err
	}
	var list []release.Firmware
	put := func(name string, data []byte, f release.Firmware) (err error) {
		f.File, err = out.write(path.Join("boot", board.ID, name), data)
		list = append(list, f)
		return err
	}
	errs := []error{put("boot.img", code, release.Firmware{}), put("core.img", core, release.Firmware{At: int64(grubAt)})}
	for name, data := range files {
		errs = append(errs, put(path.Base(name), data, release.Firmware{To: name}))
	}
	slices.SortFunc(list, func(x, y release.Firmware) int { return cmp.Compare(x.Path, y.Path) })
	return list, errors.Join(errs...)
}

func (b *build) bootParts(board *boards.Board, rootHash string) (*bootParts, error) {
	k, x, err := b.kernel(kernelOf(board))
	if err != nil {
		return nil, err
	}
	sub, err := x.Subset(board.Modules.Boot.All()...)
	if err != nil {
		return nil, err
	}
	pub, err := keys.MarshalPublic(b.Keys.ReleasePublic())
	if err != nil {
		return nil, err
	}
	trust, err := b.trust(board.Slots == boards.UEFI)
	if err != nil {
		return nil, err
	}
	first, err := initramfs.Content{
		Init: filepath.Join(b.programs, "usr/sbin/init"), Kernel: k.release, Modules: sub, ModuleDir: k.modules,
		Load: board.Modules.Boot.Load, PublicKey: pub, Root: b.Keys.Root, Trust: trust, Time: b.Source.Time,
	}.Tree()
	if err != nil {
		return nil, err
	}
	p := &bootParts{kernel: k}
	if p.initrd, err = initramfs.Build(first, b.Source.Time); err != nil {
		return nil, err
	}
	if p.linux, err = os.ReadFile(k.image); err != nil {
		return nil, err
	}
	args := append(slices.Clone(board.Kernel.Args), "panic=5")
	args = append(args, b.KernelArgs...)
	args = append(args, "skerry.board="+board.ID, "skerry.roothash="+rootHash)
	if board.Platform != "" {
		args = append(args, "skerry.platform="+board.Platform)
	}
	if board.Slots != boards.UEFI {
		args = append(args, "skerry.slots="+board.Slots)
	}
	p.cmdline = strings.Join(args, " ")
	return p, nil
}

// unified makes a unified kernel image: one EFI program with a command line that names the root's hash, signed.
func (b *build) unified(board *boards.Board, p *bootParts) ([]byte, error) {
	stub, err := b.efiFile("linux", ".efi.stub")
	if err != nil {
		return nil, err
	}
	u := uki.Parts{Stub: stub, OSRelease: osRelease(b.Source.Version, b.Debug), Cmdline: p.cmdline, Uname: p.kernel.release, Initrd: p.initrd, Linux: p.linux}
	if board.Kernel.DeviceTree != "" {
		if u.Tree, err = p.kernel.tree(board.Kernel.DeviceTree); err != nil {
			return nil, err
		}
	}
	image, err := uki.Assemble(u)
	if err != nil {
		return nil, err
	}
	return uki.Sign(image, b.Keys.BootSigners()...)
}

// ramdisk makes what the firmware of newer Raspberry Pis takes for a boot partition when config.txt says boot_ramdisk=1: a
// FAT volume in a file, so that a slot changes by the name of one file. The firmware reads at most 96 MiB:
// https://www.raspberrypi.com/documentation/computers/config_txt.html#boot_ramdisk
//
// kernel_watchdog_timeout makes the firmware arm the watchdog before it starts the kernel, which has it 15 seconds later, the most
// but one that the hardware counts: a kernel that hangs before its driver runs is then a try of the slot. Firmware of before July 2025
// takes no notice.
// https://www.raspberrypi.com/documentation/computers/config_txt.html#kernel_watchdog_timeout
func (b *build) ramdisk(board *boards.Board, p *bootParts) ([]byte, error) {
	const most = 96 * size.MiB
	linux, err := gzipped(p.linux)
	if err != nil {
		return nil, err
	}
	content := []struct {
		name string
		data []byte
	}{
		{"config.txt", []byte("# Skerry: what the firmware starts.\narm_64bit=1\nkernel=kernel8.img\ninitramfs initramfs followkernel\nauto_initramfs=0\n" +
			"enable_uart=1\ndisable_splash=1\nupstream_kernel=1\nkernel_watchdog_timeout=15\n")},
		{"cmdline.txt", []byte(p.cmdline + "\n")}, {"kernel8.img", linux}, {"initramfs", p.initrd},
	}
	for _, t := range board.Boot.DeviceTrees {
		tree, err := p.kernel.tree(t.File)
		if err != nil {
			return nil, err
		}
		content = append(content, struct {
			name string
			data []byte
		}{t.Name(), tree})
	}
	total := int64(0)
	files := make([]fat.File, len(content))
	for i, c := range content {
		files[i] = fat.File{Path: c.name, Size: int64(len(c.data))}
		total += files[i].Size
	}
	mib := int64(size.MiB)
	volume := max(36*mib, (total+2*mib+mib-1)/mib*mib)
	if volume > int64(most) {
		return nil, fmt.Errorf("boot.img: takes %v; the firmware reads at most %v", size.Bytes(volume), most)
	}
	serial := crc32.ChecksumIEEE([]byte(p.cmdline))
	when := b.Source.Time
	if least := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC); when.Before(least) { // FAT's first day
		when = least
	}
	l, err := fat.Lay(fat.Params{Size: volume, Label: "SKERRYBOOT", Serial: serial, Time: when}, files)
	if err != nil {
		return nil, err
	}
	image := make([]byte, volume)
	for _, c := range l.Meta {
		copy(image[c.Offset:], c.Data)
	}
	for i, f := range l.Files {
		copy(image[f.Offset:], content[i].data)
	}
	return image, nil
}

func gzipped(data []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	return out.Bytes(), z.Close()
}

// firmware copies what lies beside the kernels.
func (b *build) firmware(out *folder, board *boards.Board, k *kernel) ([]release.Firmware, error) {
	var list []release.Firmware
	put := func(name string, data []byte, f release.Firmware) error {
		var err error
		f.File, err = out.write(path.Join("boot", board.ID, name), data)
		list = append(list, f)
		return err
	}
	for _, set := range board.Boot.Files {
		dir, _, err := b.packages.dir(set.Package)
		if err != nil {
			return nil, err
		}
		for _, name := range set.Files {
			data, err := os.ReadFile(filepath.Join(dir, set.Folder, name))
			if err != nil {
				return nil, fmt.Errorf("package %s: %w", set.Package, err)
			}
			if err := put(path.Base(name), data, release.Firmware{To: path.Base(name)}); err != nil {
				return nil, err
			}
		}
	}
	if board.Slots != boards.Pi { // there they are in the kernel image
		for _, t := range board.Boot.DeviceTrees {
			tree, err := k.tree(t.File)
			if err != nil {
				return nil, err
			}
			if err := put(t.Name(), tree, release.Firmware{To: t.Name()}); err != nil {
				return nil, err
			}
		}
	}
	for _, t := range board.Boot.Texts {
		if err := put(t.Name, []byte(t.Text), release.Firmware{To: t.Name}); err != nil {
			return nil, err
		}
	}
	if board.Slots == boards.UBoot {
		if err := put("boot.scr", bootScript(slot.UBootScript, b.Source.Time), release.Firmware{To: "boot.scr"}); err != nil {
			return nil, err
		}
	}
	for _, r := range board.Boot.Raw {
		dir, _, err := b.packages.dir(r.Package)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(filepath.Join(dir, r.File))
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", r.Package, err)
		}
		if err := put(path.Base(r.File), data, release.Firmware{At: int64(r.At)}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(x, y release.Firmware) int { return cmp.Compare(x.Path, y.Path) })
	return list, nil
}

// bootPackages names the packages that a board's boot files come from.
func bootPackages(board *boards.Board) []string {
	var out []string
	for _, f := range board.Boot.Files {
		out = append(out, f.Package)
	}
	for _, r := range board.Boot.Raw {
		out = append(out, r.Package)
	}
	if board.Slots == boards.GRUB {
		out = append(out, grubPackage)
	}
	return out
}

// bootScript puts a script for U-Boot into the wrapping it wants: a header with checksums, and a table of one length. Numbers
// are big-endian: https://docs.u-boot.org/en/latest/usage/cmd/source.html, include/image.h.
func bootScript(text string, when time.Time) []byte {
	be := binary.BigEndian
	body := be.AppendUint32(nil, uint32(len(text)))
	body = be.AppendUint32(body, 0)
	body = append(body, text...)
	h := make([]byte, 64)
	be.PutUint32(h, 0x27051956)
	be.PutUint32(h[8:], uint32(when.Unix()))
	be.PutUint32(h[12:], uint32(len(body)))
	be.PutUint32(h[24:], crc32.ChecksumIEEE(body))
	copy(h[28:], []byte{5, 2, 6, 0}) // Linux, ARM, script, not compressed
	copy(h[32:], "Skerry")
	be.PutUint32(h[4:], crc32.ChecksumIEEE(h))
	return append(h, body...)
}
