package image

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Run is a piece of a disk.
type Run struct {
	Offset int64
	Data   []byte
}

// grain is in what pieces two disks are compared: a sector.
const grain = 512

// Diff gives what must be written over the disk of base to make it the disk of p. Both are of one release, board and size: what
// differs then is what was made here, some KiB of tables and the config partition's files.
func (p *Plan) Diff(base *Plan) ([]Run, error) {
	if p.Size != base.Size || p.Manifest != base.Manifest || p.Board != base.Board {
		return nil, errors.New("the two images are not of one release, board and size")
	}
	ours, theirs := p.sectors(base), base.sectors(p)
	var at []int64
	for s := range ours {
		at = append(at, s)
	}
	for s := range theirs {
		if _, both := ours[s]; !both {
			at = append(at, s)
		}
	}
	slices.Sort(at)
	var runs []Run
	zero := make([]byte, grain)
	for _, s := range at {
		want, has := ours[s]
		was, had := theirs[s]
		if !has {
			want = zero
		}
		if !had {
			was = zero
		}
		if bytes.Equal(want, was) {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].Offset+int64(len(runs[last].Data)) == s {
			runs[last].Data = append(runs[last].Data, want...)
			continue
		}
		runs = append(runs, Run{s, bytes.Clone(want)})
	}
	return runs, p.sameFiles(base)
}

// sectors are those that p has bytes of its own in, but for extents that other has too.
func (p *Plan) sectors(other *Plan) map[int64][]byte {
	type key struct {
		at, size int64
		sum      string
	}
	theirs := map[key]bool{}
	for _, e := range other.Extents {
		theirs[key{e.Offset, e.Size, e.SHA256}] = true
	}
	out := map[int64][]byte{}
	for _, e := range p.Extents {
		if e.data == nil || theirs[key{e.Offset, e.Size, e.SHA256}] {
			continue
		}
		for from := int64(0); from < e.Size; from += grain {
			b := e.data[from:min(from+grain, e.Size)]
			if len(b) < grain { // a file's end: the rest of its cluster is zeros
				b = append(bytes.Clone(b), make([]byte, grain-len(b))...)
			}
			out[e.Offset+from] = b
		}
	}
	return out
}

// sameFiles makes sure that both disks have the release's files at the same places.
func (p *Plan) sameFiles(base *Plan) error {
	files := func(p *Plan) (out []Extent) {
		for _, e := range p.Extents {
			if e.file != "" {
				out = append(out, Extent{Offset: e.Offset, Size: e.Size, SHA256: e.SHA256})
			}
		}
		return out
	}
	if !slices.EqualFunc(files(p), files(base), func(a, b Extent) bool { return a.Offset == b.Offset && a.Size == b.Size && a.SHA256 == b.SHA256 }) {
		return fmt.Errorf("board %s: two images of one release have its files at different places", p.Board)
	}
	return nil
}
