package update_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/powercut"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/slot/slottest"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// rootSize is that of the bench's root partitions.
const rootSize = 2 << 20

// bench is a machine that runs release 1 in both slots, and a repository.
type bench struct {
	t     testing.TB
	one   *releasetest.Bench
	roles *repository.Roles
	root  []byte
	repo  string
	dir   string
	disk  *powercut.Disk
	store *store
	src   repository.Source
}

// part is the disk of a machine: the ESP, then both roots.
type disk interface {
	ReadAt([]byte, int64) (int, error)
	WriteAt([]byte, int64) (int, error)
	Sync() error
}

func esp(d disk) powercut.Part { return powercut.Part{D: d, Len: slottest.VolumeSize} }

func rootOf(d disk, id slot.ID) powercut.Part {
	return powercut.Part{D: d, At: slottest.VolumeSize + int64(slices.Index(slot.IDs[:], id))*rootSize, Len: rootSize}
}

// store is a record that becomes durable at a known moment of the disk's life.
type store struct {
	disk *powercut.Disk
	data string
}

func (s *store) Load() (r record.Record, err error) {
	if s.data != "" {
		err = json.Unmarshal([]byte(s.data), &r)
	}
	return r, err
}

func (s *store) Save(r record.Record) error {
	b, err := json.Marshal(r)
	s.data = string(b)
	if s.disk != nil {
		s.disk.Mark(s.data)
	}
	return err
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, one: releasetest.New(t, 256<<10), repo: filepath.Join(t.TempDir(), "repo"), dir: t.TempDir()}
	var err error
	b.roles, err = repository.NewRoles(filepath.Join(t.TempDir(), "roles"), now)
	check(t, err)
	b.root, err = b.roles.Root()
	check(t, err)
	b.src, err = repository.NewSource(b.repo, nil)
	check(t, err)
	version(t, b.one, "1.0.0")
	kernel, err := os.ReadFile(filepath.Join(b.one.Release, "boot/x86-uefi.efi"))
	check(t, err)
	img := slottest.Volume(t, map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": []byte("loader"), "EFI/Linux/os-a.efi": kernel, "EFI/Linux/os-b.efi": kernel,
		"loader/loader.conf": []byte("timeout 0\ndefault os-a.efi\neditor no\n"),
	})
	root, err := os.ReadFile(filepath.Join(b.one.Release, "root.img"))
	check(t, err)
	tail, err := b.one.Signed.Tail()
	check(t, err)
	for range slot.IDs {
		p := make([]byte, rootSize)
		copy(p, root)
		copy(p[rootSize-release.TailSize:], tail)
		img = append(img, p...)
	}
	b.disk = powercut.New(img)
	b.store = &store{disk: b.disk}
	return b
}

func version(t testing.TB, b *releasetest.Bench, v string) {
	t.Helper()
	m := *b.Signed.Manifest()
	m.Version = v
	b.Sign(t, &m)
}

// publish puts a release of another content into the repository.
func (b *bench) publish(v string, size int) *releasetest.Bench {
	b.t.Helper()
	two := releasetest.New(b.t, size)
	version(b.t, two, v)
	b.put(two)
	return two
}

func (b *bench) put(r *releasetest.Bench) {
	b.t.Helper()
	_, err := repository.Publish(b.repo, b.roles, r.Signed, os.DirFS(r.Release), repository.PublishOptions{Now: now, Patches: 2})
	check(b.t, err)
}

// updater is for the OS that boots from a disk as it is.
func (b *bench) updater(d disk, booted slottest.Boot, st record.Store) *update.Updater {
	b.t.Helper()
	ver, err := bootable(d, booted, b.one)
	check(b.t, err)
	return &update.Updater{
		Machine: update.Machine{
			Arch: "amd64", Board: "x86-uefi", Version: ver, Seed: "machine", Booted: booted.Slot,
			Selector: slottest.UEFI{}.Selector(esp(d), booted),
			Roots:    map[slot.ID]update.Device{slot.A: rootOf(d, slot.A), slot.B: rootOf(d, slot.B)},
			Trusted:  b.one.Trusted(),
		},
		Store: st, Source: b.src, Root: b.root, Dir: b.dir, Now: func() time.Time { return now },
	}
}

