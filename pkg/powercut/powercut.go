// Package powercut proves what code that writes to a disk promises of a lost plug: it records every write and flush that the
// code makes, and then shows a test the disk as every possible cut leaves it.
//
// What a cut may leave follows from what a disk promises: what was written before the last completed flush is there. Of what
// was written since, any part may be there, in any order, and a single write may be torn between sectors. A sector itself is
// old or new.
package powercut

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
)

// Sector is what a disk writes as a whole.
const Sector = 512

// Disk is a disk in memory that can record what is done to it. It is the Device that image/fat and pkg/update write to.
type Disk struct {
	data      []byte
	recording bool
	start     []byte // the content when recording began
	log       []op
}

type op struct {
	kind byte // 'w', 's' for a flush, 'm' for a mark
	at   int64
	data []byte
	note string
	// through is for a write that is done when the disk has it (FUA). It is no flush: what was written before may still be missing.
	through bool
}

// New makes a disk that holds data, which becomes its own.
func New(data []byte) *Disk { return &Disk{data: data} }

// Size is the disk's.
func (d *Disk) Size() int64 { return int64(len(d.data)) }

// Bytes is the content, as it is now.
func (d *Disk) Bytes() []byte { return d.data }

// Record begins to record.
func (d *Disk) Record() { d.start, d.log, d.recording = append([]byte(nil), d.data...), nil, true }

// ReadAt reads.
func (d *Disk) ReadAt(b []byte, at int64) (int, error) { return readAt(d.data, b, at) }

func readAt(data, b []byte, at int64) (int, error) {
	if at < 0 || at > int64(len(data)) {
		return 0, fmt.Errorf("offset %d is not on a disk of %d bytes", at, len(data))
	}
	n := copy(b, data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes whole sectors, as disks do.
func (d *Disk) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at%Sector != 0 || len(b)%Sector != 0 || at+int64(len(b)) > int64(len(d.data)) {
		return 0, fmt.Errorf("%d bytes at %d are not sectors of a disk of %d", len(b), at, len(d.data))
	}
	copy(d.data[at:], b)
	if d.recording {
		d.log = append(d.log, op{kind: 'w', at: at, data: append([]byte(nil), b...)})
	}
	return len(b), nil
}

// Sync flushes.
func (d *Disk) Sync() error {
	if d.recording {
		d.log = append(d.log, op{kind: 's'})
	}
	return nil
}

// Mark notes that something became durable elsewhere at this moment: a cut after it has it, one before has not.
func (d *Disk) Mark(note string) {
	if d.recording {
		d.log = append(d.log, op{kind: 'm', note: note})
	}
}

// Part is a range of a disk, as a partition is.
type Part struct {
	D interface {
		io.ReaderAt
		io.WriterAt
		Sync() error
	}
	At, Len int64
}

// ReadAt reads.
func (p Part) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at > p.Len {
		return 0, fmt.Errorf("offset %d is outside a partition of %d bytes", at, p.Len)
	}
	short := false
	if at+int64(len(b)) > p.Len {
		b, short = b[:p.Len-at], true
	}
	n, err := p.D.ReadAt(b, p.At+at)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes.
func (p Part) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > p.Len {
		return 0, fmt.Errorf("%d bytes at %d are outside a partition of %d", len(b), at, p.Len)
	}
	return p.D.WriteAt(b, p.At+at)
}

// Sync flushes the disk.
func (p Part) Sync() error { return p.D.Sync() }

// Size is the partition's.
func (p Part) Size() int64 { return p.Len }

// Cut is one way the disk may be left.
type Cut struct {
	What      string // for messages, and the same for the same seed
	Last      string // the last mark before it
	Operation int    // nothing later than this operation, counted from 1, is there
	data      []byte
}

// Part gives the bytes of a range of the disk, not to be written to. They are valid until the visit returns.
func (c Cut) Part(at, size int64) []byte { return c.data[at : at+size] }

// Disk gives the disk after the cut; what is written to it is forgotten. It is valid until the visit returns.
func (c Cut) Disk() *After { return &After{base: c.data, changed: map[int64][]byte{}} }

