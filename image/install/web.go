package install

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/skerry-os/skerry/image/disk"
)

// web is a release folder on the server. A file whose link is lost is read on from where it ended.
type web struct {
	ctx  context.Context
	base string // with a slash at its end
	log  func(format string, a ...any)
	wait time.Duration // between two tries; 0: two seconds

	stall time.Duration // how long a connection may say nothing; 0: thirty seconds
}

// Patience with a server that does not answer.
const (
	webTries = 150 // five minutes
	webWait  = 2 * time.Second
	stalled  = 30 * time.Second
)

// Open asks for the file, so that one that is missing is missing now.
func (w *web) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f := &webFile{web: w, name: name, size: -1, pause: cmp.Or(w.wait, webWait), stall: cmp.Or(w.stall, stalled)}
	return f, f.connect()
}

type webFile struct {
	*web
	name   string
	at     int64
	size   int64
	tries  int
	lost   bool
	body   io.ReadCloser
	cancel context.CancelFunc
	alarm  *time.Timer
	pause  time.Duration
	stall  time.Duration
}

// lose says that the link is lost, and what to do about it.
func (f *webFile) lose(err error) {
	if errors.Is(err, context.Canceled) && f.ctx.Err() == nil {
		err = fmt.Errorf("nothing came for %v", f.stall)
	}
	if !f.lost {
		f.log("the link to the server is lost at byte %d of %s: %v; is the cable in, and does skerry pxe serve run? Trying again, and going on from there", f.at, f.name, err)
	}
	f.lost = true
}

// connect opens the file from f.at on, with patience.
func (f *webFile) connect() error {
	for {
		err := f.request()
		if err == nil {
			if f.lost {
				f.log("the link is back; going on with %s at byte %d", f.name, f.at)
				f.lost = false
			}
			return nil
		}
		var final finalError
		if f.ctx.Err() != nil || errors.As(err, &final) {
			return err
		}
		if f.tries++; f.tries > webTries {
			return fmt.Errorf("%w; is the cable in, and does the server run?", err)
		}
		f.lose(err)
		if err := sleep(f.ctx, f.pause); err != nil {
			return err
		}
	}
}

// finalError is an answer that will not change.
type finalError struct{ error }

func (f *webFile) request() error {
	ctx, cancel := context.WithCancel(f.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+f.name, nil)
	if err != nil {
		cancel()
		return finalError{err}
	}
	if f.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", f.at))
	}
	alarm := time.AfterFunc(f.stall, cancel) // a cable that is pulled says nothing
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		alarm.Stop()
		cancel()
		return err
	}
	want := http.StatusOK
	if f.at > 0 {
		want = http.StatusPartialContent
	}
	if r.StatusCode != want {
		alarm.Stop()
		why, _ := io.ReadAll(io.LimitReader(r.Body, 500))
		_ = r.Body.Close()
		cancel()
		err := fmt.Errorf("%s: the server says %s: %s", f.name, r.Status, printable(why))
		if r.StatusCode == http.StatusNotFound {
			return finalError{err}
		}
		return err
	}
	if f.size < 0 {
		f.size = r.ContentLength
	}
	f.body, f.cancel, f.alarm = r.Body, cancel, alarm
	return nil
}

// printable is text from the network for the console.
func printable(b []byte) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(b))
	return strings.TrimSpace(text)
}

func (f *webFile) Read(b []byte) (int, error) {
	for {
		if f.size >= 0 && f.at >= f.size {
			return 0, io.EOF
		}
		f.alarm.Reset(f.stall)
		n, err := f.body.Read(b)
		f.at += int64(n)
		if n > 0 {
			f.tries = 0
			return n, nil
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && f.size < 0 {
			return 0, io.EOF
		}
		_ = f.Close()
		f.lose(err)
		if err := f.connect(); err != nil {
			return 0, err
		}
	}
}

// Close ends the connection.
func (f *webFile) Close() error {
	if f.body == nil {
		return nil
	}
	f.alarm.Stop()
	err := f.body.Close()
	f.cancel()
	f.body = nil
	return err
}

// Stat knows the size and nothing else.
func (f *webFile) Stat() (fs.FileInfo, error) { return webInfo{f}, nil }

type webInfo struct{ f *webFile }

func (i webInfo) Name() string       { return i.f.name }
func (i webInfo) Size() int64        { return i.f.size }
func (i webInfo) Mode() fs.FileMode  { return 0o444 }
func (i webInfo) ModTime() time.Time { return time.Time{} }
func (i webInfo) IsDir() bool        { return false }
func (i webInfo) Sys() any           { return nil }

// newGUID makes up a random one (version 4).
func newGUID() (g disk.GUID) {
	_, _ = rand.Read(g[:]) // never fails
	g[6], g[8] = g[6]&0x0f|0x40, g[8]&0x3f|0x80
	return g
}
