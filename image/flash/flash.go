// Package flash writes disk images onto sticks, cards and disks, and reads them back.
//
// Of an image only what is not zero is written, and zeros where stale bytes of an earlier image could be taken for something:
// at the begin and the end of each partition (a file system's superblock; the manifest of a slot), where the data partition's
// filesystem had copies of its superblock once it had grown to the device's end, and at that end (a second GPT). Everything written is
// read back past the page cache and compared by SHA-256.
package flash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/size"
)

const (
	block    = 64 << 10 // bytes that are skipped or written as one
	chunk    = 4 << 20  // bytes of one write, and of one comparison
	syncEach = 64 << 20 // bytes between two flushes, so that progress is the device's and not the page cache's
	headWipe = 1 << 20  // bytes at the begin of a partition
	tailWipe = 64 << 10 // bytes at the end of a partition (release.TailSize) and of the device
)

// Device is what an image is written to.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error   // everything written is on the medium
	Forget() error // what is read from now on comes from the medium
	Size() int64   // bytes
}

// Progress is told how far the work is: bytes of the image that are behind it.
type Progress func(verifying bool, done, total int64)

// Image is an open disk image, raw or compressed by zstd.
type Image struct {
	Size  int64 // bytes of the disk
	Table *disk.Table

	raw     io.ReadSeeker
	zstd    bool
	content io.Reader
}

var (
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	qcow2Magic = []byte("QFI\xfb")
)

// Open reads the image's partition table. An image without one is refused: it is some other file.
func Open(r io.ReadSeeker) (*Image, error) {
	magic := make([]byte, 4)
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, fmt.Errorf("is not a disk image: it is %w", short(err))
	}
	if bytes.Equal(magic, qcow2Magic) {
		return nil, errors.New("is a qcow2 image, which only virtual machines read; build it with --format raw")
	}
	i := &Image{raw: r, zstd: bytes.Equal(magic, zstdMagic)}
	if err := i.rewind(); err != nil {
		return nil, err
	}
	head := make([]byte, disk.HeadSize)
	if _, err := io.ReadFull(i.content, head); err != nil {
		return nil, fmt.Errorf("is not a disk image: %w", short(err))
	}
	// The table's second copy is far away in a stream. Each copy has its own checksums, and the whole image is compared later.
	i.Size = disk.SizeOf(bytes.NewReader(head), 1<<62)
	if i.Size == 1<<62 {
		return nil, errors.New("is not a disk image: it has no partition table (GPT)")
	}
	first, err := disk.ReadFirst(bytes.NewReader(head), i.Size)
	if err != nil {
		return nil, fmt.Errorf("has a damaged partition table: %w; build or download it again", err)
	}
	i.Table = first
	return i, i.rewind()
}

func short(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("too short")
	}
	return err
}

// rewind starts the content from its first byte.
func (i *Image) rewind() error {
	if _, err := i.raw.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if !i.zstd {
		i.content = i.raw
		return nil
	}
	d, err := zstd.NewReader(i.raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return err
	}
	i.content = d.IOReadCloser()
	return nil
}

// Close ends decompression; the file is the caller's.
func (i *Image) Close() error {
	if c, ok := i.content.(io.Closer); ok && i.zstd {
		return c.Close()
	}
	return nil
}

// Report says what was done.
type Report struct {
	Written int64 `json:"writtenBytes"` // of the image; the rest of it is zero
	Cleared int64 `json:"clearedBytes"` // zeros over what an earlier image could have left
}

// written is a piece to read back.
type written struct {
	at, n int64
	sum   [sha256.Size]byte
}

// Write puts the image on the device and compares. An error leaves a device that does not boot: the table and its second copy are
// written last, and go again if anything fails after that.
func (i *Image) Write(ctx context.Context, d Device, tell Progress) (r Report, err error) {
	if d.Size() < i.Size {
		return r, fmt.Errorf("the image needs %v and the device has %v", size.Bytes(i.Size).Rounded(), size.Bytes(d.Size()).Rounded())
	}
	w := &writer{ctx: ctx, Device: d, report: &r, clear: i.stale(d.Size())}
	// Nothing boots from the device while it is half written, and nobody takes an old table for the new content's.
	tables := [][2]int64{{0, disk.HeadSize}, {max(0, i.Size-tailWipe), i.Size}, {max(i.Size, d.Size()-tailWipe), d.Size()}}
	defer func() {
		if err == nil {
			return
		}
		// Nobody is to take a card for good that is not. One that is gone or broken may not take this either.
		for _, t := range tables {
			_, _ = d.WriteAt(make([]byte, t[1]-t[0]), t[0])
		}
		_ = d.Sync()
	}()
	for _, t := range tables {
		if t[0] == t[1] {
			continue
		}
		if err := w.put(t[0], make([]byte, t[1]-t[0]), true); err != nil {
			return r, err
		}
	}
	if err := w.flush(); err != nil {
		return r, err
	}
	w.pieces, r = nil, Report{}
	if err := w.image(i, tell); err != nil {
		return r, err
	}
	if err := d.Forget(); err != nil {
		return r, err
	}
	return r, w.verify(tell)
}

