package clock_test

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/clock"
)

// hand is a clock that is off by so much and can be set like the kernel's.
type hand struct {
	mu    sync.Mutex
	off   time.Duration
	steps int
	slews int
}

func (h *hand) clock() clock.Clock {
	return clock.Clock{
		Now: func() time.Time { h.mu.Lock(); defer h.mu.Unlock(); return time.Now().Add(h.off) },
		Step: func(t time.Time) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.off = time.Until(t)
			h.steps++
			return nil
		},
		Slew: func(d time.Duration) error { h.mu.Lock(); defer h.mu.Unlock(); h.off += d; h.slews++; return nil },
	}
}

var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestRaise(t *testing.T) {
	h := &hand{off: -time.Until(time.Unix(0, 0)).Abs()} // 1970
	c := h.clock()
	saved := built.Add(48 * time.Hour)
	if behind, err := c.Raise(built, saved); err != nil || behind <= 0 || c.Now().Before(saved) {
		t.Errorf("it is %v, was %v behind, %v", c.Now(), behind, err)
	}
	h.off, h.steps = 0, 0
	if behind, err := c.Raise(built, time.Time{}); err != nil || behind != 0 || h.steps != 0 {
		t.Errorf("a right clock was touched: %v, %v", behind, err)
	}
}

func TestSaved(t *testing.T) {
	name := filepath.Join(t.TempDir(), "clock")
	if got, _, err := clock.Saved(name); err != nil || !got.IsZero() {
		t.Errorf("before the first: %v, %v", got, err)
	}
	h := &hand{off: time.Hour}
	if err := h.clock().Save(name, 0); err != nil {
		t.Fatal(err)
	}
	if got, _, err := clock.Saved(name); err != nil || time.Until(got).Round(time.Minute) != time.Hour {
		t.Errorf("got %v, %v", got, err)
	}
	if err := os.WriteFile(name, []byte("yesterday"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := clock.Saved(name); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a damaged file: %v", err)
	}
}

// A board without a clock of its own never lives through the same time twice, however often its plug is pulled; one that has a
// clock, and a right one, is not moved by what was saved ahead of it.
func TestMonotoneAcrossStarts(t *testing.T) {
	name := filepath.Join(t.TempDir(), "clock")
	const every = 10 * time.Minute
	last := built
	for start := range 5 {
		h := &hand{off: -time.Until(time.Unix(0, 0)).Abs()}
		c := h.clock()
		if _, err := c.Resume(built, name); err != nil || c.Now().Before(last) {
			t.Fatalf("start %d: it is %v and was %v, %v", start, c.Now(), last, err)
		}
		if err := c.Save(name, every); err != nil {
			t.Fatal(err)
		}
		h.off += every - time.Second // the plug is pulled just before the next save
		last = c.Now()
	}
	h := &hand{}
	if err := h.clock().Save(name, every); err != nil {
		t.Fatal(err)
	}
	h.off = time.Minute
	if behind, err := h.clock().Resume(built, name); err != nil || behind != 0 || h.steps != 0 {
		t.Errorf("a right clock was moved by %v, %v", behind, err)
	}
}

func TestCorrect(t *testing.T) {
	for _, tt := range []struct {
		name         string
		offset       time.Duration
		steps, slews int
		refused      bool
	}{
		{"a little", 100 * time.Millisecond, 0, 1, false},
		{"a little back", -100 * time.Millisecond, 0, 1, false},
		{"a lot", time.Hour, 1, 0, false},
		{"back, above the floor", -time.Hour, 1, 0, false},
		{"below the floor", -100 * 365 * 24 * time.Hour, 0, 0, true},
	} {
		h := &hand{}
		stepped, err := h.clock().Correct(tt.offset, built)
		if (err != nil) != tt.refused || h.steps != tt.steps || h.slews != tt.slews || stepped != (tt.steps == 1) {
			t.Errorf("%s: %v, %d steps, %d slews, %v", tt.name, stepped, h.steps, h.slews, err)
		}
	}
}

// server answers NTP on loopback with a clock that is off by so much; stratum 0 is a kiss of death.
func server(t *testing.T, off time.Duration, stratum byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stamp := func(b []byte, at time.Time) {
		binary.BigEndian.PutUint32(b, uint32(at.Unix()+2208988800))
		binary.BigEndian.PutUint32(b[4:], uint32(uint64(at.Nanosecond())<<32/1e9))
	}
	go func() {
		for {
			q := make([]byte, 512)
			n, from, err := conn.ReadFrom(q)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := time.Now().Add(off)
			a := make([]byte, 48)
			a[0], a[1], a[2], a[3] = 0x24, stratum, q[2], 0xec
			binary.BigEndian.PutUint32(a[12:], 0x7f000001)
			stamp(a[16:], now.Add(-time.Second))
			copy(a[24:32], q[40:48])
			stamp(a[32:], now)
			stamp(a[40:], now)
			_, _ = conn.WriteTo(a, from)
		}
	}()
	return conn.LocalAddr().String()
}

// One liar and one that refuses among the servers do not lead the clock astray.
func TestSync(t *testing.T) {
	h := &hand{off: -3 * time.Hour}
	c := h.clock()
	// The clock under test is not the one that the NTP client reads, so right servers are three hours ahead of it.
	synced := make(chan struct{})
	s := clock.Sync{
		Clock: c, Floor: built, Log: t.Logf,
		Servers: []string{server(t, 3*time.Hour, 2), server(t, 900*24*time.Hour, 2), server(t, 3*time.Hour, 2), server(t, 0, 0)},
		Synced:  func() { close(synced) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	select {
	case <-synced:
	case <-time.After(20 * time.Second):
		t.Fatal("not synced within 20 s")
	}
	if off := time.Until(c.Now()); off.Abs() > time.Second {
		t.Errorf("the clock is %v off", off)
	}
	cancel()
	<-done
}

// Servers that are all wrong are told to the operator once, and the clock stays.
func TestSyncRefuses(t *testing.T) {
	h := &hand{}
	said := make(chan string, 10)
	s := clock.Sync{
		Clock: h.clock(), Floor: built, Servers: []string{server(t, -50*365*24*time.Hour, 2)},
		Log: func(f string, a ...any) { said <- f },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	if msg := <-said; !strings.Contains(msg, "still asking") {
		t.Errorf("said %q", msg)
	}
	cancel()
	<-done
	if h.steps+h.slews != 0 {
		t.Error("the clock was touched")
	}
}
