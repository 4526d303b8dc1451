package cloud

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// The one shape of qcow2 written here: version 3, clusters of 64 KiB, refcounts of 16 bits, no compression, no snapshots.
const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	l2Entries   = cluster / 8
	refEntries  = cluster / 2
	magic       = "QFI\xfb"
	copied      = 1 << 63 // in a table's entry: the cluster belongs to it alone
	offsetMask  = 0x00fffffffffffe00
	headerLen   = 104
)

// maxDisk bounds what is read and written: the tables of 64 TiB are 64 MiB.
const maxDisk = 64 << 40

// qcow2 writes a disk as a qcow2 file. It is an io.WriterAt of the disk; Close writes the tables.
type qcow2 struct {
	w    io.WriterAt
	size int64
	l1   []uint64            // disk offset / (cluster * l2Entries) -> file offset of the level-2 table
	l2   map[uint64][]uint64 // by index in l1
	next int64               // the first free byte of the file
}

// newQCOW2 starts a file that holds a disk of size bytes. Clusters are taken in the order they are written, so the same
// writes give the same file.
func newQCOW2(w io.WriterAt, size int64) (*qcow2, error) {
	if size <= 0 || size%512 != 0 || size > maxDisk {
		return nil, fmt.Errorf("qcow2: a disk of %d bytes is not whole sectors, or more than 64 TiB", size)
	}
	q := &qcow2{w: w, size: size, l2: map[uint64][]uint64{}}
	q.l1 = make([]uint64, (size+cluster*l2Entries-1)/(cluster*l2Entries))
	q.next = cluster + up(int64(len(q.l1))*8) // behind the header and the level-1 table
	return q, nil
}

func up(n int64) int64 { return (n + cluster - 1) &^ (cluster - 1) }

// WriteAt writes to the disk.
func (q *qcow2) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || int64(len(b)) > q.size-off {
		return 0, fmt.Errorf("qcow2: write of %d bytes at %d, outside the disk of %d", len(b), off, q.size)
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		n := min(len(b)-done, int(cluster-at%cluster))
		place, fresh := q.place(uint64(at / cluster))
		if fresh && n < cluster {
			// The rest of the cluster must read as zeros, also when the file was used before.
			if _, err := q.w.WriteAt(make([]byte, cluster), place); err != nil {
				return done, err
			}
		}
		if _, err := q.w.WriteAt(b[done:done+n], place+at%cluster); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// place finds or takes the file's cluster for the disk's.
func (q *qcow2) place(c uint64) (offset int64, fresh bool) {
	i, j := c/l2Entries, c%l2Entries
	t := q.l2[i]
	if t == nil {
		t = make([]uint64, l2Entries)
		q.l2[i], q.l1[i] = t, uint64(q.take())|copied
	}
	if t[j] == 0 {
		t[j], fresh = uint64(q.take())|copied, true
	}
	return int64(t[j] & offsetMask), fresh
}

func (q *qcow2) take() int64 {
	at := q.next
	q.next += cluster
	return at
}

// Close writes the tables and the header. The file that was given stays open.
func (q *qcow2) Close() error {
	for i, t := range q.l2 {
		if err := q.put(t, int64(q.l1[i]&offsetMask)); err != nil {
			return err
		}
	}
	if err := q.put(q.l1, cluster); err != nil {
		return err
	}
	// Every cluster of the file, those of the refcounts included, is counted once.
	used := q.next / cluster
	var blocks, tables int64
	for {
		total := used + blocks + tables
		b := (total + refEntries - 1) / refEntries
		t := (b*8 + cluster - 1) / cluster
		if b == blocks && t == tables {
			break
		}
		blocks, tables = b, t
	}
	tableAt := q.next
	blockAt := tableAt + tables*cluster
	table := make([]uint64, tables*cluster/8)
	counts := make([]byte, blocks*cluster)
	for i := range blocks {
		table[i] = uint64(blockAt + i*cluster)
	}
	for i := range used + blocks + tables {
		binary.BigEndian.PutUint16(counts[2*i:], 1)
	}
	if err := q.put(table, tableAt); err != nil {
		return err
	}
	if _, err := q.w.WriteAt(counts, blockAt); err != nil {
		return err
	}
	_, err := q.w.WriteAt(q.header(tableAt, tables), 0)
	return err
}

func (q *qcow2) put(t []uint64, at int64) error {
	b := make([]byte, up(int64(len(t))*8))
	for i, v := range t {
		binary.BigEndian.PutUint64(b[8*i:], v)
	}
	_, err := q.w.WriteAt(b, at)
	return err
}

func (q *qcow2) header(refTable, refClusters int64) []byte {
	be := binary.BigEndian
	h := make([]byte, cluster)
	copy(h, magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(q.size))
	be.PutUint32(h[36:], uint32(len(q.l1)))
	be.PutUint64(h[40:], cluster)
	be.PutUint64(h[48:], uint64(refTable))
	be.PutUint32(h[56:], uint32(refClusters))
	be.PutUint32(h[96:], 4) // refcounts of 1<<4 bits
	be.PutUint32(h[100:], headerLen)
	return h
}

// qcow2Reader reads the disk in a qcow2 file of the shape above, whoever wrote it.
type qcow2Reader struct {
	r    io.ReaderAt
	size int64
	mu   sync.Mutex // over the tables
	l1   []uint64
	l2   map[uint64][]uint64
}

// openQCOW2 reads header and tables.
func openQCOW2(r io.ReaderAt) (*qcow2Reader, error) {
	h := make([]byte, headerLen)
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, fmt.Errorf("qcow2: reading the header: %w", err)
	}
	be := binary.BigEndian
	size, l1, l1At := be.Uint64(h[24:]), int64(be.Uint32(h[36:])), be.Uint64(h[40:])
	switch {
	case string(h[:4]) != magic || be.Uint32(h[4:]) != 3 || be.Uint32(h[20:]) != clusterBits:
		return nil, errors.New("qcow2: is not version 3 with clusters of 64 KiB")
	case be.Uint64(h[8:]) != 0 || be.Uint32(h[32:]) != 0 || be.Uint64(h[72:])&^1 != 0:
		return nil, errors.New("qcow2: has a backing file, encryption or features that are not read here")
	case size == 0 || size > maxDisk || l1 < int64((size+cluster*l2Entries-1)/(cluster*l2Entries)) || l1 > maxDisk/(cluster*l2Entries) || l1At > math.MaxInt64/2:
		return nil, fmt.Errorf("qcow2: a disk of %d bytes with %d level-1 entries makes no sense", size, l1)
	}
	rd := &qcow2Reader{r: r, size: int64(size), l2: map[uint64][]uint64{}}
	var err error
	if rd.l1, err = rd.table(int64(l1At), l1); err != nil {
		return nil, err
	}
	return rd, nil
}

