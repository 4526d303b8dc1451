package compose

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/rootfs"
)

// libraries finds the shared libraries that programs ask for by name in their ELF headers, in the unpacked packages.
type libraries struct {
	tree    *rootfs.Tree
	triplet string
	dirs    map[string]string // unpacked folder -> package name
	used    map[string]bool   // package names that something was taken from
	done    map[string]bool   // files of the tree that were looked at
}

func triplet(arch string) string {
	return map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf"}[arch]
}

// resolve adds everything that the program at host needs: its loader and its libraries, and what those need.
func (l *libraries) resolve(host string) error {
	if l.done[host] {
		return nil
	}
	l.done[host] = true
	f, err := elf.Open(host)
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	defer func() { _ = f.Close() }()
	needs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	if interp := interpreter(f); interp != "" {
		if found, err := l.add(interp); err != nil || !found {
			return fmt.Errorf("%s: loader %s: %w", filepath.Base(host), interp, cmp.Or(err, errNotPackaged))
		}
	}
	for _, so := range needs {
		if err := l.library(so); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(host), err)
		}
	}
	return nil
}

func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err == nil {
				return strings.TrimRight(string(b), "\x00")
			}
		}
	}
	return ""
}

var errNotPackaged = errors.New("is in no package of the list; add the one that has it to image/compose/debian.yaml and run `make lock`")

func (l *libraries) library(so string) error {
	for _, dir := range []string{"usr/lib/" + l.triplet, "lib/" + l.triplet, "usr/lib", "lib"} {
		if found, err := l.add(path.Join(dir, so)); found || err != nil {
			return err
		}
	}
	return fmt.Errorf("library %s: %w", so, errNotPackaged)
}

// add puts a file of some package into the tree, links followed one by one, and what it needs. It says whether any package
// has the file.
func (l *libraries) add(name string) (found bool, err error) {
	name = strings.TrimPrefix(name, "/")
	for _, dir := range slices.Sorted(maps.Keys(l.dirs)) {
		host := filepath.Join(dir, name)
		st, err := os.Lstat(host)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return true, err
		}
		l.used[l.dirs[dir]] = true
		if st.Mode().Type() == fs.ModeSymlink {
			target, err := os.Readlink(host)
			if err != nil {
				return true, err
			}
			if err := l.tree.AddLink(name, target); err != nil {
				return true, err
			}
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(name), target)
			}
			return l.add(target)
		}
		if err := l.tree.AddHost(name, host); err != nil {
			return true, err
		}
		return true, l.resolve(host)
	}
	return false, nil
}
