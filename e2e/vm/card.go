package vm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/fat"
)

// takeFromCard does what a firmware does that nobody emulates, the Raspberry Pi's: it reads config.txt on the first partition,
// and puts the program that is named there and the machine's device tree where QEMU loads them from.
func takeFromCard(o Options) error {
	f, err := os.Open(o.Image)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return err
	}
	table, err := disk.ReadFirst(f, disk.SizeOf(f, st.Size()))
	if err != nil {
		return fmt.Errorf("%s: %w", o.Image, err)
	}
	if len(table.Partitions) == 0 || table.Partitions[0].Name != boards.ESP {
		return fmt.Errorf("%s: its first partition is none that firmware reads", o.Image)
	}
	p := table.Partitions[0]
	v, err := fat.Read(io.NewSectionReader(f, p.Start, p.Size), p.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Image, err)
	}
	read := func(name string) ([]byte, error) {
		for _, f := range v.Files {
			if f.Path == name {
				return io.ReadAll(f.Open())
			}
		}
		return nil, fmt.Errorf("%s: has no %s on its first partition", o.Image, name)
	}
	config, err := read("config.txt")
	if err != nil {
		return err
	}
	kernel := ""
	for line := range strings.Lines(string(config)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "kernel="); ok {
			kernel = name
		}
	}
	for to, name := range map[string]string{kernelFile: kernel, treeFile: o.Board.Tree} {
		data, err := read(name)
		if err != nil {
			return err
		}
		if to == treeFile {
			data = without(data, o.Board.Without)
		}
		if err := os.WriteFile(filepath.Join(o.Dir, to), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// without renames what a device tree says is compatible with something, so that no driver takes it.
func without(tree []byte, names []string) []byte {
	for _, name := range names {
		tree = bytes.ReplaceAll(tree, []byte(name), []byte("x"+name[1:]))
	}
	return tree
}
