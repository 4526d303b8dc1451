package update_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// lying is a disk that keeps one byte wrong from the when-th write of it on, and says that all is well.
type lying struct {
	disk
	at int64
}

func (l lying) WriteAt(b []byte, at int64) (int, error) {
	if l.at >= at && l.at < at+int64(len(b)) && !allZero(b) {
		b = slices.Clone(b)
		b[l.at-at] ^= 1
	}
	return l.disk.WriteAt(b, at)
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// What the medium holds counts, not what was written to it: a disk that keeps a byte wrong, wherever that is, is found out
// before the firmware is told.
func TestADiskThatLies(t *testing.T) {
	for name, at := range map[string]func(m *release.Manifest) int64{
		"first of the root":      func(*release.Manifest) int64 { return 0 },
		"last of the root":       func(m *release.Manifest) int64 { return m.Root.DataSize - 1 },
		"its hash tree":          func(m *release.Manifest) int64 { return m.Root.Size - 4096 + 7 },
		"the manifest behind it": func(*release.Manifest) int64 { return rootSize - release.TailSize + 100 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			two := b.publish("1.1.0", 300<<10)
			u := b.updater(b.disk, b.boot(), b.store)
			idle := rootOf(b.disk, slot.B)
			u.Roots[slot.B] = powercut.Part{D: lying{b.disk, idle.At + at(two.Signed.Manifest())}, At: idle.At, Len: idle.Len}
			p, err := u.Check(t.Context(), false)
			check(t, err)
			if err := u.Apply(t.Context(), p); err == nil || !strings.Contains(err.Error(), "slot b: reading back") {
				t.Errorf("got %v", err)
			}
			b.runs(b.boot(), slot.A, false, "1.0.0")
			if err := slottestTry(b); !errors.Is(err, slot.ErrEmpty) {
				t.Errorf("the idle slot could be tried: %v", err)
			}
		})
	}
	t.Run("the kernel", func(t *testing.T) {
		b := newBench(t)
		b.publish("1.1.0", 300<<10)
		booted := b.boot()
		u := b.updater(b.disk, booted, b.store)
		// The FAT volume's free space begins behind what is there: the new kernel lands in the middle of it.
		u.Selector = slottest.UEFI{}.Selector(powercut.Part{D: kernelLies{b.disk}, Len: slottest.VolumeSize}, booted)
		p, err := u.Check(t.Context(), false)
		check(t, err)
		if err := u.Apply(t.Context(), p); err == nil || !strings.Contains(err.Error(), "os-b.new") {
			t.Errorf("got %v", err)
		}
		b.runs(b.boot(), slot.A, false, "1.0.0")
	})
}

// kernelLies keeps the beginning of a kernel image wrong.
type kernelLies struct{ disk }

func (k kernelLies) WriteAt(b []byte, at int64) (int, error) {
	if len(b) > 64 && b[0] == 'M' && b[1] == 'Z' {
		b = slices.Clone(b)
		b[40] ^= 1
	}
	return k.disk.WriteAt(b, at)
}

