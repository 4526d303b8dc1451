package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/pkg/delta"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
)

const (
	block = delta.BlockSize
	// pieceBlocks is how much is written at once.
	pieceBlocks = 256
	// gapBlocks is what may travel in vain so that one request does where two would.
	gapBlocks = 4
	// syncEvery bounds what a cut connection or a lost plug costs.
	syncEvery = 16 << 20
	// tries and pause are for connections that break.
	tries = 5
	pause = 2 * time.Second
)

// errContent means that the source sent something else than what was asked for.
var errContent = errors.New("what came is not what the block index says")

// retry does f again when a connection breaks, but not when what came is wrong or the disk is full.
func retry(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || n == tries || errors.Is(err, repository.ErrUntrusted) || errors.Is(err, slot.ErrNoRoom) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(n) * pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writer brings a root into a slot.
type writer struct {
	ctx     context.Context
	p       *repository.Package
	dev     Device
	other   Device
	from    string // digest of the root in other; "" if it is not known
	now     func() time.Time
	fetched int64
	dirty   int64
}

// root writes what is not there yet. Called again after an interruption, it goes on where it was: what was written is in its
// place and need not travel again.
func (w *writer) root() error {
	var otherSize int64
	var other io.ReaderAt
	if w.other != nil {
		other, otherSize = w.other, min(w.other.Size(), w.reach())
	}
	x := w.p.Index
	plan, err := delta.NewPlan(x, w.dev, other, min(w.dev.Size(), w.reach()), otherSize)
	if err != nil {
		return err
	}
	switch done, err := w.patched(plan); {
	case err != nil:
		return err
	case done:
		if plan, err = delta.NewPlan(x, w.dev, other, min(w.dev.Size(), w.reach()), otherSize); err != nil {
			return err
		}
	}
	if plan.Fetches*10 > int64(len(x.Blocks))*9 {
		// Nearly all of it: the compressed file is smaller. If the connection breaks, blocks do for the rest.
		if err := w.whole(); err == nil {
			return nil
		} else if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		if plan, err = delta.NewPlan(x, w.dev, other, min(w.dev.Size(), w.reach()), otherSize); err != nil {
			return err
		}
	}
	for i := int64(0); i < int64(len(x.Blocks)); {
		j := i + 1
		s := plan.Sources[i]
		switch s.From {
		case delta.Keep:
			i = j
			continue
		case delta.Fetch:
			last := i // the last block that must be fetched
			for j < int64(len(x.Blocks)) && j-last <= gapBlocks && j-i < pieceBlocks {
				if plan.Sources[j].From == delta.Fetch {
					last = j
				}
				j++
			}
			j = last + 1
			err = w.fetch(i, j)
		default:
			for j < int64(len(x.Blocks)) && plan.Sources[j].From == s.From && plan.Sources[j].Block == s.Block+j-i && j-i < pieceBlocks {
				j++
			}
			err = w.copy(i, j, s)
		}
		if err != nil {
			return err
		}
		i = j
	}
	return w.dev.Sync()
}

// reach is how far into a slot it is worth to look: roots of one line of releases are about as large, and partitions are larger.
func (w *writer) reach() int64 { return w.p.Index.Size + w.p.Index.Size/4 }

// patched makes what it can of the root out of the one that runs, where a patch is less than the blocks. Whatever fails leaves
// the rest to the blocks, but for a slot that cannot be written.
func (w *writer) patched(plan *delta.Plan) (done bool, err error) {
	if w.other == nil || w.from == "" || plan.Fetches == 0 {
		return false, nil
	}
	patch, err := w.p.RootPatch(w.ctx, w.from)
	if err != nil {
		return false, context.Cause(w.ctx)
	}
	for n := range patch.Frames() {
		makes := patch.Makes(n)
		first := makes.At / block
		if plan.FetchesIn(first, (makes.At+makes.Size)/block)*block <= patch.Frame(n).Size {
			continue
		}
		b, err := w.frame(patch, n, w.other)
		if err == nil && !w.right(b, first) {
			err = errContent
		}
		if err != nil {
			return done, context.Cause(w.ctx)
		}
		if err := w.put(b, first); err != nil {
			return done, err
		}
		done = true
	}
	return done, nil
}

// frame makes a frame's part of a new file out of the old one.
func (w *writer) frame(patch *repository.Patch, n int, old io.ReaderAt) (b []byte, err error) {
	var frame []byte
	err = retry(w.ctx, func() error {
		frame, err = patch.Read(w.ctx, n)
		w.fetched += int64(len(frame))
		return err
	})
	if err != nil {
		return nil, err
	}
	return patch.Apply(n, frame, old)
}

// put writes blocks that were checked.
func (w *writer) put(b []byte, at int64) error {
	if _, err := w.dev.WriteAt(b, at*block); err != nil {
		return err
	}
	if w.dirty += int64(len(b)); w.dirty < syncEvery {
		return nil
	}
	w.dirty = 0
	return w.dev.Sync()
}

// copy takes blocks from where they are on this machine; what is not there after all is fetched.
func (w *writer) copy(from, to int64, s delta.Source) error {
	dev := w.dev
	if s.From == delta.Other {
		dev = w.other
	}
	b := make([]byte, (to-from)*block)
	if _, err := dev.ReadAt(b, s.Block*block); err != nil && !errors.Is(err, io.EOF) {
		return w.fetch(from, to)
	}
	if !w.right(b, from) {
		return w.fetch(from, to)
	}
	return w.put(b, from)
}

func (w *writer) right(b []byte, from int64) bool {
	for i := int64(0); i*block < int64(len(b)); i++ {
		if delta.Of(b[i*block:(i+1)*block]) != w.p.Index.Blocks[from+i] {
			return false
		}
	}
	return true
}

// fetch gets blocks from the source.
func (w *writer) fetch(from, to int64) error {
	b := make([]byte, (to-from)*block)
	err := retry(w.ctx, func() error {
		r, err := w.p.Root(w.ctx, from*block, int64(len(b)))
		if err != nil {
			return err
		}
		defer r.Close()
		n, err := io.ReadFull(r, b)
		w.fetched += int64(n)
		if err != nil {
			return fmt.Errorf("fetching the root at %d: %w", from*block, err)
		}
		if !w.right(b, from) {
			return fmt.Errorf("%w: fetching the root at %d: %w", repository.ErrUntrusted, from*block, errContent)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.put(b, from)
}

// whole unpacks the compressed root over the slot.
func (w *writer) whole() error {
	src, length, err := w.p.Compressed(w.ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	n := &counting{r: io.LimitReader(src, length)}
	defer func() { w.fetched += n.n }()
	z, err := zstd.NewReader(n, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	total := int64(len(w.p.Index.Blocks))
	b := make([]byte, pieceBlocks*block)
	for at := int64(0); at < total; at += pieceBlocks {
		c := b[:min(pieceBlocks, total-at)*block]
		if _, err := io.ReadFull(z, c); err != nil {
			return err
		}
		if !w.right(c, at) {
			return errContent
		}
		if err := w.put(c, at); err != nil {
			return err
		}
	}
	return w.dev.Sync()
}

type counting struct {
	r io.Reader
	n int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
