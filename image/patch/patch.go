// Package patch is a disk image as what it has that another, its base, has not: some KiB for each machine of a fleet beside one
// image for all. A patch is laid over its base while that is read, so that whoever writes or inspects it sees one whole disk.
//
// The file: magic, SHA-256 of what follows, length of the header as big-endian uint32, header in JSON, the bytes of its runs.
package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
)

// magic starts a patch; its last byte is the version.
var magic = []byte("SKPATCH\x01")

// MaxBytes bounds a patch before it is read.
const MaxBytes = 64 << 20

// Patch is one machine's disk over a base.
type Patch struct {
	Base string      // file name of the base, in the folder above the patch's
	GUID disk.GUID   // of the base's disk, so that no patch goes onto another base
	Size int64       // bytes of the disk
	Runs []image.Run // by offset
}

type header struct {
	Base string     `json:"base"`
	GUID string     `json:"guid"`
	Size int64      `json:"size"`
	Runs [][2]int64 `json:"runs"` // offset and length
}

// Is says whether data begins a patch.
func Is(data []byte) bool { return bytes.HasPrefix(data, magic) }

// Marshal gives the file.
func (p *Patch) Marshal() ([]byte, error) {
	h := header{Base: p.Base, GUID: p.GUID.String(), Size: p.Size}
	for _, r := range p.Runs {
		h.Runs = append(h.Runs, [2]int64{r.Offset, int64(len(r.Data))})
	}
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	body.Write(binary.BigEndian.AppendUint32(nil, uint32(len(head)))) //nolint:gosec // some KiB
	body.Write(head)
	for _, r := range p.Runs {
		body.Write(r.Data)
	}
	sum := sha256.Sum256(body.Bytes())
	return bytes.Join([][]byte{magic, sum[:], body.Bytes()}, nil), nil
}

// Parse reads a patch. One that is cut or changed is refused.
func Parse(data []byte) (*Patch, error) {
	rest, ok := bytes.CutPrefix(data, magic)
	if !ok || len(rest) < sha256.Size+4 {
		return nil, errors.New("is not a node of a fleet, or cut")
	}
	body := rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errors.New("is damaged; build the fleet again")
	}
	n := int64(binary.BigEndian.Uint32(body))
	if n > int64(len(body))-4 {
		return nil, errors.New("is damaged; build the fleet again")
	}
	var h header
	if err := json.Unmarshal(body[4:4+n], &h); err != nil {
		return nil, fmt.Errorf("is damaged: %w", err)
	}
	p := &Patch{Base: h.Base, Size: h.Size}
	guid, err := disk.ParseGUID(h.GUID)
	if err != nil {
		return nil, err
	}
	p.GUID = guid
	left := body[4+n:]
	last := int64(0)
	for _, r := range h.Runs {
		if r[0] < last || r[1] < 0 || r[1] > int64(len(left)) || r[0] > h.Size-r[1] {
			return nil, errors.New("has a piece that lies outside of its disk")
		}
		p.Runs = append(p.Runs, image.Run{Offset: r[0], Data: left[:r[1]:r[1]]})
		left, last = left[r[1]:], r[0]+r[1]
	}
	if len(left) > 0 {
		return nil, errors.New("has bytes that belong nowhere")
	}
	return p, nil
}

// Over lays the patch over its base.
func (p *Patch) Over(base io.ReaderAt, size int64) (*io.SectionReader, error) {
	if size != p.Size {
		return nil, fmt.Errorf("%s has %d bytes and the node is for one of %d; build the fleet again", p.Base, size, p.Size)
	}
	table, err := disk.ReadFirst(base, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Base, err)
	}
	if table.GUID != p.GUID {
		return nil, fmt.Errorf("%s is another image than the one that the node was made for; build the fleet again", p.Base)
	}
	return io.NewSectionReader(&over{p, base}, 0, size), nil
}

type over struct {
	p    *Patch
	base io.ReaderAt
}

// ReadAt reads the base, and then what the runs put in its place.
func (o *over) ReadAt(b []byte, at int64) (int, error) {
	n, err := o.base.ReadAt(b, at)
	got := b[:n]
	runs := o.p.Runs
	for i := sort.Search(len(runs), func(i int) bool { return runs[i].Offset+int64(len(runs[i].Data)) > at }); i < len(runs) && runs[i].Offset < at+int64(n); i++ {
		r := runs[i]
		if r.Offset >= at {
			copy(got[r.Offset-at:], r.Data)
		} else {
			copy(got, r.Data[at-r.Offset:])
		}
	}
	return n, err
}
