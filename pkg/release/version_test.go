package release_test

import (
	"testing"

	"github.com/skerry-os/skerry/pkg/release"
)

func TestCompareVersions(t *testing.T) {
	rising := []string{
		"0.0.0-9-g1234567", "0.0.0-10-gabcdef0", "0.0.0-10-gabcdef0-dirty", "0.1.0-rc1", "0.1.0-rc2", "0.1.0-rc2-1-g1234567", "0.1.0-rc10", "0.1.0",
		"0.1.0-1-gffffff0", "0.1.1", "0.10.0", "1.0.0", "10.0.0", "nightly-9", "nightly-10",
	}
	for i, a := range rising {
		for j, b := range rising {
			got, want := release.CompareVersions(a, b), 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got != want {
				t.Errorf("%s and %s: %d, want %d", a, b, got, want)
			}
		}
	}
}
