package repository_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/repository"
)

// Status says what there is, and of everything that keeps machines from it what it is and what to do.
func TestStatus(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{Waves: []repository.Wave{{Percent: 5}, {After: 24 * time.Hour, Percent: 100}}, Stone: true})
	server := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	defer server.Close()
	examine := func(where string, root []byte, at time.Time) (*repository.Status, error) {
		t.Helper()
		src, err := repository.NewSource(where, server.Client())
		check(t, err)
		return repository.Examine(t.Context(), src, root, at)
	}
	for _, where := range []string{b.dir, server.URL} {
		s, err := examine(where, b.root, now.Add(time.Hour))
		check(t, err)
		if len(s.Faults) > 0 || len(s.Roles) != 4 || len(s.Releases) != 1 {
			t.Fatalf("%+v", s)
		}
		if r := s.Releases[0]; r.Version != "1.2.3" || r.Percent != 5 || !r.Next.Equal(now.Add(24*time.Hour)) || !r.Stone || r.Bytes < 1<<20 {
			t.Errorf("%+v", r)
		}
		for i, want := range map[int]time.Duration{0: repository.Lifetimes["root"], 1: repository.Lifetimes["timestamp"], 3: repository.Lifetimes["targets"]} {
			if r := s.Roles[i]; !r.Expires.Equal(now.Add(want)) || len(r.KeyIDs) != 1 || r.Version != 1 {
				t.Errorf("%+v", r)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(b.dir, "targets/amd64/1.2.3/*.root.img"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	meta := func(name string) string { return filepath.Join(b.dir, "metadata", name) }
	other, err := repository.NewRoles(filepath.Join(t.TempDir(), "other"), now)
	check(t, err)
	foreign, err := other.Root()
	check(t, err)
	for _, tt := range []struct {
		name string
		do   func()
		root []byte
		at   time.Duration
		want []string
	}{
		{"stale soon", nil, b.root, 25 * 24 * time.Hour, []string{"timestamp: expires 2026-12-25", "skerry update refresh"}},
		{"stale", nil, b.root, 31 * 24 * time.Hour, []string{"timestamp: expired 2026-12-25", "machines refuse", "skerry update refresh"}},
		{"root unknown", nil, nil, 0, []string{"not by yours", "--root"}},
		{"another's", nil, foreign, 0, []string{"1.root.json: is not the root of your keys", "timestamp.json: is not signed by the key of timestamp"}},
		{"cut", func() { check(t, os.Truncate(files[0], 100)) }, b.root, 0, []string{"targets/amd64/1.2.3/root.img: ", "machines cannot fetch it"}},
		{"missing", func() { check(t, os.Remove(files[0])) }, b.root, 0, []string{"root.img: is missing"}},
		{"mixed", func() { check(t, os.WriteFile(meta("1.targets.json"), []byte(`{`), 0o600)) }, b.root, 0, []string{"1.targets.json: cannot be read", "copy the repository again"}},
		{"gone", func() { check(t, os.Remove(meta("1.snapshot.json"))) }, b.root, 0, []string{"1.snapshot.json: is missing"}},
		{"no root", func() { check(t, os.Remove(meta("1.root.json"))) }, b.root, 0, []string{"1.root.json: is missing"}},
		{"nothing", nil, nil, 0, []string{"holds no repository"}},
	} {
		if tt.do != nil {
			tt.do()
		}
		for _, where := range []string{b.dir, server.URL} {
			s, err := examine(where, tt.root, now.Add(tt.at))
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			var said []string
			for _, f := range s.Faults {
				said = append(said, f.String())
			}
			for _, w := range tt.want {
				if !strings.Contains(strings.Join(said, "\n"), w) {
					t.Errorf("%s: %q, want %q", tt.name, said, w)
				}
			}
		}
	}
}

// A repository that was rotated: whoever trusts an old root follows, and one that was not refreshed since is named.
func TestStatusAfterRotation(t *testing.T) {
	b := newBench(t)
	b.publish(repository.PublishOptions{Minimum: "1.0.0"})
	check(t, b.roles.Rotate("timestamp", keys.Source{}, now))
	check(t, repository.Refresh(b.dir, b.roles, repository.PublishOptions{Now: now}))
	src, err := repository.NewSource(b.dir, nil)
	check(t, err)
	s, err := repository.Examine(t.Context(), src, b.root, now)
	check(t, err)
	if len(s.Faults) != 1 || !strings.Contains(s.Faults[0].What, "nothing leads machines there that run something older") || s.Roles[0].Version != 2 {
		t.Errorf("%+v", s)
	}
	check(t, os.Remove(filepath.Join(b.dir, "metadata/2.root.json")))
	s, err = repository.Examine(t.Context(), src, b.root, now)
	check(t, err)
	if len(s.Faults) < 2 || !strings.Contains(s.Faults[0].String(), "timestamp.json: is not signed") || !strings.Contains(s.Faults[0].String(), "keys rotate") {
		t.Errorf("%+v", s.Faults)
	}
}
