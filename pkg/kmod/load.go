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
	index  *Index
	dir    string
	insert func(file, params string) error

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
	return &Loader{index: x, dir: dir, insert: insert, tried: map[string]*outcome{}}, nil
}

// Index is what the loader loads from.
func (l *Loader) Index() *Index { return l.index }

// Load loads what a name or alias resolves to, what it needs first. What is loaded or built in is no error. Parameters go
// to the module of that very name. A softdep that fails is no error: many are for processors that this machine may not have. Of
// modules that share an alias one is enough.
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
			if err := l.insert(filepath.Join(l.dir, m.File), params[m.Name]); err != nil {
				o.err = fmt.Errorf("module %s: %w", m.Name, err)
			}
		}()
	}
	for _, o := range ends {
		<-o.done
	}
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, l.failed(name, ends))
	}
	return errors.Join(errs...)
}

// failed says why none of the modules with this name or alias is loaded; nil if one is, or if there is none.
func (l *Loader) failed(name string, ends map[string]*outcome) error {
	var errs []error
	mods, _ := l.index.Lookup(name)
	for _, m := range mods {
		err := l.hard(m, ends, map[string]bool{})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hard is what went wrong with a module and all it depends on.
func (l *Loader) hard(name string, ends map[string]*outcome, seen map[string]bool) error {
	o := ends[name]
	if o == nil || seen[name] {
		return nil
	}
	seen[name] = true
	var errs []error
	for _, d := range l.index.Modules[name].Depends {
		errs = append(errs, l.hard(d, ends, seen))
	}
	return errors.Join(append(errs, o.err)...)
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
