package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/bootstrapdata"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

// began is a server with SQLite that has stored what its cluster shares, and a snapshot of it.
func began(t *testing.T, token string) (dataDir, snapshot string) {
	t.Helper()
	s := onNewMachine(t, token)
	if err := TakeShared(t.Context(), StoredConfig{Settings: s, NodeName: "s1"}, func(string) {}); err != nil || enrol.Joined(s.DataDir) {
		t.Fatalf("a server that begins: %v", err)
	}
	files, err := pki.Ensure(pki.Config{DataDir: s.DataDir, NodeName: "s1", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Ensure(s.DataDir, token, files.ServerCA); err != nil {
		t.Fatal(err)
	}
	stored, err := OpenStored(StoredConfig{Settings: s, NodeName: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	err = during(t.Context(), stored.Store, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); bootstrapdata.Keep(ctx, stored.Store.Endpoint(), s.DataDir, s.Shared()) }()
		defer func() { cancel(); <-done }()
		for {
			d, err := bootstrapdata.Take(ctx, stored.Store.Endpoint(), token, nil)
			if d != nil || err != nil {
				return err
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := stored.Snapshots.Save(t.Context(), stored.Store, "on-demand")
	if err != nil {
		t.Fatal(err)
	}
	return s.DataDir, filepath.Join(e.Place, e.Name)
}

func onNewMachine(t *testing.T, token string) machine.Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "sh") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := machine.DefaultServer()
	s.DataDir, s.Token = dir, token
	return s
}

// A snapshot that is restored on a new machine brings the cluster's authorities and keys along, for who has the token.
func TestASnapshotBringsTheKeys(t *testing.T) {
	const token = "the-clusters-own-token"
	old, snapshot := began(t, token)
	restored := func(s machine.Server) error {
		t.Helper()
		at, err := OpenStored(StoredConfig{Settings: s, NodeName: "s1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := at.Snapshots.Restore(t.Context(), at.Store, snapshot); err != nil {
			t.Fatal(err)
		}
		return TakeShared(t.Context(), StoredConfig{Settings: s, NodeName: "s1"}, func(string) {})
	}
	s := onNewMachine(t, token)
	if err := restored(s); err != nil {
		t.Fatal(err)
	}
	for _, name := range pki.Shared() {
		was, werr := os.ReadFile(filepath.Join(old, name))
		is, err := os.ReadFile(filepath.Join(s.DataDir, name))
		if !bytes.Equal(was, is) || (err == nil) != (werr == nil) {
			t.Errorf("%s differs, or is not there: %v", name, err)
		}
	}
	other := onNewMachine(t, "another-token-of-someone")
	if err := restored(other); !errors.Is(err, bootstrapdata.ErrToken) || enrol.Joined(other.DataDir) {
		t.Errorf("with another token: %v", err)
	}
	differs := onNewMachine(t, token)
	differs.ClusterDomain = "other.local"
	if err := restored(differs); err == nil || !strings.Contains(err.Error(), "cluster-domain") {
		t.Errorf("with other settings: %v", err)
	}
}

// A server that has keys of its own refuses the data of another cluster before anything else of it starts.
func TestTheDataOfAnotherCluster(t *testing.T) {
	_, snapshot := began(t, "the-clusters-own-token")
	mine, _ := began(t, "the-token-of-another")
	s := machine.DefaultServer()
	s.DataDir = mine
	at, err := OpenStored(StoredConfig{Settings: s, NodeName: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	service := datastoreService(at.Store, mine, func() {})
	run := func() (ready bool, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = service.Run(ctx, func() { ready = true; cancel() })
		return ready, err
	}
	if ready, err := run(); !ready || err != nil {
		t.Fatalf("its own data: %v", err)
	}
	if _, _, err := at.Snapshots.Restore(t.Context(), at.Store, snapshot); err != nil {
		t.Fatal(err)
	}
	if ready, err := run(); ready || err == nil || !strings.Contains(err.Error(), "another cluster's") {
		t.Errorf("another cluster's: %v, %v", ready, err)
	}
}
