package compose

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/keys"
)

// Releases of the time of two keys carry the old release key and, for UEFI alone, what teaches firmware; without a key, a build
// ends before it begins.
func TestKeysOfABuild(t *testing.T) {
	b := releasetest.New(t, 1<<16)
	o := Options{Arch: "amd64", Keys: b.Set, Out: filepath.Join(t.TempDir(), "out"), Work: t.TempDir()}
	carries := func(uefi bool, want ...string) {
		t.Helper()
		got, err := o.trust(uefi)
		if names := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(names, want) {
			t.Errorf("carries %v, %v; want %v", names, err, want)
		}
	}
	carries(true)
	if err := errors.Join(b.Set.Rotate("release", keys.Source{}, time.Now()), b.Set.Rotate("db", keys.Source{}, time.Now())); err != nil {
		t.Fatal(err)
	}
	carries(true, "db-update.auth", "release-old.pub")
	carries(false, "release-old.pub")
	if err := os.Remove(filepath.Join(b.Keys, "db.key")); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.Keys, err = keys.Load(b.Keys, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "db: its private key is not here") {
		t.Errorf("without the key of db: %v", err)
	}
}
