package process

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Logs is a folder of logs that are held alike.
type Logs struct {
	dir string

	mu   sync.Mutex
	hold time.Duration
	open map[*LogFile]bool
}

// NewLogs is for a folder that is there.
func NewLogs(dir string) *Logs { return &Logs{dir: dir, open: map[*LogFile]bool{}} }

// Open opens one of them.
func (d *Logs) Open(name string, limit int64) (*LogFile, error) {
	l, err := OpenLog(filepath.Join(d.dir, name), limit)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l.hold, l.of = d.hold, d
	d.open[l] = true
	return l, nil
}

// Hold is LogFile's, for all of them and those that are opened later.
func (d *Logs) Hold(limit time.Duration) {
	d.mu.Lock()
	d.hold = limit
	d.mu.Unlock()
	for _, l := range d.all() {
		l.Hold(limit)
	}
}

// Flush is LogFile's, for all of them.
func (d *Logs) Flush() {
	for _, l := range d.all() {
		l.Flush()
	}
}

// Sync is LogFile's, for all of them.
func (d *Logs) Sync() (err error) {
	for _, l := range d.all() {
		err = errors.Join(err, l.Sync())
	}
	return err
}

func (d *Logs) all() []*LogFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.open))
}

func (d *Logs) closed(l *LogFile) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, l)
}
