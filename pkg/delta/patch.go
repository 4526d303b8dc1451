package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// A patch makes one file out of another that a machine has: the root or the kernel image of a release out of that of an older
// one. Blocks serve files that have much in common byte for byte at the same places of blocks. Between two builds of a program
// nearly every block differs, by a few bytes that name places: what a patch says is what was where, and which bytes are others.
//
// It is read in frames, each of which makes FrameSize bytes: so a broken connection costs one frame, a frame whose blocks are
// there already need not travel, and a machine needs memory for one. What comes out is held against the block index (or the
// digest of a kernel image), so a patch is believed nothing.
//
//	file    magic, size of the old file (big-endian uint64), of the new one (uint64), length of each frame (uint32), frames
//	frame   zstd of: length of the steps, length of the differences (uvarint each), steps, differences, new bytes
//	step    bytes before the copy (uvarint), bytes copied (uvarint), how much further than where the last copy ended, plus the
//	        bytes before this one, the copy begins in the old file (varint)
//
// The bytes before a copy that begins 0 further are differences (mod 256) to the old file's there; else they are new bytes.
// What follows the last copy is new bytes. A frame's first step counts from the frame's own place.
const (
	FrameSize = 4 << 20
	patchHead = 8 + 8 + 8
	// maxFrame bounds a frame in the file, and maxBody what it unpacks to.
	maxFrame = FrameSize + 1<<20
	maxBody  = 3 * FrameSize
	// MaxPatched bounds both files.
	MaxPatched = 2 << 30
)

var patchMagic = []byte("SKPAT\x00\x00\x01")

var errPatch = errors.New("patch: is not one for these files")

// PatchName is how the patch to a file from an older one with a SHA-256 (hexadecimal) is called in a repository.
func PatchName(name, from string) string { return fmt.Sprintf("%s.%.16s.patch", name, from) }

func frames(size int64) int { return int((size + FrameSize - 1) / FrameSize) }

// PatchHead is how many bytes at the beginning of a patch ParsePatch needs, for a new file of size bytes.
func PatchHead(size int64) int64 { return patchHead + 4*int64(frames(size)) }

// Span is a piece of a file, in bytes.
type Span struct{ At, Size int64 }

// Patch is the table of contents of a patch.
type Patch struct {
	old, new int64
	frames   []Span
}

// ParsePatch reads the beginning of a patch that makes a file of size bytes.
func ParsePatch(head []byte, size int64) (*Patch, error) {
	body, ok := bytes.CutPrefix(head, patchMagic)
	if !ok || size <= 0 || size > MaxPatched || int64(len(head)) != PatchHead(size) {
		return nil, errPatch
	}
	p := &Patch{old: int64(binary.BigEndian.Uint64(body)), new: int64(binary.BigEndian.Uint64(body[8:]))}
	if p.old < 0 || p.old > MaxPatched || p.new != size {
		return nil, errPatch
	}
	at := int64(len(head))
	for body = body[16:]; len(body) > 0; body = body[4:] {
		n := int64(binary.BigEndian.Uint32(body))
		if n > maxFrame {
			return nil, errPatch
		}
		p.frames = append(p.frames, Span{at, n})
		at += n
	}
	return p, nil
}

// Frames is how many there are.
func (p *Patch) Frames() int { return len(p.frames) }

// Frame is where frame n is in the patch.
func (p *Patch) Frame(n int) Span { return p.frames[n] }

// Makes is what part of the new file frame n makes.
func (p *Patch) Makes(n int) Span {
	at := int64(n) * FrameSize
	return Span{at, min(FrameSize, p.new-at)}
}

// Apply makes frame n's part of the new file out of the frame and the old file.
func (p *Patch) Apply(n int, frame []byte, old io.ReaderAt) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBody))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	body, err := z.DecodeAll(frame, nil)
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	var lengths [2]int
	for i := range lengths {
		v, k := binary.Uvarint(body)
		if k <= 0 || v > maxBody {
			return nil, errPatch
		}
		lengths[i], body = int(v), body[k:]
	}
	if lengths[0]+lengths[1] > len(body) {
		return nil, errPatch
	}
	steps, diff, fresh := body[:lengths[0]], body[lengths[0]:lengths[0]+lengths[1]], body[lengths[0]+lengths[1]:]
	span := p.Makes(n)
	out := make([]byte, 0, span.Size)
	pages := &pages{r: old, size: p.old, have: map[int64][]byte{}}
	for end := span.At; len(steps) > 0; {
		before, a := binary.Uvarint(steps)
		length, b := binary.Uvarint(steps[max(a, 0):])
		further, c := binary.Varint(steps[max(a, 0)+max(b, 0):])
		room := uint64(span.Size - int64(len(out)))
		if a <= 0 || b <= 0 || c <= 0 || before > room || length > room-before || further > MaxPatched || further < -MaxPatched {
			return nil, errPatch
		}
		steps = steps[a+b+c:]
		if further == 0 {
			if uint64(len(diff)) < before {
				return nil, errPatch
			}
			at := len(out)
			if out, err = pages.appendTo(out, end, int64(before)); err != nil {
				return nil, err
			}
			for i, d := range diff[:before] {
				out[at+i] += d
			}
			diff = diff[before:]
		} else {
			if uint64(len(fresh)) < before {
				return nil, errPatch
			}
			out = append(out, fresh[:before]...)
			fresh = fresh[before:]
		}
		end += int64(before) + further
		if out, err = pages.appendTo(out, end, int64(length)); err != nil {
			return nil, err
		}
		end += int64(length)
	}
	if int64(len(out)+len(fresh)) != span.Size || len(diff) != 0 {
		return nil, errPatch
	}
	return append(out, fresh...), nil
}