// A slot that the next boot would use is not written, whoever runs: it may be the only good one.
func TestTheOnlyGoodSlotIsNotWritten(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	booted := b.boot()
	u := b.updater(b.disk, booted, b.store)
	p, err := u.Check(t.Context(), false)
	check(t, err)
	// Somebody, by the loader's menu or its config, made the other slot the one for the next boot.
	check(t, slottest.UEFI{}.Selector(esp(b.disk), booted).Keep(slot.B))
	for name, booted := range map[string]slot.ID{"the other is kept": slot.A, "it runs what it does not know": slot.B} {
		u.Booted = booted
		before, record := slices.Clone(b.disk.Bytes()), b.store.data
		for what, do := range map[string]func() error{"update": func() error { return u.Apply(t.Context(), p) }, "rollback": func() error { return u.Rollback(t.Context()) }} {
			if err := do(); err == nil || !strings.Contains(err.Error(), "may be the only good one") {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if !slices.Equal(before, b.disk.Bytes()) || record != b.store.data {
			t.Errorf("%s: something was written", name)
		}
	}
}

// A version that the machine could not leave is not marked as one to be left.
func TestARollbackThatDoesNotBegin(t *testing.T) {
	for name, spoil := range map[string]func(u *update.Updater){
		"snapshot": func(u *update.Updater) {
			u.Snapshot = func(context.Context) (*record.Saved, error) { return nil, errors.New("the disk is full") }
		},
		"drain": func(u *update.Updater) {
			u.Drain = func(context.Context) (string, error) { return "", errors.New("a budget never yields") }
		},
		"firmware": func(u *update.Updater) { u.Selector = noTry{u.Selector} },
	} {
		b := newBench(t)
		u := b.updater(b.disk, b.boot(), b.store)
		spoil(u)
		if err := u.Rollback(t.Context()); err == nil {
			t.Errorf("%s: it began", name)
		}
		r, err := b.store.Load()
		if err != nil || len(r.Failed) > 0 || r.Reason == "" || r.Phase != record.Idle {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		b.runs(b.boot(), slot.A, false, "1.0.0")
	}
}

type noTry struct{ slot.Selector }

func (noTry) TryOnce(slot.ID) (string, error) { return "", errors.New("the variables are full") }

// A release travels at any time; the machine restarts when its window opens, by a clock that may be set meanwhile, and not when
// it closed again while the pods left.
func TestTheRestartWaitsForItsWindow(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		at := func() time.Duration { return time.Since(began) }
		shift := time.Duration(0) // of the clock on the wall
		u := b.updater(b.disk, b.boot(), b.store)
		u.Now = func() time.Time { return now.Add(at() + shift) }
		// Open for ten minutes, from 3 h on, every 24 h.
		u.Window = func(at time.Time) time.Duration {
			since := (at.Sub(now) - 3*time.Hour + 24*time.Hour) % (24 * time.Hour)
			if since < 10*time.Minute {
				return 0
			}
			return 24*time.Hour - since
		}
		takes := 11 * time.Minute
		drained, given, restarted := []time.Duration{}, 0, time.Duration(0)
		u.Drain = func(context.Context) (string, error) {
			drained = append(drained, at()+shift)
			time.Sleep(takes)
			takes = time.Minute
			return "", nil
		}
		u.Undrain = func(context.Context) { given++ }
		u.Restart = func(string) error { restarted = at() + shift; return nil }
		p, err := u.Check(t.Context(), false)
		check(t, err)
		done := make(chan error)
		go func() { done <- u.Apply(t.Context(), p) }()
		time.Sleep(time.Hour)
		r, err := b.store.Load()
		if err != nil || r.Phase != record.Waiting || !strings.Contains(r.Waits, "2026-11-25 15:00 UTC") || r.Fetched == 0 {
			t.Errorf("after an hour: %+v, %v", r, err)
		}
		shift = time.Hour
		check(t, <-done)
		if want := []time.Duration{3 * time.Hour, 27 * time.Hour}; !slices.EqualFunc(drained, want, func(a, b time.Duration) bool { return (a - b).Abs() <= time.Minute }) {
			t.Errorf("pods left at %v, want %v", drained, want)
		}
		if late := restarted - 27*time.Hour; given != 1 || late < 0 || late > 3*time.Minute {
			t.Errorf("given back %d times; restarted at %v", given, restarted)
		}
		if r, err := b.store.Load(); err != nil || r.Phase != record.Trying || r.Waits != "" {
			t.Errorf("afterwards %+v, %v", r, err)
		}
	})
	b.runs(b.boot(), slot.B, true, "1.1.0")
}

// Somebody who wants something else of the machine ends the wait; nothing has changed then.
func TestAWaitThatIsEnded(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	other := errors.New("somebody asks for something else")
	synctest.Test(t, func(t *testing.T) {
		u := b.updater(b.disk, b.boot(), b.store)
		u.Window = func(time.Time) time.Duration { return time.Hour }
		p, err := u.Check(t.Context(), false)
		check(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Minute, func() { cancel(other) })
		if err := u.Apply(ctx, p); !errors.Is(err, other) {
			t.Errorf("got %v", err)
		}
	})
	b.runs(b.boot(), slot.A, false, "1.0.0")
	if r, err := b.store.Load(); err != nil || r.Phase != record.Idle || r.Waits != "" || r.HasFailed("1.1.0") {
		t.Errorf("record %+v, %v", r, err)
	}
}

// A kernel image that travels whole goes on from where the connection broke, as the root does.
func TestAKernelGoesOn(t *testing.T) {
	b := newBench(t)
	two := releasetest.New(t, 256<<10) // the root is there already
	version(t, two, "1.1.0")
	b.put(two)
	patches, err := filepath.Glob(filepath.Join(b.repo, "targets/amd64/1.1.0/*.delta"))
	check(t, err)
	for _, name := range patches {
		check(t, os.Remove(name))
	}
	files := http.FileServer(http.Dir(b.repo))
	broken := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".efi") {
			broken++
			w = &breaking{ResponseWriter: w, left: 3 << 10}
		}
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	web, err := repository.NewSource(server.URL, server.Client())
	check(t, err)
	b.src = web
	check(t, b.apply())
	b.runs(b.boot(), slot.B, true, "1.1.0")
	r, err := b.store.Load()
	check(t, err)
	size := two.Signed.Manifest().Boards["x86-uefi"].Boot.Size
	if broken < 2 || r.Fetched != size {
		t.Errorf("the kernel of %d bytes came in %d parts of %d bytes", size, broken, r.Fetched)
	}
}

