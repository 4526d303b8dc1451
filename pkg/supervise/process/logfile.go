package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// LogFile is a file that is written to its size limit, then renamed to NAME.1 and begun anew, so that the two together never
// hold more than twice the limit. It remembers the last lines for whoever has to explain an end.
type LogFile struct {
	mu    sync.Mutex
	name  string
	limit int64
	f     *os.File
	size  int64
	last  tail
}

// lastBytes is how much Last can look back.
const lastBytes = 8 << 10

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

// Write appends p. A log that cannot be written (a full disk) loses the bytes, and tries again with the next ones: the
// program that logs must not stop for it. Last still has them.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.last.Write(p)
	if l.f != nil && l.size > 0 && l.size+int64(len(p)) > l.limit {
		_ = l.f.Close()
		l.f = nil
		if err := os.Rename(l.name, l.name+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			_ = os.Truncate(l.name, 0) // the limit holds, whatever else does not
		}
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return len(p), nil
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	return len(p), nil
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

// Close closes the file.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
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
