package fat

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Device is what a volume that is changed lies on. After Sync returns, what was written survives a power cut, and ReadAt gives
// what the medium holds, not what a cache remembers.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrNoRoom means that a file does not fit.
var ErrNoRoom = errors.New("no room")

// Editor changes the files of a volume that machines boot from. Each change takes effect by the write of ONE sector, with
// everything it depends on made durable before and everything it leaves unused given up after, so that a power cut at any
// instant leaves the old content or the new one. What a cut leaves behind, clusters that nothing names, is used again.
//
// The kernel's own driver makes no such promise: it writes tables and folders in the order its cache likes. Nothing else may
// have the volume mounted meanwhile.
type Editor struct {
	d    Device
	size int64
	now  time.Time
	rd   *reader
}

// Edit opens the volume of size bytes; now is the time that files written get.
func Edit(d Device, size int64, now time.Time) (*Editor, error) {
	if y := now.UTC().Year(); y < 1980 || y > 2107 {
		now = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	e := &Editor{d: d, size: size, now: now}
	return e, e.reload()
}

func (e *Editor) reload() (err error) {
	e.rd, err = read(e.d, e.size, true)
	return err
}

// Files lists the files there are.
func (e *Editor) Files() []Found { return e.rd.v.Files }

// Find gives a file by its path; FAT does not tell large letters from small.
func (e *Editor) Find(name string) (Found, bool) {
	for _, f := range e.rd.v.Files {
		if strings.EqualFold(f.Path, name) {
			return f, true
		}
	}
	return Found{}, false
}

// ReadFile reads a small file; one that is not there is fs.ErrNotExist's kind of answer: nil and false.
func (e *Editor) ReadFile(name string, limit int64) ([]byte, bool, error) {
	f, ok := e.Find(name)
	if !ok {
		return nil, false, nil
	}
	if f.Size > limit {
		return nil, true, fmt.Errorf("/%s: is %d bytes; at most %d are read", name, f.Size, limit)
	}
	data, err := io.ReadAll(f.Open())
	return data, true, err
}

// Free is how many bytes of files still fit.
func (e *Editor) Free() int64 {
	return (e.rd.g.clusters - int64(len(e.rd.used))) * e.rd.g.cluster
}

// Takes is what a file of size bytes takes of Free.
func (e *Editor) Takes(size int64) int64 { return int64(e.rd.g.count(size)) * e.rd.g.cluster }

// Write makes the file, or replaces its content, and reads back what it wrote. Its folder must be there.
func (e *Editor) Write(name string, size int64, r io.Reader) error {
	old, exists := e.Find(name)
	dir, base := split(name)
	if err := checkName(base); err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	if size < 0 || size > math.MaxUint32 {
		return fmt.Errorf("/%s: %d bytes do not fit in a FAT file (4 GiB less one)", name, size)
	}
	d := e.dir(dir)
	if d == nil {
		return fmt.Errorf("/%s: there is no folder /%s", name, dir)
	}
	clusters, err := e.alloc(e.rd.g.count(size))
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	sum, err := e.fill(clusters, size, r)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	if err := e.link(clusters); err != nil {
		return err
	}
	if err := e.check(clusters, size, sum); err != nil {
		return fmt.Errorf("/%s: reading back: %w", name, err)
	}
	if exists {
		err = e.repoint(old, clusters, size)
	} else {
		err = e.insert(d, e.encodeEntry(d, base, first(clusters), uint32(size)))
	}
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	return e.tidy()
}

// Remove takes the file away; one that is not there is none to take.
func (e *Editor) Remove(name string) error {
	f, ok := e.Find(name)
	if !ok {
		return nil
	}
	// The short entry is the file; without it the long name's are litter. One sector holds them all, or that one goes first.
	for i := len(f.set); i > 0; {
		sectorAt := f.set[i-1] / sector * sector
		b, err := e.sector(sectorAt)
		if err != nil {
			return err
		}
		for i > 0 && f.set[i-1]/sector*sector == sectorAt {
			b[f.set[i-1]-sectorAt] = 0xe5
			i--
		}
		if err := e.commit(b, sectorAt); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	return e.tidy()
}

// Rename gives a file another name in its folder, which no other file may have.
func (e *Editor) Rename(from, to string) error {
	f, ok := e.Find(from)
	if !ok {
		return fmt.Errorf("/%s: is not there to be renamed", from)
	}
	if _, ok := e.Find(to); ok {
		return fmt.Errorf("/%s: is there already", to)
	}
	dir, base := split(to)
	if fromDir, _ := split(from); !strings.EqualFold(dir, fromDir) {
		return fmt.Errorf("/%s: is in another folder than /%s", to, from)
	}
	if err := checkName(base); err != nil {
		return fmt.Errorf("/%s: %w", to, err)
	}
	sectorAt := f.set[0] / sector * sector
	if f.set[len(f.set)-1]/sector*sector == sectorAt {
		b, err := e.sector(sectorAt)
		if err != nil {
			return err
		}
		var start uint32
		if len(f.extents) > 0 {
			start = e.rd.g.cluster0(f.extents[0].offset)
		}
		set := e.encodeEntry(e.dir(dir), base, start, uint32(f.Size))
		for _, at := range f.set {
			b[at-sectorAt] = 0xe5
		}
		if at := freeRun(b, len(set)/dirEntry); at >= 0 {
			copy(b[at:], set)
			if err := e.commit(b, sectorAt); err != nil {
				return fmt.Errorf("/%s: %w", to, err)
			}
			return e.reload()
		}
	}
	// Its entries lie in two sectors, or the new name is longer than there is room: a copy takes the name.
	if err := e.Write(to, f.Size, f.Open()); err != nil {
		return err
	}
	return e.Remove(from)
}

func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

func (e *Editor) dir(name string) *openDir {
	for n, d := range e.rd.dirs {
		if strings.EqualFold(n, name) {
			return d
		}
	}
	return nil
}

func (g geometry) cluster0(offset int64) uint32 {
	return uint32((offset-g.data())/g.cluster) + rootCluster
}

func first(clusters []uint32) uint32 {
	if len(clusters) == 0 {
		return 0
	}
	return clusters[0]
}

// alloc picks clusters that nothing names, in one piece if there is one.
func (e *Editor) alloc(n uint32) ([]uint32, error) {
	var free, run []uint32
	for c := uint32(rootCluster); int64(c-rootCluster) < e.rd.g.clusters; c++ {
		if e.rd.used[c] {
			run = run[:0]
			continue
		}
		if uint32(len(run)) < n {
			run = append(run, c)
		}
		if uint32(len(run)) == n {
			return run, nil
		}
		if uint32(len(free)) < n {
			free = append(free, c)
		}
	}
	if uint32(len(free)) < n {
		return nil, fmt.Errorf("%w: takes %d bytes, and %d are free", ErrNoRoom, int64(n)*e.rd.g.cluster, e.Free())
	}
	return free, nil
}

// fill writes the content and gives its digest.
func (e *Editor) fill(clusters []uint32, size int64, r io.Reader) ([]byte, error) {
	h := sha256.New()
	left := size
	for len(clusters) > 0 {
		n := 1 // clusters in one piece, up to 1 MiB
		for n < len(clusters) && clusters[n] == clusters[n-1]+1 && int64(n+1)*e.rd.g.cluster <= 1<<20 {
			n++
		}
		b := make([]byte, int64(n)*e.rd.g.cluster)
		want := min(left, int64(len(b)))
		if _, err := io.ReadFull(r, b[:want]); err != nil {
			return nil, fmt.Errorf("the content ends early: %w", err)
		}
		_, _ = h.Write(b[:want])
		left -= want
		if _, err := e.d.WriteAt(b, e.rd.g.offset(clusters[0])); err != nil {
			return nil, err
		}
		clusters = clusters[n:]
	}
	return h.Sum(nil), e.d.Sync()
}

func (e *Editor) check(clusters []uint32, size int64, want []byte) error {
	h := sha256.New()
	b := make([]byte, e.rd.g.cluster)
	for _, c := range clusters {
		n := min(size, int64(len(b)))
		if _, err := e.d.ReadAt(b[:n], e.rd.g.offset(c)); err != nil {
			return err
		}
		_, _ = h.Write(b[:n])
		size -= n
	}
	if got := h.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("sha256 is %x; what was written has %x: the medium does not keep what it is given", got[:4], want[:4])
	}
	return nil
}

// link chains the clusters, in both tables.
func (e *Editor) link(clusters []uint32) error {
	next := map[uint32]uint32{}
	for i, c := range clusters {
		e.rd.used[c] = true
		next[c] = endOfChain
		if i+1 < len(clusters) {
			next[c] = clusters[i+1]
		}
	}
	return e.setTable(next)
}

// setTable changes table entries, sector by sector, and makes them durable.
func (e *Editor) setTable(set map[uint32]uint32) error {
	if len(set) == 0 {
		return nil
	}
	le := binary.LittleEndian
	touched := map[int64]bool{}
	for c, v := range set {
		old := le.Uint32(e.rd.table[4*c:])
		le.PutUint32(e.rd.table[4*c:], v&endOfChain|old&^endOfChain)
		touched[int64(4*c)/sector*sector] = true
	}
	places := make([]int64, 0, len(touched))
	for at := range touched {
		places = append(places, at)
	}
	slices.Sort(places)
	for copyNo := range int64(2) {
		base := (e.rd.g.reserved + copyNo*e.rd.g.fat) * sector
		for i := 0; i < len(places); {
			j := i + 1
			for j < len(places) && places[j] == places[j-1]+sector {
				j++
			}
			if _, err := e.d.WriteAt(e.rd.table[places[i]:places[j-1]+sector], base+places[i]); err != nil {
				return err
			}
			i = j
		}
	}
	return e.d.Sync()
}

func (e *Editor) sector(at int64) ([]byte, error) {
	b := make([]byte, sector)
	_, err := e.d.ReadAt(b, at)
	return b, err
}

// commit writes the one sector that makes a change.
func (e *Editor) commit(b []byte, at int64) error {
	if _, err := e.d.WriteAt(b, at); err != nil {
		return err
	}
	return e.d.Sync()
}

func (e *Editor) repoint(f Found, clusters []uint32, size int64) error {
	at := f.set[len(f.set)-1]
	sectorAt := at / sector * sector
	b, err := e.sector(sectorAt)
	if err != nil {
		return err
	}
	e.point(b[at-sectorAt:], first(clusters), uint32(size))
	return e.commit(b, sectorAt)
}

func (e *Editor) point(entry []byte, first, size uint32) {
	le := binary.LittleEndian
	date, clock := stamp(e.now)
	le.PutUint16(entry[20:], uint16(first>>16))
	le.PutUint16(entry[22:], clock)
	le.PutUint16(entry[24:], date)
	le.PutUint16(entry[26:], uint16(first))
	le.PutUint32(entry[28:], size)
}

// encodeEntry gives the entries of a new name.
func (e *Editor) encodeEntry(d *openDir, base string, first, size uint32) []byte {
	s, long := short(base, d.shorts)
	b := make([]byte, entriesOf(base, long)*dirEntry)
	rest := b
	if long {
		rest = putLong(b, base, checksum(s))
	}
	copy(rest, s)
	rest[11] = attrArchive
	date, clock := stamp(e.now)
	binary.LittleEndian.PutUint16(rest[14:], clock)
	binary.LittleEndian.PutUint16(rest[16:], date)
	binary.LittleEndian.PutUint16(rest[18:], date)
	e.point(rest, first, size)
	return b
}

// freeRun finds n free entries in a row in a sector of a folder, or -1. Behind the end mark all are free.
func freeRun(b []byte, n int) int {
	run, ended := 0, false
	for i := 0; i < len(b); i += dirEntry {
		ended = ended || b[i] == 0
		if !ended && b[i] != 0xe5 {
			run = 0
			continue
		}
		if run++; run == n {
			return i - (n-1)*dirEntry
		}
	}
	return -1
}

// insert puts a set of entries into a folder, in one sector.
func (e *Editor) insert(d *openDir, set []byte) error {
	var ends []int64 // sectors that the end mark makes invisible entries of, once the set lies behind them
	endAt := int64(-1)
	for _, ext := range d.chain {
		for at := ext.offset; at < ext.offset+ext.size; at += sector {
			b, err := e.sector(at)
			if err != nil {
				return err
			}
			if endAt >= 0 {
				clear(b) // whatever lies behind the end mark was never an entry
			}
			if run := freeRun(b, len(set)/dirEntry); run >= 0 {
				end := endOf(b)
				copy(b[run:], set)
				if end >= 0 { // entries between an end mark and the set, and the mark behind it
					for i := end; i < run; i += dirEntry {
						b[i] = 0xe5
					}
					for i := max(end, run+len(set)); i < len(b); i++ {
						b[i] = 0
					}
				}
				return e.place(b, at, ends)
			}
			if endAt < 0 && endOf(b) >= 0 {
				endAt = at
			}
			if endAt >= 0 {
				ends = append(ends, at)
			}
		}
	}
	clusters, err := e.alloc(1)
	if err != nil {
		return err
	}
	b := make([]byte, e.rd.g.cluster)
	copy(b, set)
	if _, err := e.d.WriteAt(b, e.rd.g.offset(clusters[0])); err != nil {
		return err
	}
	if err := e.d.Sync(); err != nil {
		return err
	}
	if err := e.link(clusters); err != nil {
		return err
	}
	for _, at := range slices.Backward(ends) { // the folder is full to its end now
		if err := e.closeGap(at); err != nil {
			return err
		}
	}
	last := d.chain[len(d.chain)-1]
	return e.setTable(map[uint32]uint32{e.rd.g.cluster0(last.offset + last.size - e.rd.g.cluster): clusters[0]})
}

func endOf(b []byte) int {
	for i := 0; i < len(b); i += dirEntry {
		if b[i] == 0 {
			return i
		}
	}
	return -1
}

// place writes the sector with the new set; where an end mark stands before it, taking that away is what makes it visible.
func (e *Editor) place(b []byte, at int64, ends []int64) error {
	if err := e.commit(b, at); err != nil {
		return err
	}
	for _, gap := range slices.Backward(ends) {
		if err := e.closeGap(gap); err != nil {
			return err
		}
	}
	return nil
}

func (e *Editor) closeGap(at int64) error {
	b, err := e.sector(at)
	if err != nil {
		return err
	}
	end := endOf(b)
	if end < 0 {
		return nil
	}
	for i := end; i < len(b); i += dirEntry {
		clear(b[i : i+dirEntry])
		b[i] = 0xe5
	}
	return e.commit(b, at)
}

// tidy frees clusters that nothing names and writes the count of free ones.
func (e *Editor) tidy() error {
	if err := e.reload(); err != nil {
		return err
	}
	le := binary.LittleEndian
	lost := map[uint32]uint32{}
	for c := uint32(rootCluster); int64(c-rootCluster) < e.rd.g.clusters; c++ {
		if v := le.Uint32(e.rd.table[4*c:]) & endOfChain; v != 0 && v != 0x0ffffff7 && !e.rd.used[c] { // not marked bad
			lost[c] = 0
		}
	}
	info, err := e.sector(fsInfoAt * sector)
	if err != nil {
		return err
	}
	if string(info[484:488]) == "rrAa" {
		le.PutUint32(info[488:], uint32(e.Free()/e.rd.g.cluster))
		if _, err := e.d.WriteAt(info, fsInfoAt*sector); err != nil {
			return err
		}
	}
	if len(lost) == 0 {
		return e.d.Sync()
	}
	return e.setTable(lost)
}