// Whatever a source does is told of that source, in a word for metrics, and a good look at another does not cover it.
func TestEachSourceHasItsProblem(t *testing.T) {
	folder := func(t *testing.T, b *bench) string {
		t.Helper()
		to := filepath.Join(t.TempDir(), "copy")
		check(t, os.CopyFS(to, os.DirFS(b.repo)))
		return to
	}
	for kind, attack := range map[string]func(t *testing.T, b *bench, u *update.Updater) string{
		"expired": func(_ *testing.T, b *bench, u *update.Updater) string {
			u.Now = func() time.Time { return now.AddDate(1, 0, 0) }
			return b.repo
		},
		"replayed": func(t *testing.T, b *bench, u *update.Updater) string {
			t.Helper()
			old := folder(t, b)
			b.publish("1.2.0", 200<<10)
			_, err := u.Check(t.Context(), false)
			check(t, err)
			return old
		},
		"signature": func(t *testing.T, _ *bench, _ *update.Updater) string {
			t.Helper()
			other := newBench(t) // has other keys
			other.publish("1.1.0", 200<<10)
			return other.repo
		},
		"altered": func(t *testing.T, b *bench, _ *update.Updater) string {
			t.Helper()
			to := folder(t, b)
			names, err := filepath.Glob(filepath.Join(to, "metadata", "*.targets.json"))
			check(t, err)
			for _, name := range names {
				data, err := os.ReadFile(name)
				check(t, err)
				check(t, os.WriteFile(name, append(data, ' '), 0o600))
			}
			return to
		},
		"downgrade":   func(_ *testing.T, b *bench, u *update.Updater) string { u.Floor = "9.0.0"; return b.repo },
		"unreachable": func(t *testing.T, _ *bench, _ *update.Updater) string { t.Helper(); return t.TempDir() },
	} {
		b := newBench(t)
		b.publish("1.1.0", 300<<10)
		u := b.updater(b.disk, b.boot(), b.store)
		where := attack(t, b, u)
		bad, err := repository.NewSource(where, nil)
		check(t, err)
		u.Source = bad
		if kind != "replayed" {
			u.Dir = t.TempDir()
		}
		_, err = u.Check(t.Context(), false)
		if got := update.Kind(err); got != kind || update.Attack(kind) != (kind != "unreachable") || !slices.Contains(update.Kinds, kind) {
			t.Errorf("%s: is %q: %v", kind, got, err)
		}
		// A second source that is good, with nothing newer.
		good := newBench(t)
		good.publish("0.9.0", 300<<10)
		v := good.updater(good.disk, good.boot(), b.store)
		if _, err := v.Check(t.Context(), false); !errors.Is(err, repository.ErrUpToDate) {
			t.Errorf("%s: the good source: %v", kind, err)
		}
		r, err := b.store.Load()
		if err != nil || r.Sources[bad.String()].Kind != kind || r.Sources[good.src.String()] != (record.Source{Checked: now}) || !strings.Contains(r.Problem, bad.String()+": ") {
			t.Errorf("%s: %+v, %v", kind, r, err)
		}
		// Gone, it is told until somebody was.
		for _, told := range []bool{false, true} {
			s := r.Sources[bad.String()]
			if told {
				s.Told = s.Problem
				r.Sources[bad.String()] = s
			}
			if r.Only(good.src.String()); (r.Problem == "") != told {
				t.Errorf("%s: told %v: %q", kind, told, r.Problem)
			}
		}
	}
}
