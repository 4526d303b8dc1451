// Package publish is what bringing an image to a cloud has in common for all of them: what is published and for whom, the
// report, a disk's parts that are not zeros, and waiting for something far away.
package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Disk is a raw disk.
type Disk struct {
	io.ReaderAt
	Size int64  // bytes
	ID   string // the same for the same bytes
}

// Options say what is published and for whom.
type Options struct {
	Name        string // of the image; the same in every region
	Description string
	Version     string // of the release
	Arch        string // as a release says it: amd64 or arm64
	Share       []string
	Public      bool
	Labels      map[string]string // tags, where the cloud calls them so
	Keys        []Variable        // Secure Boot variables; none: the image was built without
	Deprecate   time.Time         // zero: never
	Parallel    int               // uploads at a time; 0 is 32
	State       string            // file that remembers what is uploaded, so that an interrupted upload goes on
	DryRun      bool              // look and say, change nothing
	Progress    func(done, all int)
}

// Report says what was done. It is what --json prints.
type Report struct {
	Name      string   `json:"name"`
	Account   string   `json:"account"` // or project, or subscription
	DryRun    bool     `json:"dryRun"`
	Failed    bool     `json:"failed"` // what is there all the same is in Images
	DiskSize  int64    `json:"diskSize"`
	BlockSize int64    `json:"blockSize"` // of one piece of the upload, at most
	Blocks    int      `json:"blocks"`    // pieces that have to be there
	Uploaded  int      `json:"uploaded"`  // of them, by this run
	Images    []Image  `json:"images"`
	Public    bool     `json:"public"`
	Accounts  []string `json:"accounts"` // it is shared with
	Seconds   float64  `json:"seconds"`
}

// Image is the image in one region.
type Image struct {
	Region   string `json:"region"`
	Image    string `json:"image"`
	Snapshot string `json:"snapshot,omitempty"`
	Source   string `json:"source,omitempty"` // the object or blob it was made from
}

// Runs gives the parts of a disk that are not zeros, by rising offsets: whole granules, as many as lie side by side up to most
// bytes. done is how much of the disk has been looked at. A run's bytes are the callee's to keep.
func Runs(ctx context.Context, d Disk, granule, most int64, each func(offset, done int64, b []byte) error) error {
	zeros := make([]byte, granule)
	block := make([]byte, most)
	for at := int64(0); at < d.Size; at += most {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := block[:min(most, d.Size-at)]
		if n, err := d.ReadAt(b, at); n < len(b) {
			return fmt.Errorf("reading the disk at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		end := int64(0)
		for from := int64(0); from < int64(len(b)); from = end {
			piece := func(i int64) []byte { return b[i:min(i+granule, int64(len(b)))] }
			empty := func(i int64) bool { p := piece(i); return bytes.Equal(p, zeros[:len(p)]) }
			for from < int64(len(b)) && empty(from) {
				from += granule
			}
			for end = from; end < int64(len(b)) && !empty(end); {
				end += granule
			}
			end = min(end, int64(len(b)))
			if from >= end {
				break
			}
			if err := each(at+from, at+int64(len(b)), bytes.Clone(b[from:end])); err != nil {
				return err
			}
		}
	}
	return nil
}

// Wait asks until something is done, at first every second.
func Wait(ctx context.Context, done func() (bool, error)) error {
	every := time.Second
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(every):
		}
		every = min(every*3/2, 15*time.Second)
	}
}
