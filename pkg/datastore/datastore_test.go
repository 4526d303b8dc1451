package datastore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

func dial(t testing.TB, s Store) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func open(t testing.TB, c Config) Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// running serves a database until the returned function stops it.
func running(t testing.TB, c Config) (client *clientv3.Client, stop func()) {
	t.Helper()
	store := open(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- store.Run(ctx, sync.OnceFunc(func() { close(up) })) }()
	select {
	case <-up:
	case err := <-out:
		cancel()
		t.Fatal(err)
	}
	client = dial(t, store)
	return client, func() {
		t.Helper()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-out; err != nil {
			t.Error(err)
		}
	}
}

func create(t testing.TB, c *clientv3.Client, key, value string) {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("creating %s: %v, %v", key, r, err)
	}
}

// What was stored is there after a stop, in the database file alone, and nobody else may read it.
func TestStoreStopStore(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "db")}
	client, stop := running(t, c)
	watch := client.Watch(t.Context(), "/registry/", clientv3.WithPrefix())
	create(t, client, "/registry/a", "one")
	if ev := <-watch; len(ev.Events) != 1 || string(ev.Events[0].Kv.Value) != "one" {
		t.Errorf("the watch saw %v", ev)
	}
	stop()
	err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.File() + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the write-ahead log is still there after a stop (%v)", err)
	}
	if err := open(t, c).Check(t.Context()); err != nil {
		t.Error(err)
	}

	client, stop = running(t, c)
	defer stop()
	r, err := client.Get(t.Context(), "/registry/a")
	if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "one" {
		t.Errorf("after a restart: %v, %v", r, err)
	}
	create(t, client, "/registry/b", "two")
}

// A damaged file is refused by name before anything is served from it.
func TestDamage(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "db")}
	client, stop := running(t, c)
	for _, k := range strings.Split("abcdefghijklmnop", "") {
		create(t, client, "/registry/"+k, strings.Repeat(k, 4000))
	}
	stop()
	data, err := os.ReadFile(c.File())
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"header":    func(b []byte) []byte { copy(b, "not a database"); return b },
		"pages":     func(b []byte) []byte { clear(b[4096 : len(b)-4096]); return b },
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(c.File(), damage(append([]byte(nil), data...)), 0o600); err != nil {
				t.Fatal(err)
			}
			err := open(t, c).Run(t.Context(), func() { t.Error("it was served") })
			if !errors.Is(err, ErrDamaged) || !strings.HasPrefix(err.Error(), c.File()+": is damaged") || !strings.Contains(err.Error(), "snapshot restore") {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func TestTooLongPath(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), strings.Repeat("x", 100))}
	if err := open(t, c).Run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "use a shorter data directory") {
		t.Errorf("Run: %v", err)
	}
}

// A write is answered only after a sync that began behind it; a read waits for nothing.
func TestAnswersWaitForTheDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(file+"-wal", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := newSyncer(file)
	if err != nil {
		t.Fatal(err)
	}
	h := newHealth(Config{Dir: t.TempDir()})
	call := func(method string) error {
		_, err := s.intercept(h)(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, nil })
		return err
	}
	for _, method := range []string{"/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status"} {
		if err := call(method); err != nil { // nobody syncs yet: waiting would hang
			t.Errorf("%s: %v", method, err)
		}
	}
	answered := make(chan error, 20)
	for i := range 20 {
		go func() { answered <- call([]string{"/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Put"}[i%2]) }()
	}
	select {
	case err := <-answered:
		t.Fatalf("a write was answered (%v) before anything was synced", err)
	case <-time.After(50 * time.Millisecond):
	}
	failed, stop := s.start()
	for range 20 {
		if err := <-answered; err != nil {
			t.Errorf("write: %v", err)
		}
	}
	// A disk that does not keep what it is given fails the write, every later one, and the datastore.
	if err := s.log.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := call("/etcdserverpb.KV/Txn"); err == nil || !strings.Contains(err.Error(), "state.db-wal: making it durable") {
			t.Errorf("error is %v", err)
		}
	}
	if err := <-failed; err == nil {
		t.Error("the datastore goes on")
	}
	stop()
}