func (b *bench) boot() slottest.Boot { return slottest.UEFI{}.Boot(esp(b.disk), "", everyKernel) }

func everyKernel([]byte) bool { return true }

// bootable is what kernel and stage 1 would find of what the firmware started: it gives the version that runs.
func bootable(d disk, booted slottest.Boot, keys *releasetest.Bench) (string, error) {
	if booted.Slot == "" {
		return "", errors.New("nothing boots")
	}
	sections, err := uki.Sections([]byte(booted.Kernel))
	if err != nil {
		return "", fmt.Errorf("kernel of slot %s: %w", booted.Slot, err)
	}
	p := rootOf(d, booted.Slot)
	rel, err := release.ReadTail(p, p.Size(), keys.Trusted())
	if err != nil {
		return "", fmt.Errorf("slot %s: %w", booted.Slot, err)
	}
	m := rel.Manifest()
	if !strings.Contains(string(sections[".cmdline"]), "skerry.roothash="+m.Root.RootHash) {
		return "", fmt.Errorf("slot %s: kernel and root do not belong together", booted.Slot)
	}
	sum := m.Boards["x86-uefi"].Boot
	if err := sum.Check(strings.NewReader(booted.Kernel)); err != nil {
		return "", fmt.Errorf("slot %s: %w", booted.Slot, err)
	}
	return m.Version, verity.Verify(p, m.Root.DataSize, m.Root.RootHash, m.Root.Salt)
}

func (b *bench) apply() error {
	b.t.Helper()
	u := b.updater(b.disk, b.boot(), b.store)
	p, err := u.Check(context.Background(), false)
	if err != nil {
		return err
	}
	return u.Apply(context.Background(), p)
}

func healthy(context.Context, *record.Before) (string, error) { return "", nil }

func (b *bench) judge(booted slottest.Boot, verdict func(context.Context, *record.Before) (string, error)) error {
	b.t.Helper()
	ver, err := bootable(b.disk, booted, b.one)
	check(b.t, err)
	trial := record.Trial{Store: b.store, Slot: booted.Slot, Version: ver}
	check(b.t, errors.Join(trial.Began(), trial.Reached("judge slot")))
	return record.Judge(b.t.Context(), b.store, slottest.UEFI{}.Selector(esp(b.disk), booted), booted.Slot, ver, func() time.Time { return now }, verdict)
}

func (b *bench) runs(booted slottest.Boot, id slot.ID, trial bool, ver string) {
	b.t.Helper()
	got, err := bootable(b.disk, booted, b.one)
	if err != nil || booted.Slot != id || booted.Trial != trial || got != ver {
		b.t.Fatalf("runs %v, release %q (%v); want slot %s (trial %v), %s", booted, got, err, id, trial, ver)
	}
}

func TestUpdateToKeep(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	check(t, b.apply())
	booted := b.boot()
	b.runs(booted, slot.B, true, "1.1.0")
	u := b.updater(b.disk, booted, b.store)
	if err := u.Rollback(t.Context()); !errors.Is(err, update.ErrTrial) {
		t.Errorf("during the trial: %v", err)
	}
	check(t, b.judge(booted, healthy))
	b.runs(b.boot(), slot.B, false, "1.1.0")
	r, err := b.store.Load()
	check(t, err)
	if r.Current != "1.1.0" || r.Previous != "1.0.0" || r.Floor != "1.0.0" || r.Phase != record.Idle || r.Fetched == 0 {
		t.Errorf("record %+v", r)
	}
	if err := b.apply(); !errors.Is(err, repository.ErrUpToDate) {
		t.Errorf("once more: %v", err)
	}
	// And back by hand: the update is not brought again.
	check(t, b.updater(b.disk, b.boot(), b.store).Rollback(t.Context()))
	booted = b.boot()
	b.runs(booted, slot.A, true, "1.0.0")
	check(t, b.judge(booted, healthy))
	b.runs(b.boot(), slot.A, false, "1.0.0")
	if err := b.apply(); !errors.Is(err, repository.ErrUpToDate) {
		t.Errorf("what somebody went back from: %v", err)
	}
	b.publish("1.2.0", 200<<10)
	check(t, b.apply())
	b.runs(b.boot(), slot.B, true, "1.2.0")
}

