package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// LogFile is a file that is written to its size limit, then renamed to NAME.1 and begun anew, so that the two together never
// hold more than twice the limit. It remembers the last lines for whoever has to explain an end.
//
// What is written goes to the file at once, or is held in memory for a while (see Hold), so that a line now and then does not cost
// a flash block each.
type LogFile struct {
	mu    sync.Mutex
	name  string
	limit int64
	f     *os.File
	size  int64
	last  tail

	of    *Logs // nil for a log of its own
	hold  time.Duration
	held  []byte
	timer *time.Timer // runs while something is held
}

const (
	lastBytes = 8 << 10  // how much Last can look back
	heldBytes = 64 << 10 // how much is held at most
)

// OpenLog opens the log for appending.
func OpenLog(name string, limit int64) (*LogFile, error) {
	l := &LogFile{name: name, limit: limit, last: tail{max: lastBytes}}
	return l, l.open()
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Hold keeps what is written from now on in memory for so long, or until there are 64 KiB of it. 0 is the usual: not at all. What
// tells of a panic goes to the disk at once, with all before it.
func (l *LogFile) Hold(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold = d
	_ = l.sync()
}

// Write appends p. A log that cannot be written (a full disk) loses the bytes, and tries again with the next ones: the
// program that logs must not stop for it. Last still has them.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.last.Write(p)
	if l.hold == 0 {
		l.put(p)
		return len(p), nil
	}
	if len(l.held)+len(p) > heldBytes {
		l.flush()
	}
	l.held = append(l.held, p...)
	switch {
	case len(l.held) > heldBytes: // p alone is
		l.flush()
	case tellsOfPanic(p):
		_ = l.sync()
	case l.timer == nil:
		l.timer = time.AfterFunc(l.hold, func() { _ = l.Sync() })
	}
	return len(p), nil
}

// tellsOfPanic is for those that a program gets over; one that it dies of ends it, which Service sees.
func tellsOfPanic(p []byte) bool {
	return bytes.Contains(p, []byte("panic")) || bytes.Contains(p, []byte("fatal error"))
}

// Flush gives readers of the file what is held.
func (l *LogFile) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
}

// Sync brings what is held, and what the kernel holds, to the disk.
func (l *LogFile) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sync()
}

func (l *LogFile) sync() error {
	l.flush()
	if l.f == nil {
		return nil
	}
	return l.f.Sync()
}

func (l *LogFile) flush() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if len(l.held) > 0 {
		l.put(l.held)
		l.held = l.held[:0]
	}
}

func (l *LogFile) put(p []byte) {
	if l.f != nil && l.size > 0 && l.size+int64(len(p)) > l.limit {
		_ = l.f.Close()
		l.f = nil
		if err := os.Rename(l.name, l.name+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			_ = os.Truncate(l.name, 0) // the limit holds, whatever else does not
		}
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
}

// Last gives the last n lines written since the log was opened.
func (l *LogFile) Last(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimRight(string(l.last.buf), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}

// Close writes what is held and closes the file.
func (l *LogFile) Close() error {
	l.of.closed(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return nil
}
