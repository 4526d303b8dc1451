// Package rootfs is a file tree that exists before it is a filesystem: paths, modes and where the bytes come from. It becomes
// an EROFS image for the root or a cpio archive for the initramfs, always the same bytes for the same tree. Everything in it
// belongs to root and carries one time.
package rootfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Entry is one name of a tree.
type Entry struct {
	Path string      // slash-separated, no slash at either end
	Mode fs.FileMode // type and permissions: a folder, a file or a symbolic link
	Link string      // target of a symbolic link
	Host string      // the file's bytes: this file of the host, or else Data
	Data []byte
}

// Open reads the content of a file entry.
func (e Entry) Open() (io.ReadCloser, error) {
	if e.Host != "" {
		return os.Open(e.Host)
	}
	return io.NopCloser(bytes.NewReader(e.Data)), nil
}

// Tree is a set of entries. A parent folder that is not named is made, with mode 0755.
type Tree struct {
	entries map[string]Entry
	merged  []string // top folders that live below usr
}

// New gives an empty tree. Names below a merged folder go below usr/ instead, and the folder is a link to there: "bin", "lib".
func New(merged ...string) *Tree {
	t := &Tree{entries: map[string]Entry{}, merged: merged}
	for _, m := range merged {
		t.entries[m] = Entry{Path: m, Mode: fs.ModeSymlink | 0o777, Link: "usr/" + m}
	}
	return t
}

// Canonical gives the path that a name has in this tree.
func (t *Tree) Canonical(name string) string {
	name = path.Clean("/" + name)[1:]
	for _, m := range t.merged {
		if len(name) > len(m) && name[:len(m)] == m && name[len(m)] == '/' {
			return "usr/" + name
		}
	}
	return name
}

// ErrConflict means that two sources want to be the same name.
var ErrConflict = errors.New("is in the tree already, from elsewhere")

// Add puts an entry in. The same entry twice is one; two different ones are an error.
func (t *Tree) Add(e Entry) error {
	e.Path = t.Canonical(e.Path)
	if e.Path == "" {
		return nil
	}
	switch e.Mode.Type() {
	case 0, fs.ModeDir, fs.ModeSymlink:
	default:
		return fmt.Errorf("%s: is a %v; a tree holds files, folders and symbolic links", e.Path, e.Mode.Type())
	}
	if old, ok := t.entries[e.Path]; ok {
		same, err := old.same(e)
		if err != nil || same {
			return err
		}
		return fmt.Errorf("%s: %w", e.Path, ErrConflict)
	}
	for p := path.Dir(e.Path); p != "."; p = path.Dir(p) {
		up, ok := t.entries[p]
		if !ok {
			t.entries[p] = Entry{Path: p, Mode: fs.ModeDir | 0o755}
		} else if !up.Mode.IsDir() {
			return fmt.Errorf("%s: %s above it is not a folder: %w", e.Path, p, ErrConflict)
		}
	}
	t.entries[e.Path] = e
	return nil
}

// same says whether two entries would look alike on a node. Where files come from does not count, what is in them does.
func (e Entry) same(o Entry) (bool, error) {
	switch {
	case e.Mode.IsDir() && o.Mode.IsDir():
		return true, nil
	case e.Mode != o.Mode || e.Link != o.Link:
		return false, nil
	case !e.Mode.IsRegular():
		return true, nil
	}
	var content [2]bytes.Buffer
	if err := errors.Join(e.copyTo(&content[0]), o.copyTo(&content[1])); err != nil {
		return false, err
	}
	return bytes.Equal(content[0].Bytes(), content[1].Bytes()), nil
}

// Remove takes a file or an empty folder out again.
func (t *Tree) Remove(name string) { delete(t.entries, t.Canonical(name)) }

// AddFile adds a file of the host, with the permissions given.
func (t *Tree) AddFile(name, host string, perm fs.FileMode) error {
	return t.Add(Entry{Path: name, Mode: perm.Perm(), Host: host})
}

// AddBytes adds a file with this content.
func (t *Tree) AddBytes(name string, data []byte, perm fs.FileMode) error {
	return t.Add(Entry{Path: name, Mode: perm.Perm(), Data: data})
}

// AddLink adds a symbolic link.
func (t *Tree) AddLink(name, target string) error {
	return t.Add(Entry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: target})
}

// AddDir adds a folder.
func (t *Tree) AddDir(name string, perm fs.FileMode) error {
	return t.Add(Entry{Path: name, Mode: fs.ModeDir | perm.Perm()})
}

// AddFS adds all of fsys below a folder. Files keep whether they may be run; a file named .keep only keeps its folder.
func (t *Tree) AddFS(below string, fsys fs.FS) error {
	return fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := path.Join(below, p)
		switch {
		case d.IsDir():
			return t.AddDir(name, 0o755)
		case d.Name() == ".keep":
			return nil
		case d.Type() == fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, p)
			if err != nil {
				return err
			}
			return t.AddLink(name, target)
		}
		data, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return t.AddBytes(name, data, runnable(info.Mode()))
	})
}

// AddHost adds a file, link or folder with all below it from the host, keeping only who may run it. A file named .keep
// only keeps its folder.
func (t *Tree) AddHost(name, host string) error {
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			return t.AddDir(to, 0o755)
		case d.Name() == ".keep":
			return nil
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return t.AddLink(to, target)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return t.AddFile(to, p, runnable(info.Mode()))
	})
}

func runnable(m fs.FileMode) fs.FileMode {
	if m&0o111 != 0 {
		return 0o755
	}
	return 0o644
}

// Get finds an entry by name, without following links.
func (t *Tree) Get(name string) (Entry, bool) {
	e, ok := t.entries[t.Canonical(name)]
	return e, ok
}

// Entries lists all, sorted by path, so that a folder stands before what is in it.
func (t *Tree) Entries() []Entry {
	out := make([]Entry, 0, len(t.entries))
	for _, p := range slices.Sorted(maps.Keys(t.entries)) {
		out = append(out, t.entries[p])
	}
	return out
}

// Digest is a hash over every name, mode and byte: equal for equal trees and for no others.
func (t *Tree) Digest() (string, error) {
	all := sha256.New()
	for _, e := range t.Entries() {
		sum := ""
		if e.Mode.IsRegular() {
			h := sha256.New()
			if err := e.copyTo(h); err != nil {
				return "", err
			}
			sum = hex.EncodeToString(h.Sum(nil))
		}
		fmt.Fprintf(all, "%q %o %q %s\n", e.Path, e.Mode, e.Link, sum)
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

func (e Entry) copyTo(w io.Writer) error {
	r, err := e.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	defer func() { _ = r.Close() }()
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	return nil
}

// Stage writes the tree into an empty folder of the host.
func (t *Tree) Stage(dir string) error {
	for _, e := range t.Entries() {
		name := filepath.Join(dir, filepath.FromSlash(e.Path))
		var err error
		switch {
		case e.Mode.IsDir():
			if err = os.Mkdir(name, 0o755); err == nil {
				err = os.Chmod(name, e.Mode.Perm()|0o700)
			}
		case e.Mode.Type() == fs.ModeSymlink:
			err = os.Symlink(e.Link, name)
		default:
			err = e.stage(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e Entry) stage(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := e.copyTo(f); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Chmod(e.Mode.Perm()); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
