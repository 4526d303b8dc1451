package bootstrapdata

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

const secret = "the-clusters-own-token"

// running gives the endpoint of a datastore.
func running(t *testing.T) (store datastore.Store, endpoint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	store, err = datastore.Open(datastore.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- store.Run(ctx, func() { close(up) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-out; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-up:
	case err := <-out:
		out <- nil
		t.Fatal(err)
	}
	return store, store.Endpoint()
}

func proposal(t *testing.T) *Data {
	t.Helper()
	files, _, err := New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &Data{Files: files, Settings: map[string]any{"cluster-domain": "cluster.local"}}
}

// server is a data folder with the files.
func server(t *testing.T, d *Data, token string) string {
	t.Helper()
	dir := t.TempDir()
	if err := d.Write(dir, token); err != nil {
		t.Fatal(err)
	}
	return dir
}

func equal(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// Of servers that begin at once on an empty database, all have what one of them proposed.
func TestFirstWriterWins(t *testing.T) {
	_, endpoint := running(t)
	if d, err := Take(t.Context(), endpoint, secret, nil); d != nil || err != nil {
		t.Fatalf("an empty datastore: %v %v", d, err)
	}
	var all sync.WaitGroup
	got := make([]*Data, 6)
	for i := range got {
		mine := proposal(t)
		all.Go(func() {
			var err error
			if got[i], err = Take(context.WithoutCancel(t.Context()), endpoint, secret, mine); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, d := range got {
		if d == nil || !equal(d.Files, got[0].Files) || d.Settings["cluster-domain"] != "cluster.local" {
			t.Fatal("they differ")
		}
	}
	if _, err := Take(t.Context(), endpoint, "another-token-of-someone", proposal(t)); !errors.Is(err, ErrToken) {
		t.Errorf("another token: %v", err)
	}
	dir := server(t, got[0], secret)
	for _, name := range pki.Shared() {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if want, ok := got[0].Files[name]; ok && (err != nil || !bytes.Equal(data, want)) {
			t.Errorf("%s: %v, or it differs", name, err)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
	if text, err := secrets.ReadToken(dir); err != nil || text != secret {
		t.Errorf("the token is %q, %v", text, err)
	}
}

// What is stored tells nothing without the token, and whoever changes it is found out.
func TestSeal(t *testing.T) {
	d := proposal(t)
	value, err := seal(secret, *d)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range d.Files {
		for _, line := range bytes.Split(data, []byte("\n")) {
			if len(line) > 20 && bytes.Contains(value, line) {
				t.Errorf("%s can be read", name)
			}
		}
	}
	s, err := parse(value)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := s.open(secret); err != nil || !equal(back.Files, d.Files) {
		t.Errorf("it does not come back: %v", err)
	}
	s.Box[len(s.Box)/2] ^= 1
	if _, err := s.open(secret); !errors.Is(err, ErrToken) {
		t.Errorf("a changed one: %v", err)
	}
	if _, err := parse([]byte(`{"format": 99}`)); err == nil || !strings.Contains(err.Error(), "update this machine") {
		t.Errorf("one of a newer version: %v", err)
	}
}

// A datastore of another cluster is refused before anything is written to it; that of our own is not, whatever was rotated.
func TestAnotherCluster(t *testing.T) {
	_, endpoint := running(t)
	ours := proposal(t)
	mine := server(t, ours, secret)
	if err := Check(t.Context(), endpoint, mine); err != nil {
		t.Errorf("an empty one: %v", err)
	}
	if err := store(t.Context(), endpoint, mine, nil); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), endpoint, mine); err != nil {
		t.Errorf("our own: %v", err)
	}
	err := Check(t.Context(), endpoint, server(t, proposal(t), secret))
	if err == nil || !strings.Contains(err.Error(), "is another cluster's") || strings.Contains(err.Error(), "\n") {
		t.Errorf("another's: %v", err)
	}
	renewed := *ours
	renewed.Files = maps.Clone(ours.Files)
	renewed.Files[pki.ServerCAFile] = proposal(t).Files[pki.ServerCAFile]
	if err := Check(t.Context(), endpoint, server(t, &renewed, "rotated-token-of-ours")); err != nil {
		t.Errorf("our own, after rotations: %v", err)
	}
}

// Rotations of the authorities, of the key of secrets and of the token are stored; a server with what was before takes none back.
func TestRotationsAreStored(t *testing.T) {
	_, endpoint := running(t)
	dir := server(t, proposal(t), secret)
	keep := func() {
		t.Helper()
		if err := store(t.Context(), endpoint, dir, map[string]any{"a": []string{"b"}}); err != nil {
			t.Fatal(err)
		}
	}
	stored := func(token string) *Data {
		t.Helper()
		d, err := Take(t.Context(), endpoint, token, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	keep()
	behind := t.TempDir()
	if err := stored(secret).Write(behind, secret); err != nil {
		t.Fatal(err)
	}
	is := func(what, token string) {
		t.Helper()
		keep()
		files, _, err := load(dir)
		if err != nil || !equal(stored(token).Files, files) {
			t.Errorf("%s: not stored, %v", what, err)
		}
		if err := store(t.Context(), endpoint, behind, nil); err != nil {
			t.Error(err)
		}
		if !equal(stored(token).Files, files) {
			t.Errorf("%s: taken back by a server that was off", what)
		}
	}
	file := filepath.Join(dir, secrets.EncryptionName)
	for range 2 {
		e, err := secrets.ReadEncryption(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(file); err != nil {
			t.Fatal(err)
		}
		is("a key prepared", secret)
		if err := e.Rotate(); err != nil {
			t.Fatal(err)
		}
		e.Finish()
		if _, err := e.Write(file); err != nil {
			t.Fatal(err)
		}
		is("a key rotated", secret)
	}
	if err := secrets.WriteToken(dir, "rotated-token-of-ours", file); err != nil {
		t.Fatal(err)
	}
	keep()
	if _, err := Take(t.Context(), endpoint, secret, nil); !errors.Is(err, ErrToken) {
		t.Errorf("the old token opens it: %v", err)
	}
	stored("rotated-token-of-ours")
}

// Keep stores by itself, first what is there and then what changes.
func TestKeep(t *testing.T) {
	_, endpoint := running(t)
	dir := server(t, proposal(t), secret)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); Keep(ctx, endpoint, dir, nil) }()
	opens := func(token string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			d, err := Take(t.Context(), endpoint, token, nil)
			if d != nil && err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not stored: %v", err)
			}
		}
	}
	opens(secret)
	if err := secrets.WriteToken(dir, "rotated-token-of-ours", filepath.Join(dir, pki.ServerCAFile)); err != nil {
		t.Fatal(err)
	}
	opens("rotated-token-of-ours")
	cancel()
	<-done
}

// A datastore that has a cluster and none of its keys is told from an empty one.
func TestNone(t *testing.T) {
	_, endpoint := running(t)
	c, err := client(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	name := objects + "kube-system"
	if _, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(name), "=", 0)).Then(clientv3.OpPut(name, "x")).Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(t.Context(), endpoint, secret, proposal(t)); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	if !slices.Contains(pki.Shared(), secrets.EncryptionName) {
		t.Error("the key of secrets is not shared")
	}
}