// A release that starts and is not healthy is left at once; one that dies is left by the firmware. Neither is tried again.
func TestAFailedTrialGoesBack(t *testing.T) {
	for name, fail := range map[string]func(b *bench) string{
		"not healthy": func(b *bench) string {
			err := b.judge(b.boot(), func(context.Context, *record.Before) (string, error) { return "", errors.New("the node is not Ready") })
			if !errors.Is(err, record.ErrVerdict) {
				b.t.Fatalf("verdict %v", err)
			}
			return "the node is not Ready"
		},
		"dies early": func(b *bench) string {
			for range slot.Tries {
				b.runs(b.boot(), slot.B, true, "1.1.0")
			}
			return "before it reached the data partition"
		},
		"does not load": func(b *bench) string {
			slottest.UEFI{}.Boot(esp(b.disk), "", func(k []byte) bool { return bytes.Contains(k, []byte(b.one.Signed.Manifest().Root.RootHash)) })
			return "or was refused"
		},
		"hangs later": func(b *bench) string {
			for range slot.Tries {
				booted := b.boot()
				b.runs(booted, slot.B, true, "1.1.0")
				func() {
					defer func() { _ = recover() }()
					_ = b.judge(booted, func(context.Context, *record.Before) (string, error) { panic("the watchdog bites") })
				}()
			}
			return `it started 3 times and got as far as "judge slot"`
		},
		"stops early": func(b *bench) string {
			for range slot.Tries {
				b.runs(b.boot(), slot.B, true, "1.1.0")
				trial := record.Trial{Store: b.store, Slot: slot.B, Version: "1.1.0"}
				check(b.t, errors.Join(trial.Began(), trial.Reached("read config"), trial.Failed("config.yaml:3:1: unknown key")))
			}
			return `it started 3 times and got as far as "read config", where it stopped: config.yaml:3:1: unknown key`
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.publish("1.1.0", 300<<10)
			check(t, b.apply())
			why := fail(b)
			booted := b.boot()
			b.runs(booted, slot.A, false, "1.0.0")
			_, err := record.Settle(b.store, slottest.UEFI{}.Selector(esp(b.disk), booted), booted.Slot, "1.0.0", now)
			check(t, err)
			r, err := b.store.Load()
			check(t, err)
			if !r.HasFailed("1.1.0") || !strings.Contains(r.Reason, why) || r.Phase != record.Idle {
				t.Errorf("record %+v; want %q", r, why)
			}
			if err := b.apply(); !errors.Is(err, repository.ErrUpToDate) {
				t.Errorf("tried again: %v", err)
			}
			b.runs(b.boot(), slot.A, false, "1.0.0")
		})
	}
}

