package datastore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// slow is a sync that takes as long as Kubernetes' leases can bear; slowAgain is how long nobody is told again.
	slow      = time.Second
	slowAgain = 10 * time.Minute
)

// Disk watches the disk that a datastore is on, and keeps a file on it back for the deletions and the events that end a full disk.
type Disk struct {
	Config
	keep, fullAt int64
	room         func() (free, total int64, err error)

	mu       sync.Mutex
	low      string // the reason told last, or nothing
	full     bool
	slowTold time.Time
}

// NewDisk keeps so many bytes back, and calls the disk full when fewer than fullAt are free; both are less on a small disk.
func NewDisk(c Config, keep, fullAt int64) *Disk {
	register()
	return &Disk{Config: c, keep: keep, fullAt: fullAt, room: func() (free, total int64, err error) {
		var st unix.Statfs_t
		if err := unix.Statfs(c.Dir, &st); err != nil {
			return 0, 0, err
		}
		block := int64(st.Bsize) //nolint:unconvert // 32 bits wide on some machines
		return int64(st.Bavail) * block, int64(st.Blocks) * block, nil
	}}
}

func (c Config) reserve() string { return filepath.Join(c.Dir, "reserve") }

// Look looks at the free space and says whether the disk is full: from when it is until there is room for more than a while.
// failed says that a write has found no room.
func (d *Disk) Look(failed bool) (full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free, total, err := d.room()
	if err != nil {
		return d.full
	}
	freeBytes.Set(float64(free))
	keep, fullAt := d.sizes(total)
	again := max(4*keep, 2*fullAt)
	lowAt := max(again, total/20)
	switch {
	case failed || free < fullAt:
		// What is kept back is given out, so that deletions can be stored.
		gone := os.Remove(d.reserve()) == nil
		if !d.full || gone {
			d.full, d.low = true, ReasonDiskFull
			d.tell(Event{true, ReasonDiskFull, fmt.Sprintf("datastore: the disk of %s is full (%d KiB free): what is stored can be read, writes fail until there is room; delete something, or wait until kubelet has removed unused images", d.Dir, free>>10)})
		}
	case d.full && free <= again:
	case d.full || d.low != "" && free > lowAt+lowAt/4:
		d.full, d.low = false, ""
		if free < lowAt {
			d.low = ReasonDiskLow
		}
		d.tell(Event{false, ReasonDiskOK, fmt.Sprintf("datastore: the disk of %s has room again (%d MiB)", d.Dir, free>>20)})
	case free < lowAt && d.low == "":
		d.low = ReasonDiskLow
		d.tell(Event{true, ReasonDiskLow, fmt.Sprintf("datastore: the disk of %s has %d MiB left; when it is full, nothing can be changed in the cluster", d.Dir, free>>20)})
	}
	if free > lowAt {
		d.keepBack(keep)
	}
	return d.full
}

func (d *Disk) sizes(total int64) (keep, fullAt int64) {
	return min(d.keep, total/64), min(d.fullAt, total/4)
}

// Room reports whether there is room to start on, with what was kept back, which it gives out. Where there is none, tell has it say so.
func (d *Disk) Room(tell bool) bool {
	free, total, err := d.room()
	_, fullAt := d.sizes(total)
	if err != nil || free >= fullAt || os.Remove(d.reserve()) == nil {
		return true
	}
	if tell {
		d.tell(Event{true, ReasonDiskFull, fmt.Sprintf("datastore: cannot start: the disk of %s is full (%d KiB free); waiting for room: delete something on it", d.Dir, free>>10)})
	}
	return false
}

// Synced is told how long a sync took.
func (d *Disk) Synced(took time.Duration) {
	syncSeconds.Observe(took.Seconds())
	if took < slow {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.slowTold) < slowAgain {
		return
	}
	d.slowTold = time.Now()
	// The caller answers writers; telling must not hold it up.
	go d.tell(Event{true, ReasonSlow, fmt.Sprintf("datastore: the disk of %s took %v to store a write; everything waits for it: use a faster disk, or find out what else writes there", d.Dir, took.Round(time.Millisecond))})
}

// keepBack takes the space that disk gives out when there is none left.
func (d *Disk) keepBack(size int64) {
	if info, err := os.Stat(d.reserve()); err == nil && info.Size() >= size {
		return
	}
	f, err := os.OpenFile(d.reserve(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		_ = os.Remove(d.reserve())
		if !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("datastore: keeping space back", "err", err)
		}
	}
}
