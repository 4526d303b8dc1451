// Package fat lays out FAT32 volumes. Lay is pure: from a list of files it gives the bytes of every table and folder and the
// place of every file, each in one piece, so that an image can be planned whole and then written in a single pass, and so
// that the same files always give the same bytes. Read goes the other way.
//
// go-diskfs writes FAT32 too, but by rewriting in place, and its volumes need repairs before fsck.vfat is content (".." of
// first-level folders, the free count, serial, times, 64 MiB volumes); a writer that only ever makes a fresh volume is smaller
// than the repairs.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Limits of the volumes made here. Fewer clusters than FAT32's least and a reader takes the volume for FAT16.
const (
	sector      = 512
	minClusters = 65525 + 16 // some readers are off by a few
	maxClusters = 0x0ffffff5 - 2
	maxCluster  = 32 << 10 // bytes
	align       = 4096     // the file area starts and clusters lie on whole flash pages
	dirEntry    = 32
	endOfChain  = 0x0fffffff
	rootCluster = 2
	fsInfoAt    = 1 // sector
	backupAt    = 6 // sector, of the boot sector; FSInfo's follows it
	minReserved = 32
)

// Params say what a volume is.
type Params struct {
	Size   int64     // bytes, whole sectors
	Label  string    // at most 11 of A-Z, 0-9, - and _
	Serial uint32    // the volume's ID
	Time   time.Time // of all files, in UTC; FAT knows the years 1980 to 2107
}

// File is a file to be placed; its folders come by themselves.
type File struct {
	Path string // slash-separated, no leading slash
	Size int64
}

// Chunk is a piece of the volume's own data.
type Chunk struct {
	Offset int64
	What   string
	Data   []byte
}

// Placed is where a File's bytes belong.
type Placed struct {
	File
	Offset int64
}

// Layout is a whole volume but for the files' contents. What neither list covers is free space.
type Layout struct {
	Params Params
	Meta   []Chunk  // by offset
	Files  []Placed // by offset, in the order given; empty files have no place and Offset 0
	Free   int64    // bytes
}

// geometry follows from the size alone.
type geometry struct {
	cluster  int64 // bytes
	reserved int64 // sectors
	fat      int64 // sectors each
	clusters int64
}

func (g geometry) data() int64             { return (g.reserved + 2*g.fat) * sector }
func (g geometry) offset(c uint32) int64   { return g.data() + int64(c-rootCluster)*g.cluster }
func (g geometry) count(size int64) uint32 { return uint32((size + g.cluster - 1) / g.cluster) }

// measure picks the largest cluster that leaves enough of them.
func measure(size int64) (geometry, error) {
	if size%sector != 0 || size < 0 || size/sector > math.MaxUint32 {
		return geometry{}, fmt.Errorf("fat: a volume of %d bytes is not whole sectors or more than 2 TiB", size)
	}
	var best geometry
	for c := int64(sector); c <= maxCluster; c *= 2 {
		g := geometry{cluster: c}
		// Every cluster takes itself and eight bytes in two tables; rounding up wastes at most a few entries.
		n := (size - minReserved*sector) / (c + 8)
		if n < 0 {
			break
		}
		g.fat = ((n+2)*4 + sector - 1) / sector
		tables := (minReserved + 2*g.fat) * sector
		g.reserved = minReserved + (align-tables%align)%align/sector
		g.clusters = (size - g.data()) / c
		if g.clusters > g.fat*sector/4-2 {
			g.clusters = g.fat*sector/4 - 2
		}
		if g.clusters < minClusters {
			break
		}
		best = g
	}
	if best.clusters == 0 {
		return best, fmt.Errorf("fat: a FAT32 volume of %d bytes is too small; 34 MiB is the least", size)
	}
	if best.clusters > maxClusters {
		return best, fmt.Errorf("fat: a FAT32 volume of %d bytes is too large", size)
	}
	return best, nil
}

