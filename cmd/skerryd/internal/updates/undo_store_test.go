package updates

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/snapshot"
	"github.com/skerry-os/skerry/pkg/update/record"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// used serves a datastore while do uses it.
func used(t *testing.T, store datastore.Store, do func(c *clientv3.Client)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}, 1), make(chan error, 1)
	go func() { out <- store.Run(ctx, func() { up <- struct{}{} }) }()
	select {
	case <-up:
	case err := <-out:
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{store.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	check(t, err)
	do(c)
	check(t, c.Close())
	cancel()
	check(t, <-out)
}

// A release that writes SQLite's file in another form fails: what it wrote is gone afterwards, what was there before is there.
func TestUndoOfARealDatastore(t *testing.T) {
	dir, err := os.MkdirTemp("", "undo") // a socket's name is short
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf := datastore.Config{Dir: filepath.Join(dir, "db")}
	store, err := datastore.Open(conf)
	check(t, err)
	snapshots, err := snapshot.New(snapshot.Config{Dir: filepath.Join(dir, "snapshots"), Retention: 2, Node: "n", Kubernetes: "v1.37.2"})
	check(t, err)
	create := func(c *clientv3.Client, key string) {
		r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit()
		if err != nil || !r.Succeeded {
			t.Fatalf("creating %s: %v, %v", key, r, err)
		}
	}
	schema := func(ctx context.Context) (string, error) { return store.(datastore.Schemer).Schema(ctx) }
	saved := &record.Saved{Kubernetes: "v1.37.2", Next: "v1.37.2"}
	used(t, store, func(c *clientv3.Client) {
		create(c, "/registry/before")
		got, err := Save(t.Context(), slog.New(slog.DiscardHandler), snapshots, store)
		check(t, err)
		saved.Snapshot, saved.Schema = got.Snapshot, got.Schema
		// Where snapshots go besides is away: the one that is here is enough, and that is said.
		gone := snapshot.S3{Endpoint: "127.0.0.1:9", Bucket: "b", AccessKey: "a", SecretKey: "s", Insecure: true, Timeout: time.Second}
		away, err := snapshot.New(snapshot.Config{Dir: filepath.Join(dir, "others"), Retention: 2, S3: &gone, Node: "n", Kubernetes: "v1.37.2"})
		check(t, err)
		got, err = Save(t.Context(), slog.New(slog.DiscardHandler), away, store)
		if err != nil || got.Snapshot == "" || got.Schema != saved.Schema || !strings.Contains(got.Note, got.Snapshot+" is in "+filepath.Join(dir, "others")+", but not in") {
			t.Errorf("without S3: %+v, %v", got, err)
		}
		// Without room here there is none.
		check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
		none, err := snapshot.New(snapshot.Config{Dir: filepath.Join(dir, "file", "x"), Retention: 2, Node: "n", Kubernetes: "v1.37.2"})
		check(t, err)
		if got, err := Save(t.Context(), slog.New(slog.DiscardHandler), none, store); err == nil {
			t.Errorf("without a folder: %+v", got)
		}
	})
	used(t, store, func(c *clientv3.Client) { create(c, "/registry/during") })
	db, err := sql.Open("sqlite", "file:"+conf.File())
	check(t, err)
	_, err = db.Exec("ALTER TABLE kine ADD COLUMN colour TEXT")
	check(t, errors.Join(err, db.Close()))

	st := record.File(filepath.Join(dir, "record.json"))
	r := record.Record{Phase: record.Trying, To: "1.1.0", Boots: 1, Saved: saved}
	r.Fail("it was no good", time.Unix(0, 0))
	check(t, st.Save(r))
	check(t, Undo(t.Context(), slog.New(slog.DiscardHandler), st, "1.0.0", Datastore{
		Schema: schema,
		Restore: func(ctx context.Context, name string) (string, error) {
			_, aside, err := snapshots.Restore(ctx, store, name)
			return aside, err
		},
	}))
	r, err = st.Load()
	if err != nil || r.Undo != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	used(t, store, func(c *clientv3.Client) {
		for key, want := range map[string]int{"/registry/before": 1, "/registry/during": 0} {
			if got, err := c.Get(t.Context(), key); err != nil || len(got.Kvs) != want {
				t.Errorf("%s: %v, %v", key, got, err)
			}
		}
	})
	if now, err := schema(t.Context()); now != saved.Schema || err != nil {
		t.Errorf("the form is %q, %v; it was %q", now, err, saved.Schema)
	}
}