// Whatever a server sends: the machine runs on as it was, the idle slot does not boot, and the reason is told.
func TestBadContentIsRefused(t *testing.T) {
	spoil := func(suffix string, change func([]byte) []byte) func(t *testing.T, b *bench) {
		return func(t *testing.T, b *bench) {
			t.Helper()
			found := 0
			check(t, filepath.Walk(filepath.Join(b.repo, "targets"), func(name string, fi os.FileInfo, err error) error {
				if err == nil && strings.HasSuffix(name, suffix) {
					found++
					data, rerr := os.ReadFile(name)
					return errors.Join(rerr, os.WriteFile(name, change(data), 0o644))
				}
				return err
			}))
			if found == 0 {
				t.Fatalf("no %s", suffix)
			}
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	for name, tt := range map[string]struct {
		attack func(t *testing.T, b *bench)
		asked  string // what is asked for once, because what comes is wrong; what breaks off is asked for again
	}{
		"root": {func(t *testing.T, b *bench) {
			spoil(".root.img", flip)(t, b)
			spoil(".root.img.zst", flip)(t, b)
		}, ".root.img.zst"},
		"root cut short": {func(t *testing.T, b *bench) {
			spoil(".root.img", cut)(t, b)
			spoil(".root.img.zst", cut)(t, b)
		}, ""},
		"kernel":           {spoil(".x86-uefi.efi", flip), ".x86-uefi.efi"},
		"kernel cut short": {spoil(".x86-uefi.efi", cut), ""},
		"index":            {spoil(".root.idx", flip), ".root.idx"},
		"manifest":         {spoil(".manifest.json", flip), ".manifest.json"},
		"signature":        {spoil(".manifest.sig", flip), ".manifest.sig"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.publish("1.1.0", 300<<10)
			tt.attack(t, b)
			asked := &counted{Source: b.src, times: map[string]int{}}
			b.src = asked
			var p *repository.Package
			synctest.Test(t, func(t *testing.T) {
				u := b.updater(b.disk, b.boot(), b.store)
				var err error
				p, err = u.Check(t.Context(), false)
				if err == nil {
					err = u.Apply(t.Context(), p)
				}
				if err == nil {
					t.Error("was taken")
				}
			})
			b.runs(b.boot(), slot.A, false, "1.0.0")
			r, lerr := b.store.Load()
			check(t, lerr)
			if r.Problem == "" && r.Reason == "" {
				t.Errorf("no reason in %+v", r)
			}
			if err := slottestTry(b); p != nil && !errors.Is(err, slot.ErrEmpty) {
				t.Errorf("the idle slot could be tried: %v", err)
			}
			for what, times := range asked.times {
				if tt.asked != "" && strings.HasSuffix(what, tt.asked) && times != 1 {
					t.Errorf("%s was asked for %d times", what, times)
				}
			}
		})
	}
}

// counted counts what is asked for.
type counted struct {
	repository.Source
	times map[string]int
	bytes map[string]int64 // that came, of each; may be nil
}

func (c *counted) Open(ctx context.Context, name string, at, size int64) (io.ReadCloser, error) {
	c.times[name]++
	r, err := c.Source.Open(ctx, name, at, size)
	if err == nil && c.bytes != nil {
		r = &tally{r, func(n int) { c.bytes[name] += int64(n) }}
	}
	return r, err
}

type tally struct {
	io.ReadCloser
	add func(int)
}

func (t *tally) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	t.add(n)
	return n, err
}

// A shell comes to a machine that has none only where its config says so; one that has one gets what there is.
func TestDebugReleases(t *testing.T) {
	b := newBench(t)
	two := releasetest.New(t, 300<<10)
	m := *two.Signed.Manifest()
	m.Version, m.Debug = "1.1.0", true
	two.Sign(t, &m)
	b.put(two)
	before := bytes.Clone(b.disk.Bytes())
	u := b.updater(b.disk, b.boot(), b.store)
	for _, force := range []bool{false, true} {
		if _, err := u.Check(t.Context(), force); !errors.Is(err, update.ErrDebug) {
			t.Errorf("by force %v: %v", force, err)
		}
	}
	if r, err := b.store.Load(); err != nil || !strings.Contains(r.Problem, "release 1.1.0: is a debug release") || !strings.Contains(r.Problem, "update: {debug: true}") {
		t.Errorf("record %+v, %v", r, err)
	}
	if !bytes.Equal(before, b.disk.Bytes()) {
		t.Error("something was written")
	}
	// As the config, or a debug release that runs, allows it.
	u.Debug = true
	p, err := u.Check(t.Context(), false)
	check(t, err)
	check(t, u.Apply(t.Context(), p))
	// Nor by hand, where the other slot has one.
	booted := b.boot()
	b.runs(booted, slot.B, true, "1.1.0")
	if err := b.judge(booted, func(context.Context, *record.Before) (string, error) { return "", errors.New("it does not please") }); err == nil {
		t.Error("was kept")
	}
	booted = b.boot()
	b.runs(booted, slot.A, false, "1.0.0")
	u = b.updater(b.disk, booted, b.store)
	if err := u.Rollback(t.Context()); !errors.Is(err, update.ErrDebug) {
		t.Errorf("by hand to the other slot: %v", err)
	}
}

