package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
)

// Loader loads modules of one kernel into the running one, each once. Several goroutines may use it.
type Loader struct {
	index *Index
	dir   string

	mu    sync.Mutex
	tried map[string]*outcome
}

// outcome is how loading one module went, once done is closed.
type outcome struct {
	done chan struct{}
	err  error
}

// NewLoader reads the index in the modules folder dir, such as /usr/lib/modules/6.12.95+deb12-amd64.
func NewLoader(dir string) (*Loader, error) {
	x, err := ReadFile(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Loader{index: x, dir: dir, tried: map[string]*outcome{}}, nil
}

// Index is what the loader loads from.
func (l *Loader) Index() *Index { return l.index }

// Load loads what a name or alias resolves to, what it needs first. What is loaded or built in is no error. Parameters go
// to the module of that very name.
func (l *Loader) Load(name, params string) error {
	return l.load([]string{name}, map[string]string{Normal(name): params})
}

// LoadAll loads what the names resolve to, those that do not need each other at the same time. A name that is unknown or a
// module that fails does not keep the others from being loaded.
func (l *Loader) LoadAll(names []string) error { return l.load(names, nil) }

func (l *Loader) load(names []string, params map[string]string) error {
	mods, err := l.index.Resolve(names...)
	ends := map[string]*outcome{}
	room := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, m := range mods {
		l.mu.Lock()
		o, tried := l.tried[m.Name]
		if !tried {
			o = &outcome{done: make(chan struct{})}
			l.tried[m.Name] = o
		}
		l.mu.Unlock()
		ends[m.Name] = o
		if tried {
			continue
		}
		// Resolve gave what m needs before m; what of it is under way is waited for.
		var first []*outcome
		for _, n := range l.needs(m) {
			if before := ends[n]; before != nil {
				first = append(first, before)
			}
		}
		go func() {
			defer close(o.done)
			for _, before := range first {
				<-before.done
			}
			room <- struct{}{}
			defer func() { <-room }()
			if err := insert(filepath.Join(l.dir, m.File), params[m.Name]); err != nil {
				o.err = fmt.Errorf("module %s: %w", m.Name, err)
			}
		}()
	}
	errs := []error{err}
	for _, m := range mods {
		<-ends[m.Name].done
		errs = append(errs, ends[m.Name].err)
	}
	return errors.Join(errs...)
}

// needs names the modules that must be loaded before m: those it depends on, and its softdeps.
func (l *Loader) needs(m Module) []string {
	out := slices.Clone(m.Depends)
	for _, n := range m.Pre {
		mods, _ := l.index.Lookup(n)
		out = append(out, mods...)
	}
	return out
}