// Lay places the files in the order given. The error names every file that cannot be stored.
func Lay(p Params, files []File) (*Layout, error) {
	g, err := measure(p.Size)
	if err != nil {
		return nil, err
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	root, err := grow(files)
	if err != nil {
		return nil, err
	}
	root.label = p.Label
	next := uint32(rootCluster)
	table := map[uint32]uint32{} // first cluster -> clusters in the chain
	take := func(size int64) (uint32, error) {
		n := g.count(size)
		if int64(next-rootCluster)+int64(n) > g.clusters {
			return 0, fmt.Errorf("fat: %d bytes of files and folders do not fit in a volume of %d", used(files), p.Size)
		}
		first := next
		table[first] = n
		next += n
		return first, nil
	}
	l := &Layout{Params: p}
	dirs := root.walk()
	for _, d := range dirs {
		if d.first, err = take(max(d.size(), 1)); err != nil {
			return nil, err
		}
	}
	nodes := root.files()
	for _, f := range files {
		placed := Placed{File: f}
		if f.Size > 0 {
			first, err := take(f.Size)
			if err != nil {
				return nil, err
			}
			nodes[f.Path].first, placed.Offset = first, g.offset(first)
		}
		l.Files = append(l.Files, placed)
	}
	l.Free = (g.clusters - int64(next-rootCluster)) * g.cluster
	l.Meta = append(l.Meta, Chunk{0, "boot sectors", g.bootSectors(p, next)})
	t := g.table(table)
	l.Meta = append(l.Meta, Chunk{g.reserved * sector, "first table", t}, Chunk{(g.reserved + g.fat) * sector, "second table", t})
	for _, d := range dirs {
		data := make([]byte, int64(g.count(max(d.size(), 1)))*g.cluster)
		d.encode(data, p.Time)
		l.Meta = append(l.Meta, Chunk{g.offset(d.first), "folder /" + d.path, data})
	}
	return l, nil
}

func used(files []File) (n int64) {
	for _, f := range files {
		n += f.Size
	}
	return n
}

func (p Params) validate() error {
	var errs []error
	if len(p.Label) > 11 || strings.Trim(p.Label, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" || p.Label == "" {
		errs = append(errs, fmt.Errorf("fat: label %q is not 1 to 11 of A-Z, 0-9, - and _", p.Label))
	}
	if y := p.Time.UTC().Year(); y < 1980 || y > 2107 {
		errs = append(errs, fmt.Errorf("fat: the year %d is outside 1980 to 2107", y))
	}
	return errors.Join(errs...)
}

// table encodes the chains; all are in one piece.
func (g geometry) table(chains map[uint32]uint32) []byte {
	t := make([]byte, g.fat*sector)
	le := binary.LittleEndian
	le.PutUint32(t, 0x0ffffff8) // the media descriptor again
	le.PutUint32(t[4:], endOfChain)
	for first, n := range chains {
		for c := first; c < first+n; c++ {
			v := c + 1
			if c == first+n-1 {
				v = endOfChain
			}
			le.PutUint32(t[4*c:], v)
		}
	}
	return t
}

// bootSectors encodes the whole reserved area: boot sector, FSInfo, and their copies.
func (g geometry) bootSectors(p Params, next uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, g.reserved*sector)
	boot := b[:sector]
	copy(boot, "\xeb\x58\x90SKERRY  ")
	le.PutUint16(boot[11:], sector)
	boot[13] = byte(g.cluster / sector)
	le.PutUint16(boot[14:], uint16(g.reserved))
	boot[16] = 2    // tables
	boot[21] = 0xf8 // a fixed disk
	le.PutUint16(boot[24:], 63)
	le.PutUint16(boot[26:], 255)
	le.PutUint32(boot[32:], uint32(p.Size/sector))
	le.PutUint32(boot[36:], uint32(g.fat))
	le.PutUint32(boot[44:], rootCluster)
	le.PutUint16(boot[48:], fsInfoAt)
	le.PutUint16(boot[50:], backupAt)
	boot[64] = 0x80 // BIOS drive
	boot[66] = 0x29 // the three fields that follow are there
	le.PutUint32(boot[67:], p.Serial)
	copy(boot[71:], pad(p.Label, 11))
	copy(boot[82:], "FAT32   ")
	copy(boot[90:], "\xf4\xeb\xfd") // hlt, for firmware that runs it all the same
	boot[510], boot[511] = 0x55, 0xaa
	info := b[fsInfoAt*sector:]
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], uint32(g.clusters)-(next-rootCluster))
	le.PutUint32(info[492:], next-1) // the last one taken
	info[510], info[511] = 0x55, 0xaa
	b[2*sector+510], b[2*sector+511] = 0x55, 0xaa // the third boot sector, empty
	copy(b[backupAt*sector:], b[:3*sector])
	return b
}

func pad(s string, n int) string { return s + strings.Repeat(" ", n-len(s)) }

// node is a file or a folder of the tree to be written.
type node struct {
	name, path string
	label      string // of the volume, in the root
	bytes      int64  // of a file
	first      uint32
	dir        bool
	parent     *node
	kids       []*node
}

// grow makes the tree; kids keep the order in which they were named.
func grow(files []File) (*node, error) {
	root := &node{dir: true}
	var errs []error
	for _, f := range files {
		if err := root.insert(f); err != nil {
			errs = append(errs, fmt.Errorf("fat: %s: %w", f.Path, err))
		}
	}
	return root, errors.Join(errs...)
}

func (n *node) insert(f File) error {
	if f.Path == "" || path.Clean("/" + f.Path)[1:] != f.Path {
		return fmt.Errorf("%q is not a clean path", f.Path)
	}
	if f.Size < 0 || f.Size > math.MaxUint32 {
		return fmt.Errorf("%d bytes do not fit in a FAT file (4 GiB less one)", f.Size)
	}
	parts := strings.Split(f.Path, "/")
	for i, name := range parts {
		if err := checkName(name); err != nil {
			return err
		}
		last := i == len(parts)-1
		j := slices.IndexFunc(n.kids, func(k *node) bool { return strings.EqualFold(k.name, name) })
		if j < 0 {
			n.kids = append(n.kids, &node{name: name, path: strings.Join(parts[:i+1], "/"), dir: !last, parent: n})
			j = len(n.kids) - 1
		} else if last || !n.kids[j].dir || n.kids[j].name != name {
			return fmt.Errorf("is one name with %s to FAT", n.kids[j].path)
		}
		n = n.kids[j]
	}
	n.bytes = f.Size
	return nil
}

// walk lists the folders, parents first.
func (n *node) walk() []*node {
	out := []*node{n}
	for _, k := range n.kids {
		if k.dir {
			out = append(out, k.walk()...)
		}
	}
	return out
}

func (n *node) files() map[string]*node {
	out := map[string]*node{}
	for _, d := range n.walk() {
		for _, k := range d.kids {
			if !k.dir {
				out[k.path] = k
			}
		}
	}
	return out
}