// stale are the ranges that are written though they are zero; some are behind the image.
func (i *Image) stale(device int64) (ranges [][2]int64) {
	for _, p := range i.Table.Partitions {
		ranges = append(ranges, [2]int64{p.Start, p.Start + min(headWipe, p.Size)}, [2]int64{p.Start + p.Size - min(tailWipe, p.Size), p.Start + p.Size})
		if p.Name == boards.Data { // as large as it was once a machine had started from the device
			for _, c := range datafs.Copies(device - p.Start) {
				ranges = append(ranges, [2]int64{p.Start + c[0], p.Start + c[1]})
			}
		}
	}
	return append(ranges, [2]int64{max(i.Size, device-tailWipe), device})
}

type writer struct {
	Device
	ctx      context.Context
	report   *Report
	clear    [][2]int64
	pieces   []written
	unsynced int64
}

// put writes b at an offset and remembers it for the comparison.
func (w *writer) put(at int64, b []byte, zeros bool) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	n, err := w.WriteAt(b, at)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("writing at byte %d: %w", at+int64(n), err)
	}
	w.pieces = append(w.pieces, written{at, int64(len(b)), sha256.Sum256(b)})
	if zeros {
		w.report.Cleared += int64(len(b))
	} else {
		w.report.Written += int64(len(b))
	}
	if w.unsynced += int64(len(b)); w.unsynced >= syncEach {
		return w.flush()
	}
	return nil
}

func (w *writer) flush() error {
	w.unsynced = 0
	if err := w.Sync(); err != nil {
		return fmt.Errorf("flushing: %w", err)
	}
	return nil
}

// image streams the content. The first chunk and the last block, which hold the table and its second copy, are put last.
func (w *writer) image(i *Image, tell Progress) error {
	buffer := make([]byte, chunk)
	var first, last []byte
	lastAt := max(i.Size-tailWipe, chunk)
	for at := int64(0); at < i.Size; {
		b := buffer[:min(chunk, i.Size-at)]
		if _, err := io.ReadFull(i.content, b); err != nil {
			return fmt.Errorf("the image ends or breaks at byte %d of %d: %w", at, i.Size, short(err))
		}
		next := at + int64(len(b))
		if at == 0 {
			first = bytes.Clone(b)
		} else {
			if keep := next - max(at, lastAt); keep > 0 { // the block may be in two chunks
				last = append(last, b[int64(len(b))-keep:]...)
				b = b[:int64(len(b))-keep]
			}
			if err := w.sparse(at, b); err != nil {
				return err
			}
		}
		at = next
		if tell != nil {
			tell(false, at, i.Size)
		}
	}
	if extra, err := io.CopyN(io.Discard, i.content, 1); extra > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("the image goes on behind byte %d, where its partition table says it ends", i.Size)
	}
	for _, r := range w.clear {
		if from := max(r[0], i.Size); r[1] > from {
			if err := w.put(from, make([]byte, r[1]-from), true); err != nil {
				return err
			}
		}
	}
	// In this order on the medium too: everything, then the end and the begin, with the tables in them.
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.sparse(lastAt, last); err != nil {
		return err
	}
	if err := w.sparse(0, first); err != nil {
		return err
	}
	return w.flush()
}

// sparse writes the blocks of b that are not zero, and those that must not stay as they are.
func (w *writer) sparse(at int64, b []byte) error {
	kind := func(from int) (write, zeros bool) {
		piece := b[from:min(from+block, len(b))]
		if !isZero(piece) {
			return true, false
		}
		return w.mustClear(at+int64(from), int64(len(piece))), true
	}
	for from := 0; from < len(b); {
		write, zeros := kind(from)
		to := min(from+block, len(b))
		for to < len(b) {
			if nextWrite, nextZeros := kind(to); nextWrite != write || nextZeros != zeros {
				break
			}
			to = min(to+block, len(b))
		}
		if write {
			if err := w.put(at+int64(from), b[from:to], zeros); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

func (w *writer) mustClear(at, n int64) bool {
	for _, r := range w.clear {
		if at < r[1] && r[0] < at+n {
			return true
		}
	}
	return false
}

// isZero compares the first byte with zero and the others with the one before: as fast as memory is.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// verify reads every piece back.
func (w *writer) verify(tell Progress) error {
	var total, done int64
	for _, p := range w.pieces {
		total += p.n
	}
	buffer := make([]byte, chunk)
	for _, p := range w.pieces {
		if err := w.ctx.Err(); err != nil {
			return context.Cause(w.ctx)
		}
		b := buffer[:p.n]
		if _, err := w.ReadAt(b, p.at); err != nil {
			return fmt.Errorf("reading back at byte %d: %w", p.at, err)
		}
		if sha256.Sum256(b) != p.sum {
			return fmt.Errorf("bytes %d to %d read back are not the ones written: the medium is worn out, or its size is a lie; use another", p.at, p.at+p.n-1)
		}
		done += p.n
		if tell != nil {
			tell(true, done, total)
		}
	}
	return nil
}
