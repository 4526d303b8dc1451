package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Loader loads modules of one kernel into the running one, each once. Several goroutines may use it.
type Loader struct {
	index *Index
	dir   string

	mu    sync.Mutex // held while loading: modules need each other
	tried map[string]error
}

// NewLoader reads the index in the modules folder dir, such as /usr/lib/modules/6.12.95+deb12-amd64.
func NewLoader(dir string) (*Loader, error) {
	x, err := ReadFile(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Loader{index: x, dir: dir, tried: map[string]error{}}, nil
}

// Index is what the loader loads from.
func (l *Loader) Index() *Index { return l.index }

// Load loads what a name or alias resolves to, what it needs first. What is loaded or built in is no error. Parameters go
// to the module of that very name.
func (l *Loader) Load(name, params string) error {
	mods, err := l.index.Resolve(name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, m := range mods {
		p := ""
		if m.Name == Normal(name) {
			p = params
		}
		errs = append(errs, l.loadOne(m, p))
	}
	return errors.Join(errs...)
}

func (l *Loader) loadOne(m Module, params string) error {
	if err, ok := l.tried[m.Name]; ok {
		return err
	}
	err := insert(filepath.Join(l.dir, m.File), params)
	if err != nil {
		err = fmt.Errorf("module %s: %w", m.Name, err)
	}
	l.tried[m.Name] = err
	return err
}

// insert hands one module file to the kernel, as it is if the kernel can decompress it.
func insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), params, flags)
	if flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOEXEC)) {
		data, derr := decompress(file, f)
		if derr != nil {
			return derr
		}
		err = unix.InitModule(data, params)
	}
	if errors.Is(err, fs.ErrExist) { // loaded already
		return nil
	}
	return err
}