// A release below the floor is refused, whoever signed it, whether the floor is in the record or in the firmware.
func TestFloor(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 300<<10)
	before := bytes.Clone(b.disk.Bytes())
	u := b.updater(b.disk, b.boot(), b.store)
	u.Floor = "1.2.0"
	if _, err := u.Check(t.Context(), false); !errors.Is(err, release.ErrRollback) {
		t.Errorf("below the firmware's floor: %v", err)
	}
	u.Floor = ""
	check(t, b.store.Save(record.Record{Floor: "1.2.0"}))
	if _, err := u.Check(t.Context(), true); !errors.Is(err, release.ErrRollback) {
		t.Errorf("below the record's floor, by force: %v", err)
	}
	if err := u.Rollback(t.Context()); !errors.Is(err, release.ErrRollback) {
		t.Errorf("by hand to what is below the floor: %v", err)
	}
	if r, err := b.store.Load(); err != nil || !strings.Contains(r.Problem, "is older than this machine may go back to") {
		t.Errorf("record %+v, %v", r, err)
	}
	if !bytes.Equal(before, b.disk.Bytes()) {
		t.Error("something was written")
	}
}

// Around an update: the datastore is saved, pods leave, and if it does not come to a restart, the node is given back.
func TestHooks(t *testing.T) {
	for name, fail := range map[string]error{"good": nil, "stuck": errors.New("a budget never yields")} {
		b := newBench(t)
		b.publish("1.1.0", 300<<10)
		u := b.updater(b.disk, b.boot(), b.store)
		u.Kubernetes = "v1.36.0"
		var said []string
		u.Before = func(context.Context) (*record.Before, error) {
			said = append(said, "before")
			return &record.Before{Ready: true}, nil
		}
		u.Snapshot = func(context.Context) (*record.Saved, error) {
			said = append(said, "snapshot")
			return &record.Saved{Snapshot: "s"}, nil
		}
		u.Drain = func(context.Context) (string, error) { said = append(said, "drain"); return "default/db stays", fail }
		u.Undrain = func(context.Context) { said = append(said, "undrain") }
		u.Restart = func(string) error { said = append(said, "restart"); return nil }
		p, err := u.Check(t.Context(), false)
		check(t, err)
		err = u.Apply(t.Context(), p)
		r, lerr := b.store.Load()
		check(t, lerr)
		want := "before snapshot drain restart"
		if fail != nil {
			want = "before snapshot drain undrain"
		}
		if got := strings.Join(said, " "); got != want || !errors.Is(err, fail) || r.Drained != "default/db stays" {
			t.Errorf("%s: %s, %v, %+v", name, got, err, r)
		}
		if fail == nil && (r.Saved == nil || *r.Saved != record.Saved{Snapshot: "s", Release: "1.0.0", Kubernetes: "v1.36.0", Next: "v1.37.2"}) {
			t.Errorf("saved %+v", r.Saved)
		}
		if booted := b.boot(); fail != nil && booted.Slot != slot.A {
			t.Errorf("%s: boots %v", name, booted)
		}
	}
}

func slottestTry(b *bench) error {
	_, err := slottest.UEFI{}.Selector(esp(b.disk), b.boot()).TryOnce(slot.B)
	return err
}