// After is a disk after a cut.
type After struct {
	base    []byte
	changed map[int64][]byte
}

// ReadAt reads.
func (a *After) ReadAt(b []byte, at int64) (int, error) {
	n, err := readAt(a.base, b, at)
	if len(a.changed) > 0 {
		for s := at / Sector * Sector; s < at+int64(n); s += Sector {
			if c := a.changed[s]; c != nil {
				from := max(s, at)
				copy(b[from-at:n], c[from-s:])
			}
		}
	}
	return n, err
}

// WriteAt writes.
func (a *After) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at%Sector != 0 || len(b)%Sector != 0 || at+int64(len(b)) > int64(len(a.base)) {
		return 0, fmt.Errorf("%d bytes at %d are not sectors of a disk of %d", len(b), at, len(a.base))
	}
	for i := 0; i < len(b); i += Sector {
		a.changed[at+int64(i)] = append([]byte(nil), b[i:i+Sector]...)
	}
	return len(b), nil
}

// Sync does nothing.
func (a *After) Sync() error { return nil }

// Size is the disk's.
func (a *After) Size() int64 { return int64(len(a.base)) }

// Cuts shows visit the disk as each cut may leave it, and gives their number: after every single operation all that was
// written so far; and between any two flushes, tries ways chosen by seed in which some sectors of what was not yet flushed are
// there and some are not. visit may be called with the same content more than once.
func (d *Disk) Cuts(seed uint64, tries int, visit func(Cut)) int {
	d.recording = false
	img := append([]byte(nil), d.start...)
	r := rand.New(rand.NewPCG(seed, 1))
	count, last := 0, ""
	show := func(operation int, what string) {
		count++
		visit(Cut{What: what, Last: last, Operation: operation, data: img})
	}
	show(0, "before the first write")
	for i := 0; i < len(d.log); {
		// One epoch: up to and with the next flush or mark.
		j := i
		for j < len(d.log) && d.log[j].kind == 'w' {
			j++
		}
		writes := d.log[i:j]
		if len(writes) > 0 {
			for k := range tries {
				undo := d.some(img, writes, r)
				show(j, fmt.Sprintf("operations %d to %d, some of them (way %d of seed %d)", i+1, j, k+1, seed))
				undo()
			}
		}
		for k, w := range writes {
			copy(img[w.at:], w.data)
			show(i+k+1, fmt.Sprintf("after operation %d", i+k+1))
		}
		if j < len(d.log) {
			if d.log[j].kind == 'm' {
				last = d.log[j].note
				show(j+1, fmt.Sprintf("after operation %d (%s)", j+1, last))
			}
			j++
		}
		i = j
	}
	return count
}

// some applies part of the writes: their order does not count, but of two to one sector the later may not be lost and the
// earlier kept by anything but chance. It gives the way back.
func (d *Disk) some(img []byte, writes []op, r *rand.Rand) (undo func()) {
	type saved struct {
		at   int64
		data [Sector]byte
	}
	var old []saved
	put := func(w op, s int) {
		o := saved{at: w.at + int64(s)}
		copy(o.data[:], img[o.at:])
		old = append(old, o)
		copy(img[o.at:], w.data[s:s+Sector])
	}
	if slices.ContainsFunc(writes, func(w op) bool { return w.through }) {
		writes = writes[:1+r.IntN(len(writes))] // the last of these was on its way when the power went
	}
	share := r.Float64()
	for _, i := range r.Perm(len(writes)) {
		w := writes[i]
		torn := r.IntN(3) == 0
		whole := r.Float64() < share
		for s := 0; s < len(w.data); s += Sector {
			if torn && r.Float64() >= share || !torn && !whole {
				continue
			}
			put(w, s)
		}
	}
	for _, w := range writes[:max(0, len(writes)-1)] {
		for s := 0; w.through && s < len(w.data); s += Sector {
			put(w, s)
		}
	}
	return func() {
		for i := len(old) - 1; i >= 0; i-- { // the first copy of a sector is the one of before
			copy(img[old[i].at:], old[i].data[:])
		}
	}
}

// Operations is how many writes and flushes were recorded.
func (d *Disk) Operations() int { return len(d.log) }
