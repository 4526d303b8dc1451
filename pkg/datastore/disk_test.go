package datastore

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"
)

// A disk is full from when it has too little until there is room for a while; each state is told once, on disks of every size.
func TestDisk(t *testing.T) {
	for _, total := range []int64{512 << 20, 1 << 30, 32 << 30, 1 << 40} {
		var told []string
		d := NewDisk(Config{Dir: t.TempDir(), Tell: func(e Event) { told = append(told, e.Reason) }}, 96<<20, 80<<20)
		free := total
		d.room = func() (int64, int64, error) { return free, total, nil }
		keep, fullAt := d.sizes(total)
		if keep > total/64 || fullAt > total/4 {
			t.Fatalf("of %d MiB, %d KiB are kept back, and it is full with %d", total>>20, keep>>10, fullAt>>10)
		}
		lowAt := max(4*keep, 2*fullAt, total/20)
		kept := func() bool {
			_, err := os.Stat(d.reserve())
			return err == nil
		}
		for i, s := range []struct {
			free         int64
			failed, full bool
			kept         bool
			told         string
		}{
			{free: total, kept: true},
			{free: lowAt - 1, kept: true, told: ReasonDiskLow},
			{free: fullAt, kept: true},
			{free: fullAt - 1, full: true, told: ReasonDiskFull},
			{free: fullAt + 1, full: true}, // what was kept back is no reason to take writes again
			{free: 0, full: true},
			{free: max(4*keep, 2*fullAt) + 1, told: ReasonDiskOK},
			{free: total, kept: true},
			{free: total, failed: true, full: true, told: ReasonDiskFull}, // others may not have all that is free
			{free: total, kept: true, told: ReasonDiskOK},
		} {
			told, free = nil, s.free
			for range 3 {
				if full := d.Look(s.failed); full != s.full {
					t.Errorf("%d MiB, step %d: full: %v", total>>20, i, full)
				}
				if s.failed {
					break
				}
			}
			told = slices.DeleteFunc(told, func(r string) bool { return i == 7 && r == ReasonDiskOK }) // from low to enough, where that differs
			if want := []string{s.told}; s.told != "" && !slices.Equal(told, want) || s.told == "" && len(told) > 0 {
				t.Errorf("%d MiB, step %d: told %q, want %q", total>>20, i, told, s.told)
			}
			if s.kept != kept() && !s.failed && i != 6 {
				t.Errorf("%d MiB, step %d: kept back: %v", total>>20, i, kept())
			}
		}
	}
}

// A slow disk is told of once in a while, and measured each time.
func TestSlowDisk(t *testing.T) {
	told := make(chan Event, 10)
	d := NewDisk(Config{Dir: t.TempDir(), Tell: func(e Event) { told <- e }}, reserveSize, reserveSize/2)
	before := observed(t, "skerry_datastore_sync_duration_seconds")
	for _, took := range []time.Duration{time.Millisecond, slow - 1, 3 * slow, 2 * slow} {
		d.Synced(took)
	}
	if e := <-told; e.Reason != ReasonSlow || !e.Warning {
		t.Errorf("told: %+v", e)
	}
	if n := observed(t, "skerry_datastore_sync_duration_seconds") - before; n != 4 {
		t.Errorf("%v syncs were measured", n)
	}
	select {
	case e := <-told:
		t.Errorf("told again: %+v", e)
	default:
	}
}

// The size is a metric, and is told of when it is large.
func TestLarge(t *testing.T) {
	var told []string
	c := Config{Dir: t.TempDir(), Tell: func(e Event) { told = append(told, fmt.Sprint(e.Reason, e.Warning)) }}
	if err := os.WriteFile(c.File(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHealth(c)
	for _, size := range []int64{1 << 20, large + 1, large + 2, 1 << 20, large + 1} {
		if err := os.Truncate(c.File(), size); err != nil {
			t.Fatal(err)
		}
		h.size(t.Context(), &sqliteStore{Config: c})
		if got := observed(t, "skerry_datastore_size_bytes"); got != float64(size) {
			t.Errorf("the metric is %v, the size %d", got, size)
		}
	}
	if want := []string{"DatastoreLargetrue", "DatastoreLargetrue"}; !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
}

// observed reads a metric as it is scraped: a gauge's value, or how often a histogram was given one.
func observed(t *testing.T, name string) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			if h := m.GetHistogram(); h != nil {
				return float64(h.GetSampleCount())
			}
			return m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
