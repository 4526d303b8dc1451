package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/cloud"
	"github.com/skerry-os/skerry/image/releasetest"
)

// The figure that matters at the desk: a whole image of a release with a root of 128 MiB, fsync included.
func BenchmarkCreate(b *testing.B) {
	r, p := benchPlan(b)
	for _, format := range cloud.Formats {
		b.Run(string(format), func(b *testing.B) {
			name := filepath.Join(b.TempDir(), "x")
			for b.Loop() {
				if err := Create(b.Context(), p, os.DirFS(r.Release), name, format); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInspect(b *testing.B) {
	r, p := benchPlan(b)
	data, n := open(b, built(b, r, p, Raw))
	for b.Loop() {
		if _, err := Inspect(b.Context(), data, n, r.Trusted()); err != nil {
			b.Fatal(err)
		}
	}
}

func benchPlan(b *testing.B) (*releasetest.Bench, *Plan) {
	b.Helper()
	board, err := boards.Load("x86-uefi")
	if err != nil {
		b.Fatal(err)
	}
	r := releasetest.New(b, 128<<20)
	p, err := New(board, r.Signed, Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return r, p
}
