// Package kmod finds and loads kernel modules without modules.dep or modprobe's folder of indexes, which Debian's kernel
// packages do not carry. Everything is in the modules themselves: each has a .modinfo section that names what it depends
// on, what it would like to have loaded before and after (softdeps), and the aliases it answers to.
//
// Build reads those sections once, when a release is made, and gives an Index. The image carries a Subset of it as JSON
// beside the modules; on the machine, Load takes the files in the order that Resolve gives.
//
// Softdeps matter as much as depends: they name aliases of modules that are asked for only at run time, such as the
// checksum that EROFS wants, without which a mount fails with "no such device".
package kmod

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// IndexName is the name that an Index has in the modules folder of a root.
const IndexName = "skerry.modules.json"

// Module is what one module file says of itself.
type Module struct {
	Name     string   `json:"-"`
	File     string   `json:"file"` // below the modules folder, such as kernel/fs/erofs/erofs.ko.xz
	Depends  []string `json:"depends,omitempty"`
	Pre      []string `json:"pre,omitempty"`  // softdeps to load before, names or aliases
	Post     []string `json:"post,omitempty"` // softdeps to load after
	Aliases  []string `json:"aliases,omitempty"`
	Firmware []string `json:"firmware,omitempty"` // files it may ask for, below the firmware folder
}

// Index knows the modules of one kernel. It is not changed after it was made.
type Index struct {
	// Modules by name. Names have no dashes: the kernel reads them as underscores.
	Modules map[string]Module `json:"modules"`
	// Builtin names what is part of the kernel itself, and the plain aliases of it.
	Builtin []string `json:"builtin"`

	once  sync.Once
	byBus map[string][]alias
}

// Normal gives the one spelling of a module's name or alias: dashes are underscores, but for those between brackets.
func Normal(name string) string {
	if !strings.Contains(name, "-") {
		return name
	}
	b := []byte(name)
	inside := false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// Build indexes the modules folder of one kernel, that is the content of lib/modules/<kernel>. It reads every module,
// which takes some seconds.
func Build(fsys fs.FS) (*Index, error) {
	x := &Index{Modules: map[string]Module{}}
	var files []string
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && moduleName(p) != "" {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	mods, err := readAll(fsys, files)
	if err != nil {
		return nil, err
	}
	for _, m := range mods {
		if other, dup := x.Modules[m.Name]; dup {
			return nil, fmt.Errorf("%s: is module %s, and so is %s", m.File, m.Name, other.File)
		}
		x.Modules[m.Name] = m
	}
	builtin, err := readBuiltin(fsys)
	if err != nil {
		return nil, err
	}
	x.Builtin = builtin
	return x, nil
}

// moduleName gives the module's name for a file, or "".
func moduleName(file string) string {
	base := path.Base(file)
	for _, ext := range []string{".ko", ".ko.xz", ".ko.gz"} {
		if n, ok := strings.CutSuffix(base, ext); ok {
			return Normal(n)
		}
	}
	return ""
}

func readAll(fsys fs.FS, files []string) ([]Module, error) {
	out := make([]Module, len(files))
	errs := make([]error, len(files))
	var next int
	var mu sync.Mutex
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := take(); i < len(files); i = take() {
				out[i], errs[i] = ReadModule(fsys, files[i])
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// readBuiltin reads modules.builtin and the plain aliases of modules.builtin.modinfo. Neither need exist.
func readBuiltin(fsys fs.FS) ([]string, error) {
	seen := map[string]bool{}
	list, err := fs.ReadFile(fsys, "modules.builtin")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		if n := moduleName(strings.TrimSpace(line)); n != "" {
			seen[n] = true
		}
	}
	info, err := fs.ReadFile(fsys, "modules.builtin.modinfo")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, alias, ok := strings.Cut(string(entry), "=")
		if ok && strings.HasSuffix(key, ".alias") && !strings.ContainsAny(alias, "*?[") {
			seen[Normal(alias)] = true
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// Read reads an Index that Write wrote.
func Read(r io.Reader) (*Index, error) {
	x := new(Index)
	if err := json.NewDecoder(bufio.NewReader(r)).Decode(x); err != nil {
		return nil, fmt.Errorf("index of kernel modules: %w", err)
	}
	for name, m := range x.Modules {
		m.Name = name
		x.Modules[name] = m
	}
	return x, nil
}

// ReadFile reads the index of the modules folder fsys.
func ReadFile(fsys fs.FS) (*Index, error) {
	f, err := fsys.Open(IndexName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f)
}

// Write writes the index as JSON, always the same bytes for the same index.
func (x *Index) Write(w io.Writer) error { return json.NewEncoder(w).Encode(x) }
