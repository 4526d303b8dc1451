package linux

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/skerry-os/skerry/image/disk"
)

// growAlign is what the end of a grown partition is aligned to, for the sake of flash.
const growAlign = 1 << 20

// ReadWriterAt is a disk.
type ReadWriterAt interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// GrowLast makes the partition called name, the last of the GPT, reach to the end of a disk of size bytes. It returns the
// partition's number and place, and whether the table was changed. A copy of the table that is damaged or, after the disk
// grew, not at its end is written anew.
//
// The copy at the end is written and made durable before the one at the start, so that a disk whose power fails has a whole
// table at any instant: before, the old one at the start; after, either.
func GrowLast(d ReadWriterAt, size int64, name string) (num int, p disk.Partition, grown bool, err error) {
	return GrowLastTo(d, size, name, 0)
}

// GrowLastTo is GrowLast for a partition that is to have no more than most bytes; 0 is all there is. It never shrinks one.
func GrowLastTo(d ReadWriterAt, size int64, name string, most int64) (num int, p disk.Partition, grown bool, err error) {
	size -= size % disk.Sector
	t, err := disk.Read(d, size)
	if t == nil {
		return 0, p, false, err
	}
	if len(t.Partitions) == 0 {
		return 0, p, false, errors.New("the partition table is empty")
	}
	last := &t.Partitions[len(t.Partitions)-1]
	for _, other := range t.Partitions {
		if other.Start > last.Start {
			return 0, p, false, fmt.Errorf("partition %s is not the last on the disk, %s is", last.Name, other.Name)
		}
	}
	if last.Name != name {
		return 0, p, false, fmt.Errorf("the last partition is %s and not %s", last.Name, name)
	}
	t.Size = size
	end := (size - t.TailSize()) / growAlign * growAlign
	if most > 0 {
		end = min(end, (last.Start+most)/growAlign*growAlign)
	}
	if end > last.Start+last.Size {
		last.Size = end - last.Start
	}
	head, tail, err := t.Encode()
	if err != nil {
		return 0, p, false, err
	}
	for _, w := range []struct {
		data []byte
		at   int64
	}{{tail, size - t.TailSize()}, {head, 0}} {
		wrote, err := writeIfNew(d, w.data, w.at)
		if err != nil {
			return 0, p, grown, fmt.Errorf("writing the partition table at %d: %w", w.at, err)
		}
		grown = grown || wrote
	}
	return len(t.Partitions), *last, grown, nil
}

func writeIfNew(d ReadWriterAt, data []byte, at int64) (bool, error) {
	have := make([]byte, len(data))
	if _, err := d.ReadAt(have, at); err == nil && bytes.Equal(have, data) {
		return false, nil
	}
	if _, err := d.WriteAt(data, at); err != nil {
		return false, err
	}
	return true, d.Sync()
}
