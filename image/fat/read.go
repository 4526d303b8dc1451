package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf16"
)

// Fault is a place in the volume, by its offset, where it is not what it must be.
type Fault struct {
	Offset int64
	Msg    string
}

func (f Fault) Error() string { return fmt.Sprintf("offset %d: %s", f.Offset, f.Msg) }

// Volume is what Read found.
type Volume struct {
	Params Params // Time is that of the first file
	Files  []Found
}

// Found is a file of a Volume.
type Found struct {
	File
	extents []extent
	r       io.ReaderAt
	set     []int64 // places of the entries that name it, the short one last
}

type extent struct{ offset, size int64 }

// Offset is where the file starts in the volume; empty files have none.
func (f Found) Offset() int64 {
	if len(f.extents) == 0 {
		return 0
	}
	return f.extents[0].offset
}

// Open reads the file's bytes.
func (f Found) Open() io.Reader {
	var parts []io.Reader
	for _, e := range f.extents {
		parts = append(parts, io.NewSectionReader(f.r, e.offset, e.size))
	}
	return io.MultiReader(parts...)
}

// ReadAt is io.ReaderAt's.
func (f Found) ReadAt(b []byte, at int64) (int, error) {
	n, err := io.ReadFull(f.OpenAt(at), b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// OpenAt reads the file's bytes from an offset on.
func (f Found) OpenAt(at int64) io.Reader {
	var parts []io.Reader
	for _, e := range f.extents {
		if at >= e.size {
			at -= e.size
			continue
		}
		parts = append(parts, io.NewSectionReader(f.r, e.offset+at, e.size-at))
		at = 0
	}
	return io.MultiReader(parts...)
}

// Bounds on what a reader takes from a volume it did not make.
const (
	maxFiles = 4096
	maxDepth = 16
	maxTable = 64 << 20 // bytes of one table
)

// reader walks a volume of which nothing is trusted.
type reader struct {
	r     io.ReaderAt
	g     geometry
	table []byte
	used  map[uint32]bool // clusters of files and folders seen so far
	v     *Volume

	// For an Editor: a volume that others write may be left with two names for one file, and is read all the same.
	lenient bool
	dirs    map[string]*openDir
}

// openDir is a folder as an Editor finds it.
type openDir struct {
	first  uint32
	chain  []extent
	shorts map[string]bool
}

// Read reads the volume of size bytes that r holds. It also reads volumes that others have changed, with files in pieces.
func Read(r io.ReaderAt, size int64) (*Volume, error) {
	rd, err := read(r, size, false)
	if err != nil {
		return nil, err
	}
	return rd.v, nil
}

func read(r io.ReaderAt, size int64, lenient bool) (*reader, error) {
	boot := make([]byte, sector)
	if _, err := r.ReadAt(boot, 0); err != nil {
		return nil, fmt.Errorf("fat: reading the boot sector: %w", err)
	}
	le := binary.LittleEndian
	perCluster, reserved, fats := int64(boot[13]), int64(le.Uint16(boot[14:])), int64(boot[16])
	total, fat := int64(le.Uint32(boot[32:])), int64(le.Uint32(boot[36:]))
	switch {
	case boot[510] != 0x55 || boot[511] != 0xaa || le.Uint16(boot[11:]) != sector || string(boot[82:90]) != "FAT32   ":
		return nil, Fault{0, "is not the boot sector of a FAT32 volume with 512-byte sectors"}
	case perCluster == 0 || perCluster&(perCluster-1) != 0 || fats != 2 || reserved == 0 || fat == 0 || fat > maxTable/sector:
		return nil, Fault{13, "the boot sector's geometry makes no sense"}
	case total*sector > size || (reserved+2*fat+perCluster) > total:
		return nil, Fault{32, fmt.Sprintf("the volume is %d sectors in a partition of %d", total, size/sector)}
	}
	g := geometry{cluster: perCluster * sector, reserved: reserved, fat: fat}
	g.clusters = min((total*sector-g.data())/g.cluster, fat*sector/4-2)
	rd := &reader{r: r, g: g, table: make([]byte, fat*sector), used: map[uint32]bool{}, v: &Volume{}, lenient: lenient, dirs: map[string]*openDir{}}
	rd.v.Params = Params{Size: total * sector, Serial: le.Uint32(boot[67:]), Label: trim(boot[71:82])}
	if _, err := r.ReadAt(rd.table, reserved*sector); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("fat: reading the table: %w", err)
	}
	if err := rd.folder("", le.Uint32(boot[44:]), 44, 0); err != nil {
		return nil, err
	}
	return rd, nil
}

// chain follows a chain; at is where the first cluster was named.
func (rd *reader) chain(c uint32, at int64) ([]extent, error) {
	var out []extent
	steps := int64(0)
	for {
		if c < rootCluster || int64(c-rootCluster) >= rd.g.clusters {
			return nil, Fault{at, fmt.Sprintf("names cluster %d; the volume has 2 to %d", c, rd.g.clusters+1)}
		}
		if steps++; rd.used[c] && !rd.lenient || steps > rd.g.clusters {
			return nil, Fault{at, fmt.Sprintf("names cluster %d, which belongs to another file already", c)}
		}
		rd.used[c] = true
		if n := len(out); n > 0 && out[n-1].offset+out[n-1].size == rd.g.offset(c) {
			out[n-1].size += rd.g.cluster
		} else {
			out = append(out, extent{rd.g.offset(c), rd.g.cluster})
		}
		at = rd.g.reserved*sector + 4*int64(c)
		if c = binary.LittleEndian.Uint32(rd.table[4*c:]) & endOfChain; c >= 0x0ffffff8 {
			return out, nil
		}
	}
}

func (rd *reader) folder(name string, first uint32, at int64, depth int) error {
	if depth > maxDepth {
		return Fault{at, fmt.Sprintf("/%s: folders are more than %d deep", name, maxDepth)}
	}
	chain, err := rd.chain(first, at)
	if err != nil {
		return err
	}
	here := &openDir{first: first, chain: chain, shorts: map[string]bool{}}
	rd.dirs[name] = here
	var long longName
	for _, ext := range chain {
		if ext.size > maxFiles*dirEntry*8 {
			return Fault{ext.offset, fmt.Sprintf("/%s: folder is larger than anything made here", name)}
		}
		b := make([]byte, ext.size)
		if _, err := rd.r.ReadAt(b, ext.offset); err != nil {
			return fmt.Errorf("fat: reading folder /%s: %w", name, err)
		}
		for i := 0; i < len(b); i += dirEntry {
			e, at := b[i:i+dirEntry], ext.offset+int64(i)
			if e[0] == 0 {
				return nil
			}
			if e[0] != 0xe5 && e[11]&0x3f != attrLong {
				here.shorts[string(e[:11])] = true
			}
			if err := rd.entry(name, e, at, depth, &long); err != nil {
				return err
			}
		}
	}
	return nil
}

func (rd *reader) entry(folder string, e []byte, at int64, depth int, long *longName) error {
	switch {
	case e[0] == 0xe5:
		*long = longName{}
		return nil
	case e[11]&0x3f == attrLong:
		long.add(e, at)
		return nil
	case e[11]&attrLabel != 0, string(e[:11]) == pad(".", 11), string(e[:11]) == pad("..", 11):
		*long = longName{}
		return nil
	}
	name, set := long.take(e)
	set = append(set, at)
	if folder != "" {
		name = folder + "/" + name
	}
	le := binary.LittleEndian
	first := uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:]))
	if e[11]&attrDir != 0 {
		return rd.folder(name, first, at, depth+1)
	}
	if len(rd.v.Files) >= maxFiles {
		return Fault{at, fmt.Sprintf("there are more than %d files", maxFiles)}
	}
	f := Found{File: File{Path: name, Size: int64(le.Uint32(e[28:]))}, r: rd.r, set: set}
	if f.Size > 0 {
		var err error
		if f.extents, err = rd.chain(first, at); err != nil {
			return err
		}
		left := f.Size
		for i := range f.extents {
			f.extents[i].size = min(f.extents[i].size, left)
			left -= f.extents[i].size
		}
		if left > 0 {
			return Fault{at, fmt.Sprintf("/%s: is %d bytes, and its clusters hold %d less", name, f.Size, left)}
		}
	}
	if len(rd.v.Files) == 0 {
		rd.v.Params.Time = unstamp(le.Uint16(e[24:]), le.Uint16(e[22:]))
	}
	rd.v.Files = append(rd.v.Files, f)
	return nil
}

