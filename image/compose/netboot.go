package compose

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/initramfs"
	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/machine"
)

// biosPackage has iPXE.
const biosPackage = "ipxe"

// netbootFiles makes what machines need that start over the network: for each board with UEFI a second initramfs, and iPXE.
func (b *build) netbootFiles(put func(name string, data []byte) error) error {
	for _, board := range b.Boards {
		if board.Slots != boards.UEFI || board.Platform != "" {
			continue // its firmware loads no EFI program, or its cloud no other disk
		}
		done := b.Log.Stage("network boot for " + board.ID)
		data, err := b.netbootOverlay(board)
		if err != nil {
			return fmt.Errorf("board %s: network boot: %w", board.ID, err)
		}
		if err := put("netboot/"+board.ID+".cpio.zst", data); err != nil {
			return err
		}
		done(megabytes(int64(len(data))))
	}
	if b.Arch != "amd64" {
		return nil
	}
	dir, _, err := b.packages.dir(biosPackage)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, "usr/lib/ipxe/undionly.kpxe"))
	if err != nil {
		return err
	}
	return put("netboot/undionly.kpxe", data)
}

// netbootOverlay is unpacked over the board's initramfs: the installer, the drivers of network cards, and an index that has
// the modules of both.
func (b *build) netbootOverlay(board *boards.Board) ([]byte, error) {
	k, x, err := b.kernel(kernelOf(board))
	if err != nil {
		return nil, err
	}
	node, err := x.Subset(board.Modules.Node.All()...)
	if err != nil {
		return nil, err
	}
	names := slices.Concat(board.Modules.Boot.All(), []string{"loop"})
	for name, m := range node.Modules {
		if networkCard(m.File) {
			names = append(names, name)
		}
	}
	slices.Sort(names[len(board.Modules.Boot.All()):])
	whole, err := x.Subset(names...)
	if err != nil {
		return nil, err
	}
	t := rootfs.New("bin", "sbin", "lib")
	if err := t.AddFile(strings.TrimPrefix(machine.InstallerFile, "/"), filepath.Join(b.programs, "netboot/install"), 0o755); err != nil {
		return nil, err
	}
	load := append(slices.Clone(board.Modules.Boot.Load), "loop") // a root in memory is a loop device
	if err := t.AddBytes(initramfs.ModulesLoad, []byte(strings.Join(load, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := b.addMissingModules(t, k, whole, board); err != nil {
		return nil, err
	}
	return initramfs.Build(t, b.Source.Time)
}

// networkCard tells drivers of cards, and of the chips behind them, from tunnels and the like, by where the kernel keeps them.
func networkCard(file string) bool {
	return strings.Contains(file, "drivers/net/")
}

// addMissingModules adds the index of all modules, and the files of those that the board's first initramfs has not.
func (b *build) addMissingModules(t *rootfs.Tree, k *kernel, whole *kmod.Index, board *boards.Board) error {
	_, x, err := b.kernel(kernelOf(board))
	if err != nil {
		return err
	}
	first, err := x.Subset(board.Modules.Boot.All()...)
	if err != nil {
		return err
	}
	below := path.Join(initramfs.ModulesDir, k.release)
	for name, m := range whole.Modules {
		if _, there := first.Modules[name]; there {
			continue
		}
		if err := t.AddFile(path.Join(below, m.File), filepath.Join(k.modules, m.File), 0o644); err != nil {
			return err
		}
	}
	var index bytes.Buffer
	if err := whole.Write(&index); err != nil {
		return err
	}
	return t.AddBytes(path.Join(below, kmod.IndexName), index.Bytes(), 0o644)
}
