package update

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/repository"
)

// lasting is a source whose files outlast broken connections: the rest of one is asked for from where it broke off. Metadata is
// small, and is asked for again as a whole.
type lasting struct{ repository.Source }

// reopens is how often in a row the rest is asked for in vain.
const reopens = 3

func (s lasting) Open(ctx context.Context, name string, at, size int64) (io.ReadCloser, error) {
	r, err := s.Source.Open(ctx, name, at, size)
	if err != nil || !strings.HasPrefix(name, "targets/") {
		return r, err
	}
	return &rest{s.Source, ctx, name, at, size, r, 0}, nil
}

// rest is what of a file has not come yet.
type rest struct {
	src      repository.Source
	ctx      context.Context
	name     string
	at, size int64
	r        io.ReadCloser // nil: broke off
	broken   int           // in a row
}

func (f *rest) Read(b []byte) (int, error) {
	for {
		var n int
		var err error
		if f.r == nil {
			f.r, err = f.src.Open(f.ctx, f.name, f.at, f.size)
		}
		if err == nil {
			n, err = f.r.Read(b)
		}
		if n > 0 {
			f.at, f.size, f.broken = f.at+int64(n), f.size-int64(n), 0
		}
		if err == nil || errors.Is(err, io.EOF) || f.size <= 0 {
			return n, err
		}
		_ = f.Close()
		f.r = nil
		if n > 0 {
			return n, nil
		}
		if f.broken++; f.broken > reopens || f.ctx.Err() != nil {
			return 0, err
		}
		select {
		case <-time.After(time.Duration(f.broken-1) * pause):
		case <-f.ctx.Done():
			return 0, context.Cause(f.ctx)
		}
	}
}

func (f *rest) Close() error {
	if f.r == nil {
		return nil
	}
	return f.r.Close()
}