// pages reads the many small pieces that a patch asks for from a device that is better read in large ones.
type pages struct {
	r    io.ReaderAt
	size int64
	have map[int64][]byte
}

const (
	pageSize = 64 << 10
	maxPages = 64
)

func (p *pages) appendTo(out []byte, at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || n > p.size || at > p.size-n {
		return nil, errPatch
	}
	for n > 0 {
		page, err := p.page(at / pageSize)
		if err != nil {
			return nil, err
		}
		part := page[at%pageSize:]
		part = part[:min(int64(len(part)), n)]
		out = append(out, part...)
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return out, nil
}

func (p *pages) page(number int64) ([]byte, error) {
	if b, ok := p.have[number]; ok {
		return b, nil
	}
	if len(p.have) == maxPages {
		for old := range p.have { // any
			delete(p.have, old)
			break
		}
	}
	b := make([]byte, min(pageSize, p.size-number*pageSize))
	if n, err := p.r.ReadAt(b, number*pageSize); n < len(b) {
		return nil, fmt.Errorf("patch: reading the old file: %w", err)
	}
	p.have[number] = b
	return b, nil
}

// seed is how many equal bytes make a place in the old file worth a look, and short how many make going on where the last copy
// ended worth a step.
const (
	seed  = 12
	short = 6
)

// Diff writes the patch that makes after out of before. It needs memory for both, and for an index of about as much as before.
func Diff(w io.Writer, before, after []byte) error {
	if int64(len(before)) > MaxPatched || int64(len(after)) > MaxPatched || len(after) == 0 {
		return fmt.Errorf("patch: files of %d and %d bytes; at most %d, and not empty", len(before), len(after), int64(MaxPatched))
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(FrameSize), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	defer z.Close()
	x := newPlaces(before)
	head := append(bytes.Clone(patchMagic), make([]byte, 16)...)
	binary.BigEndian.PutUint64(head[8:], uint64(len(before)))
	binary.BigEndian.PutUint64(head[16:], uint64(len(after)))
	var all [][]byte
	for at := 0; at < len(after); at += FrameSize {
		frame := z.EncodeAll(x.frame(after[at:min(at+FrameSize, len(after))], at), nil)
		head = binary.BigEndian.AppendUint32(head, uint32(len(frame)))
		all = append(all, frame)
	}
	for _, b := range append([][]byte{head}, all...) {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// places finds where in a file something was.
type places struct {
	data  []byte
	shift uint
	table []uint32 // by hash: a place, plus one
}

func newPlaces(data []byte) *places {
	width := min(max(bits.Len(uint(len(data)))-2, 8), 26)
	x := &places{data: data, shift: uint(64 - width), table: make([]uint32, 1<<width)}
	for i := 0; i+seed <= len(data); i++ {
		x.table[x.hash(data[i:])] = uint32(i) + 1
	}
	return x
}

// hash takes seed bytes.
func (x *places) hash(b []byte) uint64 {
	const a, c = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F // primes that mix well
	return (binary.LittleEndian.Uint64(b) ^ uint64(binary.LittleEndian.Uint32(b[8:]))*a) * c >> x.shift
}

// equal counts the bytes that b and the file at a place have in common.
func (x *places) equal(b []byte, at int) int {
	if at < 0 || at >= len(x.data) {
		return 0
	}
	old := x.data[at:]
	n := min(len(b), len(old))
	i := 0
	for i+8 <= n {
		if d := binary.LittleEndian.Uint64(b[i:]) ^ binary.LittleEndian.Uint64(old[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
		i += 8
	}
	for i < n && b[i] == old[i] {
		i++
	}
	return i
}

// frame describes b, which lies at a place of the new file.
func (x *places) frame(b []byte, at int) []byte {
	var steps, diff, fresh []byte
	done, end := 0, at // what is described of b, and where in the old file the last copy ended
	for i := 0; i+seed <= len(b); {
		from := end + i - done
		n := x.equal(b[i:], from)
		if n < short {
			n = 0
		}
		if n < 64 {
			if p := int(x.table[x.hash(b[i:])]) - 1; p >= 0 {
				if k := x.equal(b[i:], p); k >= max(seed, n+short) {
					n, from = k, p
				}
			}
		}
		if n == 0 {
			i++
			continue
		}
		for i > done && from > 0 && b[i-1] == x.data[from-1] {
			i, from, n = i-1, from-1, n+1
		}
		further := from - (end + i - done)
		if further == 0 {
			for k, v := range b[done:i] {
				diff = append(diff, v-x.data[end+k])
			}
		} else {
			fresh = append(fresh, b[done:i]...)
		}
		steps = binary.AppendUvarint(steps, uint64(i-done))
		steps = binary.AppendUvarint(steps, uint64(n))
		steps = binary.AppendVarint(steps, int64(further))
		i += n
		done, end = i, from+n
	}
	fresh = append(fresh, b[done:]...)
	out := binary.AppendUvarint(nil, uint64(len(steps)))
	out = binary.AppendUvarint(out, uint64(len(diff)))
	return append(append(append(out, steps...), diff...), fresh...)
}