// longName collects the entries that stand before a short one.
type longName struct {
	u    []uint16
	next byte
	sum  byte
	at   []int64
}

func (l *longName) add(e []byte, at int64) {
	n := e[0] &^ 0x40
	if e[0]&0x40 != 0 {
		*l = longName{next: n, sum: e[13]}
	}
	if n == 0 || n != l.next || e[13] != l.sum {
		*l = longName{}
		return
	}
	part := make([]uint16, longChars)
	for j, at := range longAt {
		part[j] = binary.LittleEndian.Uint16(e[at:])
	}
	l.u, l.next, l.at = append(part, l.u...), n-1, append(l.at, at)
}

// take gives the name of the short entry e, the long one if it is whole and belongs to it, and the places of that one's entries.
func (l *longName) take(e []byte) (string, []int64) {
	at, u, whole := l.at, l.u, len(l.u) > 0 && l.next == 0 && l.sum == checksum(string(e[:11]))
	*l = longName{}
	if whole {
		for i, c := range u {
			if c == 0 {
				u = u[:i]
				break
			}
		}
		return string(utf16.Decode(u)), at
	}
	base, ext := trim(e[:8]), trim(e[8:11])
	if ext != "" {
		return base + "." + ext, nil
	}
	return base, nil
}

func trim(b []byte) string {
	n := len(b)
	for n > 0 && b[n-1] == ' ' {
		n--
	}
	return string(b[:n])
}

func unstamp(date, clock uint16) time.Time {
	return time.Date(int(date>>9)+1980, time.Month(date>>5&15), int(date&31), int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}
