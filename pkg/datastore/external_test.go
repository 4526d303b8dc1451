package datastore

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skerry-os/skerry/pkg/datastore/databases"
)

// A server that starts before its database waits for it; one whose database goes away lives on; what was stored stays; a
// snapshot of it can be restored into it and into SQLite.
func TestExternal(t *testing.T) {
	for name, newOne := range databases.Kinds {
		t.Run(name, func(t *testing.T) {
			d := newOne(t, databases.Place{})
			c := Config{Dir: filepath.Join(t.TempDir(), "db"), Endpoint: d.URL}
			store := open(t, c)
			if store.Kind() != name {
				t.Errorf("its kind is %s", store.Kind())
			}
			ctx, cancel := context.WithCancel(t.Context())
			up, out := channels()
			go func() { out <- store.Run(ctx, func() { close(up) }) }()
			select {
			case <-up:
				t.Fatal("ready without a database")
			case err := <-out:
				t.Fatalf("it gave up: %v", err)
			case <-time.After(500 * time.Millisecond):
			}
			d.Start()
			select {
			case <-up:
			case err := <-out:
				t.Fatal(err)
			case <-time.After(time.Minute):
				t.Fatal("not ready a minute after the database came")
			}
			client := dial(t, store)
			defer client.Close() //nolint:errcheck // the test is over
			binary := string([]byte{0, 1, 0xff, '\'', '\\', 0})
			create(t, client, "/registry/a", "one")
			create(t, client, "/registry/b", binary)
			put(t, client, "/registry/a", "two")

			d.Kill()
			short, done := context.WithTimeout(ctx, 5*time.Second)
			if _, err := client.Get(short, "/registry/a"); err == nil {
				t.Error("it answers without its database")
			}
			done()
			d.Start()
			eventually(t, func() error {
				short, done := context.WithTimeout(ctx, 5*time.Second)
				defer done()
				r, err := client.Get(short, "/registry/a")
				if err == nil && (len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "two") {
					t.Fatalf("after the database came back: %v", r)
				}
				return err
			})
			create(t, client, "/registry/c", "three")

			file := filepath.Join(t.TempDir(), "snapshot")
			rev, err := store.Snapshot(ctx, file)
			if err != nil || rev == 0 {
				t.Fatalf("snapshot: %d, %v", rev, err)
			}
			if size, err := store.Size(ctx); err != nil || size == 0 {
				t.Errorf("size: %d, %v", size, err)
			}
			create(t, client, "/registry/later", "four")
			cancel()
			if err := <-out; err != nil {
				t.Error(err)
			}

			want := map[string]string{"/registry/a": "two", "/registry/b": binary, "/registry/c": "three"}
			aside, err := store.Restore(t.Context(), file)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, c, want, rev)
			// What was there before is a snapshot too.
			before := Config{Dir: filepath.Join(t.TempDir(), "db")}
			if _, err := open(t, before).Restore(t.Context(), aside); err != nil {
				t.Fatal(err)
			}
			want["/registry/later"] = "four"
			holds(t, before, want, rev)
		})
	}
}

func channels() (up chan struct{}, out chan error) { return make(chan struct{}), make(chan error, 1) }

// holds starts a store and compares all of it, and that its revisions are later than rev's.
func holds(t *testing.T, c Config, want map[string]string, rev Revision) {
	t.Helper()
	client, stop := running(t, c)
	defer stop()
	r, err := client.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range r.Kvs {
		if string(kv.Key) != "/registry/health" { // kine's own
			got[string(kv.Key)] = string(kv.Value)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("it holds %q, want %q", got, want)
	}
	if r.Header.Revision < int64(rev)+RevisionGap {
		t.Errorf("its revision is %d, the snapshot's was %d", r.Header.Revision, rev)
	}
	// Whoever watched before has to list again, and new changes are seen.
	old := <-client.Watch(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithRev(int64(rev)))
	if !old.Canceled || old.CompactRevision == 0 {
		t.Errorf("a watch from before the restore gets %+v", old)
	}
	watch := client.Watch(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithRev(r.Header.Revision+1))
	create(t, client, "/registry/new", "new")
	if ev := <-watch; len(ev.Events) != 1 || string(ev.Events[0].Kv.Value) != "new" {
		t.Errorf("the watch saw %+v", ev)
	}
	for key := range want {
		put(t, client, key, "changed")
	}
}

func put(t testing.TB, c *clientv3.Client, key, value string) {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("reading %s: %v, %v", key, r, err)
	}
	w, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.Kvs[0].ModRevision)).
		Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err != nil || !w.Succeeded {
		t.Fatalf("updating %s: %v, %v", key, w, err)
	}
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// What waiting cannot mend ends the start in one line that names the place and the setting, and never the password.
func TestExternalRefused(t *testing.T) {
	for name, newOne := range databases.Kinds {
		t.Run(name, func(t *testing.T) {
			d := newOne(t, databases.Place{})
			d.Start()
			url := strings.Replace(strings.Replace(d.URL, "p@ss", "wrong", 1), "p%40ss", "wrong", 1)
			c := Config{Dir: filepath.Join(t.TempDir(), "db"), Endpoint: url}
			err := open(t, c).Run(t.Context(), func() { t.Error("it is ready") })
			if err == nil || !strings.Contains(err.Error(), "--datastore-endpoint: 127.0.0.1:") || !strings.Contains(err.Error(), "user or password are wrong") {
				t.Errorf("error is %v", err)
			}
			if err != nil && (strings.Contains(err.Error(), "wrong/word") || strings.Contains(err.Error(), "wrong%2Fword") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("error shows too much: %v", err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	for url, want := range map[string]string{
		"oracle://x":                    `"oracle" is not a kind of datastore; write postgres://`,
		"nonsense":                      `"nonsense" is not a kind`,
		"postgres://u:sec%ret@h/db":     "the URL cannot be read",
		"postgres://u:p@h/db?sslmode=q": "h/db: ",
		"mysql://u:secret@h:3306/db":    "write mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE",
	} {
		_, err := Open(Config{Endpoint: url})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sec") && !strings.Contains(want, "sec") {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
