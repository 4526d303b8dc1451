package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// The reasons of the events that a datastore tells.
const (
	ReasonDamaged  = "DatastoreDamaged"
	ReasonRestored = "DatastoreRestored"
	ReasonDiskFull = "DatastoreDiskFull"
	ReasonDiskLow  = "DatastoreDiskLow"
	ReasonDiskOK   = "DatastoreDiskRecovered"
	ReasonSlow     = "DatastoreDiskSlow"
	ReasonLarge    = "DatastoreLarge"
)

const (
	watchDiskEvery = 10 * time.Second
	watchSizeEvery = time.Minute

	// large is when somebody should ask what writes so much: a cluster of a hundred nodes needs a tenth of it.
	large = 1 << 30

	// slow is a sync that takes as long as Kubernetes' leases can bear; slowAgain is how long nobody is told again.
	slow      = time.Second
	slowAgain = 10 * time.Minute

	// reserveSize is what is kept free for the deletions and the events that end a full disk.
	reserveSize = 8 << 20
)

var (
	sizeBytes = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Name: "skerry_datastore_size_bytes", Help: "Bytes that the datastore takes, with its log.", StabilityLevel: metrics.ALPHA,
	}, []string{"kind"})
	freeBytes = metrics.NewGauge(&metrics.GaugeOpts{
		Name: "skerry_datastore_disk_free_bytes", Help: "Bytes that are free on the datastore's disk.", StabilityLevel: metrics.ALPHA,
	})
	syncSeconds = metrics.NewHistogram(&metrics.HistogramOpts{
		Name: "skerry_datastore_sync_duration_seconds", Help: "Time until the disk has what was written.",
		Buckets: metrics.ExponentialBuckets(0.001, 2, 14), StabilityLevel: metrics.ALPHA,
	})
	register = sync.OnceFunc(func() { legacyregistry.MustRegister(sizeBytes, freeBytes, syncSeconds) })
)

// health watches over a datastore while it serves, and tells what an operator should know.
type health struct {
	Config
	writing sync.Mutex

	mu       sync.Mutex
	slowTold time.Time
	trouble  chan struct{} // a write failed: look now
	low      string        // the reason told last, or nothing
	isLarge  bool
}

func newHealth(c Config) *health {
	register()
	return &health{Config: c, trouble: make(chan struct{}, 1)}
}

func (c Config) reserve() string { return filepath.Join(c.Dir, "reserve") }

// turn calls write while no other writer of this process writes.
func (h *health) turn(write func() error) error {
	h.writing.Lock()
	defer h.writing.Unlock()
	return write()
}

// synced is told how long a sync took.
func (h *health) synced(took time.Duration) {
	syncSeconds.Observe(took.Seconds())
	if took < slow {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.slowTold) < slowAgain {
		return
	}
	h.slowTold = time.Now()
	// The caller answers writers; telling must not hold it up.
	go h.tell(Event{true, ReasonSlow, fmt.Sprintf("datastore: the disk of %s took %v to store a write; everything waits for it: use a faster disk, or find out what else writes there", h.Dir, took.Round(time.Millisecond))})
}

// failed is told the error of a write.
func (h *health) failed(err error) {
	text := err.Error()
	if isFull(err) || strings.Contains(text, "disk is full") || strings.Contains(text, "disk I/O error") {
		select {
		case h.trouble <- struct{}{}:
		default:
		}
	}
}

// watch looks after the disk and the size of SQLite's file until ctx ends.
func (h *health) watch(ctx context.Context) {
	disk, size, shrink := time.NewTicker(watchDiskEvery), time.NewTicker(watchSizeEvery), time.NewTicker(vacuumEvery)
	defer disk.Stop()
	defer size.Stop()
	defer shrink.Stop()
	store := &sqliteStore{Config: h.Config}
	h.disk(false)
	h.size(ctx, store)
	for {
		select {
		case <-ctx.Done():
			return
		case <-disk.C:
			h.disk(false)
		case <-h.trouble:
			h.disk(true)
		case <-size.C:
			h.size(ctx, store)
		case <-shrink.C:
			if err := vacuum(ctx, h.File(), h.turn); err != nil && ctx.Err() == nil {
				slog.Warn("datastore", "err", err)
			}
		}
	}
}

// watchSize looks after the size of a database that is elsewhere.
func (h *health) watchSize(ctx context.Context, s Store) {
	tick := time.NewTicker(watchSizeEvery)
	defer tick.Stop()
	for {
		h.size(ctx, s)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *health) size(ctx context.Context, s Store) {
	n, err := s.Size(ctx)
	if err != nil {
		return // whoever needs the store says so
	}
	sizeBytes.WithLabelValues(s.Kind()).Set(float64(n))
	if n > large != h.isLarge {
		h.isLarge = n > large
		if h.isLarge {
			h.tell(Event{true, ReasonLarge, fmt.Sprintf("datastore: it has grown to %d MiB; look for who writes so much: kubectl get events -A, kubectl get --raw /metrics | grep apiserver_storage_objects", n>>20)})
		}
	}
}

// disk looks at the free space; full says that a write has failed.
func (h *health) disk(full bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(h.Dir, &st); err != nil {
		return
	}
	block := int64(st.Bsize) //nolint:unconvert // 32 bits wide on some machines
	free, total := int64(st.Bavail)*block, int64(st.Blocks)*block
	freeBytes.Set(float64(free))
	reserve := min(reserveSize, total/64)
	lowAt := max(4*reserve, total/20)
	switch {
	case full || free < reserve/2:
		// What is kept back is given out, so that deletions can be stored.
		gone := os.Remove(h.reserve()) == nil
		if h.low != ReasonDiskFull || gone {
			h.low = ReasonDiskFull
			h.tell(Event{true, ReasonDiskFull, fmt.Sprintf("datastore: the disk of %s is full (%d KiB free): what is stored can be read, writes fail until there is room; delete something, or wait until kubelet has removed unused images", h.Dir, free>>10)})
		}
	case free < lowAt:
		if h.low == "" {
			h.low = ReasonDiskLow
			h.tell(Event{true, ReasonDiskLow, fmt.Sprintf("datastore: the disk of %s has %d MiB left; when it is full, nothing can be changed in the cluster", h.Dir, free>>20)})
		}
	default:
		if h.low != "" && free > lowAt+lowAt/4 {
			h.low = ""
			h.tell(Event{false, ReasonDiskOK, fmt.Sprintf("datastore: the disk of %s has room again (%d MiB)", h.Dir, free>>20)})
		}
	}
	if free > lowAt {
		h.keepBack(reserve)
	}
}

// keepBack takes the space that disk gives out when there is none left.
func (h *health) keepBack(size int64) {
	if info, err := os.Stat(h.reserve()); err == nil && info.Size() >= size {
		return
	}
	f, err := os.OpenFile(h.reserve(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		_ = os.Remove(h.reserve())
		if !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("datastore: keeping space back", "err", err)
		}
	}
}
