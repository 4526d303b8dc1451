package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// While a backlog is compacted and space is given back, no writer is told that the database is locked, and none waits for
// more than a moment.
func TestWritersDuringCompaction(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "db")}
	client, stop := running(t, c)
	create(t, client, "/registry/a", "one")
	stop()
	// Thirty thousand revisions that nobody compacted, as after a long outage of the compactor.
	db, err := openSQLite(c.File())
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value, old_value)
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000), top(m) AS (SELECT MAX(id) FROM kine)
		SELECT '/registry/' || (i % 500), i <= 500, 0, 0, CASE WHEN i <= 500 THEN 0 ELSE m + i - 500 END, 0, randomblob(400), NULL FROM n, top`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	pages := func() (free, all int64) {
		t.Helper()
		db, err := openSQLite(c.File())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close() //nolint:errcheck // only read
		if err := errors.Join(db.QueryRow("PRAGMA freelist_count").Scan(&free), db.QueryRow("PRAGMA page_count").Scan(&all)); err != nil {
			t.Fatal(err)
		}
		return free, all
	}
	_, before := pages()

	store := open(t, c).(*sqliteStore)
	store.compactEvery = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	up, out := channels()
	go func() { out <- store.Run(ctx, func() { close(up) }) }()
	<-up
	client = dial(t, store)
	defer client.Close() //nolint:errcheck // the test is over
	var slowest atomic.Int64
	var writes atomic.Int64
	var writers sync.WaitGroup
	done := make(chan struct{})
	for w := range 16 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				key := fmt.Sprintf("/registry/w%d-%d", w, i)
				began := time.Now()
				r, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit()
				if err != nil || !r.Succeeded {
					t.Errorf("%s: %v, %v", key, r, err)
					return
				}
				writes.Add(1)
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
			}
		})
	}
	watch := client.Watch(ctx, "/registry/w0", clientv3.WithPrefix()) // kine compacts once somebody watches
	<-watch
	left := func() (n int) {
		db, err := openSQLite(c.File())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close() //nolint:errcheck // only read
		if err := db.QueryRow("SELECT COUNT(*) FROM kine WHERE name < '/registry/w'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, func() error {
		if n := left(); n > 2000 {
			return fmt.Errorf("%d old revisions are left", n)
		}
		return nil
	})
	if err := vacuum(ctx, c.File(), newHealth(c).turn); err != nil {
		t.Error(err)
	}
	close(done)
	writers.Wait()
	cancel()
	if err := <-out; err != nil {
		t.Error(err)
	}
	t.Logf("%d writes, the slowest took %v", writes.Load(), time.Duration(slowest.Load()).Round(time.Millisecond))
	if d := time.Duration(slowest.Load()); d > 10*time.Second { // the busy timeout is thirty: far from it, on the slowest machine
		t.Errorf("a write took %v", d)
	}
	free, after := pages()
	if after > before/2 || free > before/4 { // what kine compacted behind the vacuum's back is unused, too
		t.Errorf("the file had %d pages and has %d, %d of them unused", before, after, free)
	}
	if err := store.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A full disk fails writes, says so once, and nothing else: what is stored can be read, and writes work as soon as there is
// room. A server that starts on a full disk waits.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH) //nolint:errcheck // the folder goes anyway
	events := make(chan Event, 100)
	c := Config{Dir: filepath.Join(disk, "db"), Tell: func(e Event) { events <- e }}
	client, stop := running(t, c)
	create(t, client, "/registry/a", "one")

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		key := fmt.Sprintf("/registry/big%d", i)
		if _, err = client.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, strings.Repeat("x", 20_000))).Commit(); err == nil {
			if r, err := client.Get(t.Context(), key); err != nil || len(r.Kvs) != 1 {
				t.Fatalf("%s was answered as stored, and is not there: %v, %v", key, r, err)
			}
		}
	}
	if err == nil || !strings.Contains(err.Error(), "full") {
		t.Fatalf("the disk is full, and the error is %v", err)
	}
	for e := range events {
		if e.Reason == ReasonDiskFull {
			break
		}
	}
	if r, err := client.Get(t.Context(), "/registry/a"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("reading on a full disk: %v, %v", r, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := client.Put(t.Context(), "/registry/health", "x")
		return err
	})
	create(t, client, "/registry/b", "two")
	for e := range events {
		if e.Reason == ReasonDiskOK {
			break
		}
	}
	stop()

	fill(t, filler)
	ctx, cancel := context.WithCancel(t.Context())
	up, out := channels()
	store := open(t, c)
	go func() { out <- store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
	select {
	case <-up: // the room that was kept back was enough
	case err := <-out:
		t.Fatalf("a start on a full disk ends: %v", err)
	case e := <-events:
		if e.Reason != ReasonDiskFull {
			t.Errorf("told: %+v", e)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	select {
	case <-up:
	case err := <-out:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("not up although there is room")
	}
	again := dial(t, store)
	defer again.Close() //nolint:errcheck // the test is over
	for key, want := range map[string]string{"/registry/a": "one", "/registry/b": "two"} {
		if r, err := again.Get(t.Context(), key); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
			t.Errorf("%s: %v, %v", key, r, err)
		}
	}
	cancel()
	if err := <-out; err != nil {
		t.Error(err)
	}
}

func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	_ = f.Close()
}

// However a restore is cut short, the next start serves the old content or the new.
func TestRestoreCutShort(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "db")}
	client, stop := running(t, c)
	create(t, client, "/registry/a", "old")
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if _, err := open(t, c).Snapshot(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	put(t, client, "/registry/a", "new")
	stop()
	value := func() string {
		client, stop := running(t, c)
		defer stop()
		r, err := client.Get(t.Context(), "/registry/a")
		if err != nil || len(r.Kvs) != 1 {
			t.Fatal(r, err)
		}
		return string(r.Kvs[0].Value)
	}
	store := open(t, c).(*sqliteStore)
	if err := os.WriteFile(store.staged()+".partial", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := value(); got != "new" {
		t.Errorf("with half a file staged: %q", got)
	}
	if err := store.Stage(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	if got := value(); got != "old" {
		t.Errorf("after a restore at the next start: %q", got)
	}
	// The old file is linked aside already, and its log is gone.
	if err := store.Stage(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(store.staged())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(c.File(), c.File()+".before-"+info.ModTime().UTC().Format("20060102T150405.000")); err != nil {
		t.Fatal(err)
	}
	if got := value(); got != "old" {
		t.Errorf("after a cut in the middle: %q", got)
	}
}

// A file of an earlier release learns to give space back.
func TestOlderFile(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	db, err := sql.Open("sqlite", "file:"+c.File())
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(createTable)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	client, stop := running(t, c)
	create(t, client, "/registry/a", "one")
	stop()
	db, err = openSQLite(c.File())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // only read
	var mode int
	if err := db.QueryRow("PRAGMA auto_vacuum").Scan(&mode); err != nil || mode != 2 {
		t.Errorf("auto_vacuum is %d, %v", mode, err)
	}
}

// A file that a running server found damaged is replaced at the next start, without being looked at again.
func TestMarkedDamaged(t *testing.T) {
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	var told []string
	c := Config{Dir: t.TempDir(), Tell: func(e Event) { told = append(told, e.Reason) },
		Recover: func(_ context.Context, restore func(file string) error) (string, error) {
			return "the-newest", restore(snapshot)
		}}
	client, stop := running(t, c)
	create(t, client, "/registry/a", "one")
	if _, err := open(t, c).Snapshot(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	create(t, client, "/registry/b", "two")
	stop()
	if err := c.markDamaged(); err != nil {
		t.Fatal(err)
	}
	client, stop = running(t, c)
	defer stop()
	if c.markedDamaged() || !slices.Contains(told, ReasonRestored) {
		t.Errorf("marked %v, told %q", c.markedDamaged(), told)
	}
	for key, there := range map[string]int{"/registry/a": 1, "/registry/b": 0} {
		if r, err := client.Get(t.Context(), key); err != nil || len(r.Kvs) != there {
			t.Errorf("%s: %v, %v", key, r, err)
		}
	}
	if kept, _ := filepath.Glob(c.File() + ".before-*"); len(kept) == 0 {
		t.Error("the damaged file is gone")
	}
}
