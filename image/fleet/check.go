package fleet

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
)

// Check looks at what the file names: the public key, and that each node's release is there, signed with it, and for the node's
// board; and that nobody else may read it if it holds secrets. The error joins all faults, each at its place in the file.
func (f *Fleet) Check() error {
	_, err := f.open()
	return err
}

// Fetch puts folders in the place of releases that are kept elsewhere, as in a registry: get gives the folder of a release for
// the boards of the fleet, and of one that is a folder the name as it is.
func (f *Fleet) Fetch(get func(name string, trusted []ed25519.PublicKey, boards ...string) (string, error)) error {
	c := &checker{f: f}
	trusted, err := f.trusted()
	if err != nil {
		c.add([]any{"keys"}, "keys: %v", err)
		return c.err()
	}
	var ids []string
	for _, n := range f.Nodes {
		if !slices.Contains(ids, n.Board) {
			ids = append(ids, n.Board)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.Releases)) {
		dir, err := get(f.Releases[key], trusted, ids...)
		if err != nil {
			c.add([]any{"releases", key}, "releases.%s: %v", key, err)
			continue
		}
		f.Releases[key] = dir
	}
	return c.err()
}

// opened is a release and its folder.
type opened struct {
	*release.Release
	files fs.FS
	dir   string
}

// open gives the releases by board.
func (f *Fleet) open() (map[string]opened, error) {
	c := &checker{f: f}
	c.private()
	trusted, err := f.trusted()
	if err != nil {
		c.add([]any{"keys"}, "keys: %v", err)
		return nil, c.err()
	}
	byKey := map[string]opened{}
	for _, key := range slices.Sorted(maps.Keys(f.Releases)) {
		o := opened{dir: f.Path(f.Releases[key])}
		o.files = os.DirFS(o.dir)
		o.Release, err = release.Open(o.files, trusted)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.add([]any{"releases", key}, "releases.%s: %s is not a release's folder; make one with: skerry release build --arch %s", key, o.dir, archOf(key))
		case errors.Is(err, release.ErrUntrusted):
			c.add([]any{"releases", key}, "releases.%s: %s: %v; name the folder with the key it was signed with as keys", key, o.dir, err)
		case err != nil:
			c.add([]any{"releases", key}, "releases.%s: %s: %v", key, o.dir, err)
		case o.Manifest().Arch != archOf(key):
			c.add([]any{"releases", key}, "releases.%s: %s is a release for %s; name one for %s", key, o.dir, o.Manifest().Arch, archOf(key))
		default:
			byKey[key] = o
		}
	}
	out := map[string]opened{}
	for i, n := range f.Nodes {
		b, err := f.board(n.Board)
		if err != nil {
			return nil, err // Decode has looked
		}
		key := b.ID
		if f.Releases[key] == "" {
			key = b.Arch
		}
		o, ok := byKey[key]
		if !ok {
			continue // named above
		}
		if _, has := o.Manifest().Boards[b.ID]; !has {
			c.add([]any{"nodes", i, "board"}, "%s: release %s has nothing for board %s, only for %v", n.Name, o.Manifest().Version, b.ID, o.Manifest().BoardIDs())
		}
		out[b.ID] = o
	}
	return out, c.err()
}

// archOf is the architecture that a key of releases means.
func archOf(key string) string {
	if b, err := boards.Load(key); err == nil {
		return b.Arch
	}
	return key
}

func (f *Fleet) trusted() ([]ed25519.PublicKey, error) {
	pubs, err := keys.TrustedIn(f.Path(f.Keys))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; name the folder with the public key of whoever signed the releases (skerry keys new makes one)", err)
	}
	return pubs, err
}