// Size is that of the disk.
func (rd *qcow2Reader) Size() int64 { return rd.size }

func (rd *qcow2Reader) table(at, n int64) ([]uint64, error) {
	b := make([]byte, 8*n)
	if _, err := rd.r.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("qcow2: reading a table at %d: %w", at, err)
	}
	t := make([]uint64, n)
	for i := range t {
		t[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return t, nil
}

// ReadAt reads from the disk.
func (rd *qcow2Reader) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: offset %d", off)
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		if at >= rd.size {
			return done, io.EOF
		}
		n := int(min(int64(len(b)-done), cluster-at%cluster, rd.size-at))
		place, err := rd.place(uint64(at / cluster))
		if err != nil {
			return done, err
		}
		part := b[done : done+n]
		if place == 0 {
			clear(part)
		} else if k, err := rd.r.ReadAt(part, place+at%cluster); k < n {
			return done, fmt.Errorf("qcow2: reading the cluster at %d: %w", place, err)
		}
		done += n
	}
	return done, nil
}

func (rd *qcow2Reader) place(c uint64) (int64, error) {
	rd.mu.Lock()
	defer rd.mu.Unlock()
	i := c / l2Entries
	t := rd.l2[i]
	if t == nil {
		at := rd.l1[i] & offsetMask
		if at == 0 {
			return 0, nil
		}
		var err error
		if t, err = rd.table(int64(at), l2Entries); err != nil {
			return 0, err
		}
		rd.l2[i] = t
	}
	e := t[c%l2Entries]
	switch {
	case e&(1<<62) != 0:
		return 0, errors.New("qcow2: holds compressed clusters, which are not read here")
	case e&1 != 0:
		return 0, nil // zeros, whatever the cluster holds
	}
	return int64(e & offsetMask), nil
}
