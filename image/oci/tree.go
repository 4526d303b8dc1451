package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// tree is what the layers of an image come to, one laid over the other (OCI image specification, layer.md).
type tree struct {
	root  *inode
	spool *os.File // the files' bytes, one behind the other
	end   int64    // of the spool
	layer int      // the one that is being laid on
}

type inode struct {
	head     tar.Header
	at, size int64 // of a file's bytes in the spool
	children map[string]*inode
	layer    int
}

func newTree(spool *os.File) *tree {
	return &tree{root: newFolder(0), spool: spool}
}

func newFolder(layer int) *inode {
	return &inode{head: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}, children: map[string]*inode{}, layer: layer}
}

func (n *inode) isFolder() bool { return n.head.Typeflag == tar.TypeDir }

// lay lays a layer over those before.
func (t *tree) lay(plain io.Reader) error {
	t.layer++
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.put(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// put takes one entry of a layer.
func (t *tree) put(h *tar.Header, content io.Reader) error {
	name := path.Clean("/" + h.Name)
	if name == "/" {
		t.root.head = *h
		return nil
	}
	up, err := t.folder(path.Dir(name), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch {
	case base == opaque:
		t.hide(up)
		return nil
	case strings.HasPrefix(base, whiteout+whiteout):
		return nil // AUFS's own
	case strings.HasPrefix(base, whiteout):
		hidden := strings.TrimPrefix(base, whiteout)
		if n := up.children[hidden]; n != nil && t.hidden(n) {
			delete(up.children, hidden)
		}
		return nil
	}
	n := &inode{head: *h, layer: t.layer}
	switch h.Typeflag {
	case tar.TypeDir:
		n.children = map[string]*inode{}
		if old := up.children[base]; old != nil && old.isFolder() {
			n.children = old.children
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		n.head.Typeflag = tar.TypeReg
		n.at = t.end
		if n.size, err = io.Copy(t.spool, content); err != nil {
			return err
		}
		t.end += n.size
	case tar.TypeLink:
		target := path.Clean("/" + h.Linkname)
		from, err := t.folder(path.Dir(target), false)
		if err != nil {
			return err
		}
		if n = from.children[path.Base(target)]; n == nil || n.isFolder() {
			return fmt.Errorf("is a link to %s, which is no file before it", h.Linkname)
		}
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("is of a kind (%q) that no image has", h.Typeflag)
	}
	up.children[base] = n
	return nil
}

// hide takes what lower layers have in a folder away.
func (t *tree) hide(folder *inode) {
	for name, n := range folder.children {
		if t.hidden(n) {
			delete(folder.children, name)
		}
	}
}

// hidden says whether nothing is left of a name when lower layers are taken away.
func (t *tree) hidden(n *inode) bool {
	if n.isFolder() {
		if t.hide(n); len(n.children) > 0 {
			return false
		}
	}
	return n.layer < t.layer
}

// folder finds a folder, through symbolic links, none of which leads out. One that is missing is made, if that is asked for.
func (t *tree) folder(name string, make bool) (*inode, error) {
	way := []*inode{t.root}
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		step := rest[0]
		rest = rest[1:]
		here := way[len(way)-1]
		switch step {
		case "", ".":
			continue
		case "..":
			way = way[:max(1, len(way)-1)]
			continue
		}
		n := here.children[step]
		switch {
		case n == nil && make:
			n = newFolder(t.layer)
			here.children[step] = n
		case n == nil:
			return nil, fmt.Errorf("%s is not there", name)
		case n.head.Typeflag == tar.TypeSymlink:
			if links++; links > 40 { // as the kernel
				return nil, fmt.Errorf("%s: too many symbolic links", name)
			}
			if path.IsAbs(n.head.Linkname) {
				way = way[:1]
			}
			rest = append(strings.Split(n.head.Linkname, "/"), rest...)
			continue
		case !n.isFolder():
			return nil, fmt.Errorf("%s: %s is not a folder", name, step)
		}
		way = append(way, n)
	}
	return way[len(way)-1], nil
}

// write writes the tree as one layer, the same bytes for the same tree.
func (t *tree) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	written := map[*inode]string{}
	var walk func(name string, n *inode) error
	walk = func(name string, n *inode) error {
		h := tar.Header{
			Typeflag: n.head.Typeflag, Name: name, Linkname: n.head.Linkname, Size: n.size, Mode: n.head.Mode & 0o7777, Uid: n.head.Uid, Gid: n.head.Gid,
			ModTime: n.head.ModTime.Truncate(time.Second), Devmajor: n.head.Devmajor, Devminor: n.head.Devminor, Format: tar.FormatPAX,
		}
		for key, value := range n.head.PAXRecords {
			if strings.HasPrefix(key, "SCHILY.xattr.") {
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords[key] = value
			}
		}
		if first, ok := written[n]; ok {
			h = tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: h.ModTime, Format: tar.FormatPAX}
		}
		if n.isFolder() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.Copy(tw, io.NewSectionReader(t.spool, n.at, n.size)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if written[n] == "" {
			written[n] = name
		}
		for _, base := range slices.Sorted(maps.Keys(n.children)) {
			if err := walk(name+"/"+base, n.children[base]); err != nil {
				return err
			}
		}
		return nil
	}
	t.root.head.Typeflag = tar.TypeDir
	if err := walk(".", t.root); err != nil {
		return err
	}
	return tw.Close()
}
