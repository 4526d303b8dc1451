package addons

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// unit is what is switched on and off and told about as one: a component of the release, a folder in the manifests folder, or
// a single file there.
type unit struct {
	name   string // component, folder, or file without its ending
	files  []string
	render func(string, []byte) ([]byte, error) // nil: as it is
	frozen bool                                 // a .skip file says: neither apply nor remove
}

var errNoComponents = errors.New("no components come with this program")

const skipSuffix = ".skip"

// componentUnits lists the release's components: a folder of manifests each. errNoComponents is not the same as none: what a
// release brought must not go because a folder is not there.
func componentUnits(cfg Config) ([]unit, error) {
	entries, err := os.ReadDir(cfg.Components)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoComponents
	}
	if err != nil {
		return nil, err
	}
	skip, err := skipped(cfg.Manifests)
	if err != nil {
		return nil, err
	}
	var units []unit
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		files, err := manifestFiles(filepath.Join(cfg.Components, e.Name()))
		if err != nil {
			return nil, err
		}
		units = append(units, unit{name: e.Name(), files: files, render: render(cfg), frozen: skip[e.Name()]})
	}
	return units, nil
}

// manifestUnits lists what a person has put into the manifests folder. X.yaml.skip beside X.yaml, or beside a folder X, leaves X
// alone.
func manifestUnits(dir string) ([]unit, error) {
	entries, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	skip, err := skipped(dir)
	if err != nil {
		return nil, err
	}
	byName := map[string]*unit{}
	add := func(name string, files ...string) {
		u := byName[name]
		if u == nil {
			u = &unit{name: name, frozen: skip[name]}
			byName[name] = u
		}
		u.files = append(u.files, files...)
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		info, err := os.Stat(p) // follows links
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the folder was read, or a link to nowhere
		}
		switch {
		case err != nil:
			return nil, err
		case strings.HasPrefix(e.Name(), "."):
		case info.IsDir():
			files, err := manifestFiles(p)
			if err != nil {
				return nil, err
			}
			add(e.Name(), files...)
		case isManifest(e.Name()):
			add(stem(e.Name()), p)
		}
	}
	var units []unit
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		units = append(units, *byName[name])
	}
	return units, nil
}

// skipped reads which units have a .skip file.
func skipped(dir string) (map[string]bool, error) {
	entries, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	skip := map[string]bool{}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), skipSuffix); ok {
			if isManifest(name) {
				name = stem(name)
			}
			skip[component(name)] = true
		}
	}
	return skip, nil
}

// manifestFiles lists a folder's manifests and those below it by name, which is the order they are applied in. Editors' and
// half-written files, which begin with a dot, are left out, and those beside which a .skip file lies.
func manifestFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(e.Name(), ".") && p != dir:
			if e.IsDir() {
				return fs.SkipDir
			}
		case e.IsDir(), !isManifest(e.Name()):
		default:
			if _, err := os.Lstat(p + skipSuffix); err != nil {
				files = append(files, p)
			}
		}
		return nil
	})
	slices.Sort(files)
	return files, err
}

// folders lists dir and the folders below it, for watching.
func folders(dir string) []string {
	var all []string
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is told when its files are
		}
		if e.IsDir() {
			all = append(all, p)
		}
		return nil
	})
	return all
}

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func stem(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) }

func readDir(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// component gives our name of a component for K3s's.
func component(name string) string {
	if name == "traefik" {
		return "ingress"
	}
	return name
}
