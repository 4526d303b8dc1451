package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/size"
)

// block is the grain of holes: a block of zeros is not written.
const block = 64 << 10

// Format is how the disk is stored in a file: image/cloud has the list.
type Format = cloud.Format

// Raw is what is written to a medium.
const Raw = cloud.Raw

// Create builds the plan's disk as the file name. The file appears whole or not at all: what was there before stays until
// the new one is durable, and an error or a cancelled ctx leaves nothing behind. The file is private to its owner, because
// a node config holds the cluster's token.
func Create(ctx context.Context, p *Plan, files fs.FS, name string, format Format) (err error) {
	f, err := atomicfile.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	defer func() {
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%s: the disk is full; the image takes about %v (nothing was left behind)", name, size.Bytes(p.Written()).Rounded())
		}
	}()
	d, err := cloud.Create(f, format, p.Size, derive(p.GUID, "disk"))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := Build(ctx, p, files, d); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Commit()
}

// Build writes the plan's bytes to w in one pass, by rising offsets, checking each file of the release against its digest on
// the way. Holes and zeros are not written: w must read as zeros where nothing was.
func Build(ctx context.Context, p *Plan, files fs.FS, w io.WriterAt) error {
	buf := make([]byte, 16*block)
	for _, e := range p.Extents {
		var err error
		switch {
		case e.Source == zeros:
		case e.file != "":
			err = e.copyFile(ctx, files, w, buf)
		default:
			err = copyBlocks(ctx, bytes.NewReader(e.data), w, e.Offset, buf)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file of the release. A file that is not what the manifest says spoils the image, which the caller drops.
func (e *Extent) copyFile(ctx context.Context, files fs.FS, w io.WriterAt, buf []byte) error {
	f, err := files.Open(e.file)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n := &counter{}
	if err := copyBlocks(ctx, io.TeeReader(io.LimitReader(f, e.Size+1), io.MultiWriter(sum, n)), w, e.Offset, buf); err != nil {
		return fmt.Errorf("release: %s: %w", e.file, err)
	}
	if n.n != e.Size {
		return fmt.Errorf("release: %s: is not the %d bytes the manifest says; build the release again, or fetch it again", e.file, e.Size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != e.SHA256 {
		return fmt.Errorf("release: %s: sha256 is %.8s; the manifest says %.8s; build the release again, or fetch it again", e.file, got, e.SHA256)
	}
	return nil
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return len(b), nil }

// copyBlocks copies r to w, leaving out blocks of zeros.
func copyBlocks(ctx context.Context, r io.Reader, w io.WriterAt, at int64, buf []byte) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if err := writeBlocks(w, buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

var zeroBlock [block]byte

func writeBlocks(w io.WriterAt, b []byte, at int64) error {
	for len(b) > 0 {
		// Runs of blocks that are not zeros go out in one call; pieces end on whole blocks of the disk.
		run := 0
		for run < len(b) {
			n := min(len(b)-run, block-int((at+int64(run))%block))
			if bytes.Equal(b[run:run+n], zeroBlock[:n]) {
				if run == 0 {
					b, at = b[n:], at+int64(n)
					continue
				}
				break
			}
			run += n
		}
		if run == 0 {
			return nil
		}
		if _, err := w.WriteAt(b[:run], at); err != nil {
			return err
		}
		b, at = b[run:], at+int64(run)
	}
	return nil
}
