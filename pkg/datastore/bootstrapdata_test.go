package datastore_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/databases"
	"github.com/skerry-os/skerry/pkg/server/bootstrapdata"
)

// In every kind of datastore, servers that begin at once have the same authorities and keys, another token opens nothing, and a
// snapshot that is restored elsewhere has them, too.
func TestBootstrapData(t *testing.T) {
	const token = "the-clusters-own-token"
	for _, kind := range []string{datastore.SQLite, datastore.Etcd, datastore.PostgreSQL, datastore.MySQL} {
		t.Run(kind, func(t *testing.T) {
			url := ""
			if newOne := databases.Kinds[kind]; newOne != nil {
				db := newOne(t, databases.Place{})
				db.Start()
				url = db.URL
			}
			run := func(kind, url string, f func(s datastore.Store)) {
				t.Helper()
				s, err := openKind(kind, shortDir(t), url)
				if err != nil {
					t.Fatal(err)
				}
				runStore(t, s, func() { f(s) })
			}
			servers := 1
			if url != "" {
				servers = 2
			}
			var mu sync.Mutex
			var got []map[string][]byte
			var all sync.WaitGroup
			snapshot := filepath.Join(t.TempDir(), "snapshot")
			begin := func(s datastore.Store) {
				files, _, err := bootstrapdata.New(time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				d, err := bootstrapdata.Take(context.WithoutCancel(t.Context()), s.Endpoint(), token, &bootstrapdata.Data{Files: files})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, d.Files)
			}
			for range servers {
				all.Go(func() {
					run(kind, url, func(s datastore.Store) { begin(s); begin(s) })
				})
			}
			all.Wait()
			if len(got) != 2*servers {
				t.FailNow()
			}
			same := func(files map[string][]byte) bool { return maps.EqualFunc(files, got[0], bytes.Equal) }
			for _, files := range got {
				if !same(files) {
					t.Fatal("servers differ")
				}
			}
			if url == "" {
				return // what began is gone with its folder
			}
			run(kind, url, func(s datastore.Store) {
				if _, err := bootstrapdata.Take(t.Context(), s.Endpoint(), "another-token-of-someone", nil); !errors.Is(err, bootstrapdata.ErrToken) {
					t.Errorf("another token: %v", err)
				}
				if _, err := s.Snapshot(t.Context(), snapshot); err != nil {
					t.Fatal(err)
				}
			})
			s, err := openKind(datastore.SQLite, shortDir(t), "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Restore(t.Context(), snapshot); err != nil {
				t.Fatal(err)
			}
			runStore(t, s, func() {
				if d, err := bootstrapdata.Take(t.Context(), s.Endpoint(), token, nil); err != nil || d == nil || !same(d.Files) {
					t.Errorf("restored: %v", err)
				}
			})
		})
	}
}

// runStore calls f while s runs.
func runStore(t *testing.T, s datastore.Store, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- s.Run(ctx, func() { close(up) }) }()
	select {
	case <-up:
		f()
		cancel()
		if err := <-out; err != nil {
			t.Error(err)
		}
	case err := <-out:
		cancel()
		t.Errorf("%s: %v", s.Kind(), err)
	}
}