// Whatever does not fit, wherever it is: nothing is written, and the reason names the place.
func TestPreflight(t *testing.T) {
	free := func(most map[string]int64) func(dir string) (int64, error) {
		return func(dir string) (int64, error) { return most[dir], nil }
	}
	for name, tt := range map[string]struct {
		size int
		fill bool
		room map[string]int64
		want string
	}{
		"root":      {size: 3 << 20, want: "partition root-b has room for"},
		"ESP":       {size: 300 << 10, fill: true, want: "its kernel image of"},
		"record":    {size: 300 << 10, room: map[string]int64{"meta": 1 << 20, "snapshots": 1 << 40}, want: "the record of updates of"},
		"snapshot":  {size: 300 << 10, room: map[string]int64{"meta": 1 << 40, "snapshots": 1 << 20}, want: "a snapshot of the datastore of 64"},
		"it is not": {size: 300 << 10, room: map[string]int64{"meta": 1 << 40, "snapshots": 1 << 30}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.publish("1.1.0", tt.size)
			u := b.updater(b.disk, b.boot(), b.store)
			p, err := u.Check(t.Context(), false)
			check(t, err)
			if tt.fill {
				e, err := fat.Edit(esp(b.disk), slottest.VolumeSize, now)
				check(t, err)
				kernel, ok := e.Find("EFI/Linux/os-b.efi")
				if !ok {
					t.Fatal("there is no kernel")
				}
				check(t, e.Remove(kernel.Path))
				full := e.Free() - 4096
				check(t, e.Write("full", full, io.LimitReader(zeros{}, full)))
			}
			if tt.room != nil {
				u.Dir, u.Free = "meta", free(tt.room)
				u.Needs = func(context.Context) ([]update.Need, error) {
					return []update.Need{{What: "a snapshot of the datastore", Dir: "snapshots", Bytes: 64 << 20}}, nil
				}
			}
			before := bytes.Clone(b.disk.Bytes())
			err = u.Apply(t.Context(), p)
			if tt.want == "" {
				check(t, err)
				return
			}
			if !errors.Is(err, update.ErrRoom) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if !bytes.Equal(before, b.disk.Bytes()) {
				t.Error("something was written although it could not fit")
			}
			r, err := b.store.Load()
			if err != nil || !strings.Contains(r.Reason, tt.want) || r.Phase != record.Idle || r.HasFailed("1.1.0") {
				t.Errorf("record %+v, %v", r, err)
			}
			if tt.room == nil {
				return
			}
			if err := u.Rollback(t.Context()); !errors.Is(err, update.ErrRoom) || !bytes.Equal(before, b.disk.Bytes()) {
				t.Errorf("back to the other slot: %v", err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A connection that breaks again and again costs time, not bytes: what came stays.
func TestDownloadGoesOn(t *testing.T) {
	b := newBench(t)
	b.publish("1.1.0", 900<<10)
	files := http.FileServer(http.Dir(b.repo))
	broken := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".zst") || strings.HasSuffix(r.URL.Path, "root.img") && broken < 2 {
			broken++
			files.ServeHTTP(&breaking{ResponseWriter: w, left: 100 << 10}, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	var err error
	b.src, err = repository.NewSource(server.URL, server.Client())
	check(t, err)
	check(t, b.apply())
	b.runs(b.boot(), slot.B, true, "1.1.0")
	r, err := b.store.Load()
	check(t, err)
	if broken < 2 || r.Fetched > r.Whole+1<<20 {
		t.Errorf("broken %d times, %d of %d bytes travelled", broken, r.Fetched, r.Whole)
	}
}

type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) > b.left {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

// What is there already does not travel: a release with the same root fetches the kernel alone.
func TestOnlyWhatChangedTravels(t *testing.T) {
	b := newBench(t)
	same := releasetest.New(t, 256<<10)
	version(t, same, "1.1.0")
	b.put(same)
	check(t, b.apply())
	r, err := b.store.Load()
	check(t, err)
	if want := same.Signed.Manifest().Boards["x86-uefi"].Boot.Size; r.Fetched != want {
		t.Errorf("%d bytes travelled; the kernel is %d", r.Fetched, want)
	}
}
