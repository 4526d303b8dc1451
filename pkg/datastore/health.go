package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

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

	// reserveSize is what is kept free for the deletions and the events that end a full disk.
	reserveSize = 8 << 20
)

// ObserveSize is for the metric.
func ObserveSize(kind string, bytes int64) {
	register()
	sizeBytes.WithLabelValues(kind).Set(float64(bytes))
}

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
	*Disk
	writing sync.Mutex
	trouble chan struct{} // a write failed: look now
	isLarge bool
}

func newHealth(c Config) *health {
	return &health{Disk: NewDisk(c, reserveSize, reserveSize/2), trouble: make(chan struct{}, 1)}
}

// turn calls write while no other writer of this process writes.
func (h *health) turn(write func() error) error {
	h.writing.Lock()
	defer h.writing.Unlock()
	return write()
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
	h.Look(false)
	h.size(ctx, store)
	for {
		select {
		case <-ctx.Done():
			return
		case <-disk.C:
			h.Look(false)
		case <-h.trouble:
			h.Look(true)
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
	ObserveSize(s.Kind(), n)
	if n > large != h.isLarge {
		h.isLarge = n > large
		if h.isLarge {
			h.tell(Event{true, ReasonLarge, fmt.Sprintf("datastore: it has grown to %d MiB; look for who writes so much: kubectl get events -A, kubectl get --raw /metrics | grep apiserver_storage_objects", n>>20)})
		}
	}
}
