package enrol

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
)

// A seed becomes the server's own whole or not at all, once, and is gone afterwards.
func TestTakeSeed(t *testing.T) {
	files, err := pki.NewCluster(time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := seed.Seed{Fleet: "home", Files: files, Tokens: []seed.Token{{Secret: "aaaaaa.bbbbbbbbbbbbbbbb", Node: "a1"}}}
	data, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, seed.Name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := TakeSeed(dir); err != nil || Joined(dir) {
		t.Fatalf("without a seed: %v", err)
	}
	put()
	if err := os.MkdirAll(filepath.Join(dir, "server.joining", "tls"), 0o700); err != nil { // power failed half-way
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "server"), 0o700); err != nil { // as init makes it
		t.Fatal(err)
	}
	for round := range 2 { // the second: power failed before the seed was erased
		if err := TakeSeed(dir); err != nil || !Joined(dir) {
			t.Fatalf("round %d: %v", round, err)
		}
		if _, err := os.Stat(filepath.Join(dir, seed.Name)); err == nil {
			t.Error("the seed is still there")
		}
		pending, err := seed.Pending(dir)
		if err != nil || len(pending) != 1 || pending[0] != s.Tokens[0] {
			t.Errorf("tokens %v %v", pending, err)
		}
		put()
	}
	// Another cluster's seed changes nothing.
	if s.Files, err = pki.NewCluster(time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if data, err = s.Marshal(); err != nil {
		t.Fatal(err)
	}
	put()
	if err := TakeSeed(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, pki.ServerCAFile)); err != nil || string(got) != string(files[pki.ServerCAFile]) {
		t.Errorf("the cluster was replaced (%v)", err)
	}
}
