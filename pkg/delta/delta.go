// Package delta makes little travel of a new root: from a release that the publisher knew, a patch (Diff, Patch); from any other, those
// blocks that a machine does not have (Index, Plan).
//
// A root is EROFS with its hash tree: everything in it lies on blocks of 4 KiB, and a file that grows shifts what follows by
// whole blocks. So the index is a digest of each such block; a block that is anywhere in either slot need not be fetched. No
// chunk ends have to be searched in the content, and none is larger than what changed. (pkg/update/UPDATES.md has the figures,
// with those of content-defined chunks and of zstd's patches.)
//
// A digest here is the first 16 bytes of a SHA-256: what a machine must not be fooled by is the whole root, which is held
// against its own digest, its hash tree and its signature after it was written.
package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the grain.
const BlockSize = 4096

// IndexName is how the index of root.img is called in a repository.
const IndexName = "root.idx"

const digestSize = 16

// Digest names a block.
type Digest [digestSize]byte

// Of is the digest of a block.
func Of(block []byte) Digest {
	sum := sha256.Sum256(block)
	return Digest(sum[:digestSize])
}

// magic starts an index; its last byte is the version: magic, size of the root as big-endian uint64, digests.
var magic = []byte("SKIDX\x00\x00\x01")

// MaxIndexBytes bounds an index before it is read: a root of 8 GiB.
const MaxIndexBytes = 16 + 2<<20*digestSize

// Index is the digests of a root's blocks, in order.
type Index struct {
	Size   int64
	Blocks []Digest
}

// Build reads size bytes, which are whole blocks.
func Build(r io.Reader, size int64) (*Index, error) {
	if size <= 0 || size%BlockSize != 0 {
		return nil, fmt.Errorf("a root of %d bytes is not whole blocks", size)
	}
	x := &Index{Size: size, Blocks: make([]Digest, 0, size/BlockSize)}
	b := make([]byte, 256*BlockSize)
	for left := size; left > 0; {
		n := min(left, int64(len(b)))
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return nil, err
		}
		for i := int64(0); i < n; i += BlockSize {
			x.Blocks = append(x.Blocks, Of(b[i:i+BlockSize]))
		}
		left -= n
	}
	return x, nil
}

// Marshal gives the index as a file.
func (x *Index) Marshal() []byte {
	b := make([]byte, 0, 16+len(x.Blocks)*digestSize)
	b = binary.BigEndian.AppendUint64(append(b, magic...), uint64(x.Size))
	for _, d := range x.Blocks {
		b = append(b, d[:]...)
	}
	return b
}

// Parse reads an index.
func Parse(data []byte) (*Index, error) {
	if len(data) > MaxIndexBytes {
		return nil, fmt.Errorf("block index: is %d bytes; at most %d are read", len(data), MaxIndexBytes)
	}
	body, ok := bytes.CutPrefix(data, magic)
	if !ok || len(body) < 8 {
		return nil, errors.New("block index: is not one that this program reads")
	}
	size := binary.BigEndian.Uint64(body)
	body = body[8:]
	if size == 0 || size%BlockSize != 0 || size > 1<<40 || uint64(len(body)) != size/BlockSize*digestSize {
		return nil, fmt.Errorf("block index: %d bytes of digests do not belong to a root of %d", len(body), size)
	}
	x := &Index{Size: int64(size), Blocks: make([]Digest, size/BlockSize)}
	for i := range x.Blocks {
		copy(x.Blocks[i][:], body[i*digestSize:])
	}
	return x, nil
}

// Source is where a block can be had.
type Source struct {
	From  From
	Block int64 // its number there
}

// From names the places.
type From int

// The places, the cheapest first.
const (
	Fetch  From = iota // nowhere on this machine
	Keep               // in its place already
	Target             // elsewhere in the slot that is written, behind what is written so far
	Other              // in the other slot
)

// Plan says of each block of the new root where it comes from.
type Plan struct {
	Sources []Source
	Fetches int64 // blocks to be fetched
}

// FetchesIn counts the blocks to be fetched from one up to, and without, another.
func (p *Plan) FetchesIn(from, to int64) (n int64) {
	for _, s := range p.Sources[from:to] {
		if s.From == Fetch {
			n++
		}
	}
	return n
}

// NewPlan looks for the blocks of x in target, the slot that is written in rising order, and other, the slot that runs. Either
// may be nil. Blocks are looked at again when they are copied, so a plan from a disk that changes meanwhile does no harm.
func NewPlan(x *Index, target, other io.ReaderAt, targetSize, otherSize int64) (*Plan, error) {
	p := &Plan{Sources: make([]Source, len(x.Blocks))}
	have := map[Digest]Source{}
	want := make(map[Digest]bool, len(x.Blocks))
	for _, d := range x.Blocks {
		want[d] = true
	}
	inPlace := make([]bool, len(x.Blocks))
	behind := map[Digest][]int64{} // places in target, rising
	if err := scan(target, targetSize, func(n int64, d Digest) {
		switch {
		case n < int64(len(x.Blocks)) && x.Blocks[n] == d:
			inPlace[n] = true
			have[d] = Source{Keep, n} // a block that stays serves others too
		case want[d]:
			behind[d] = append(behind[d], n)
		}
	}); err != nil {
		return nil, err
	}
	if err := scan(other, otherSize, func(n int64, d Digest) {
		if _, ok := have[d]; !ok && want[d] {
			have[d] = Source{Other, n}
		}
	}); err != nil {
		return nil, err
	}
	for i, d := range x.Blocks {
		switch s, ok := have[d]; {
		case inPlace[i]:
			p.Sources[i] = Source{Keep, int64(i)}
		case ok && s.From == Keep:
			p.Sources[i] = Source{Target, s.Block}
		case ok:
			p.Sources[i] = s
		default:
			p.Sources[i] = Source{From: Fetch}
			for _, n := range behind[d] {
				if n > int64(i) {
					p.Sources[i] = Source{Target, n}
					break
				}
			}
			if p.Sources[i].From == Fetch {
				// Fetched once, it serves the same block further on.
				have[d] = Source{Keep, int64(i)}
				p.Fetches++
			}
		}
	}
	return p, nil
}

func scan(r io.ReaderAt, size int64, found func(n int64, d Digest)) error {
	if r == nil {
		return nil
	}
	b := make([]byte, 256*BlockSize)
	for at := int64(0); at+BlockSize <= size; at += int64(len(b)) {
		c := b[:min(int64(len(b)), (size-at)/BlockSize*BlockSize)]
		if _, err := r.ReadAt(c, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := 0; i < len(c); i += BlockSize {
			found((at+int64(i))/BlockSize, Of(c[i:i+BlockSize]))
		}
	}
	return nil
}
