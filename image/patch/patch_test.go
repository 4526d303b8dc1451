package patch_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/patch"
	"github.com/skerry-os/skerry/image/releasetest"
)

// A base with a patch over it is the image itself, byte for byte, and passes its inspection.
func TestAPatchedBaseIsTheImage(t *testing.T) {
	b := releasetest.New(t, 1<<20)
	board, err := boards.Load("x86-uefi")
	if err != nil {
		t.Fatal(err)
	}
	plan := func(config image.Config) (*image.Plan, string) {
		t.Helper()
		p, err := image.New(board, b.Signed, config, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "x.img")
		if err := image.Create(t.Context(), p, os.DirFS(b.Release), name, image.Raw); err != nil {
			t.Fatal(err)
		}
		return p, name
	}
	base, baseName := plan(image.Config{Beside: []image.File{{Name: "nodes.json", Data: bytes.Repeat([]byte("table "), 3000)}}})
	other, _ := plan(image.Config{Name: "c", Data: []byte(releasetest.Config), Beside: []image.File{{Name: "seed.json", Data: bytes.Repeat([]byte("x"), 9000)}}})
	p, name := plan(image.Config{Name: "c", Data: []byte(releasetest.Config)})
	runs, err := p.Diff(base)
	if err != nil {
		t.Fatal(err)
	}
	made := &patch.Patch{Base: "base.img", GUID: base.GUID, Size: base.Size, Runs: runs}
	data, err := made.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 64<<10 {
		t.Errorf("a patch of %d bytes", len(data))
	}
	got, err := patch.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(baseName)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	over, err := got.Over(f, base.Size)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close() //nolint:errcheck // read only
	if a, b := sum(t, over), sum(t, want); a != b {
		t.Error("the bytes differ")
	}
	if _, err := image.Inspect(t.Context(), over, base.Size, b.Trusted()); err != nil {
		t.Error(err)
	}
	for range 200 { // reads of every kind
		at, n := rand.Int64N(base.Size), rand.IntN(100_000)
		if r := runs[rand.IntN(len(runs))]; rand.IntN(2) == 0 {
			at = max(0, r.Offset-rand.Int64N(2000))
		}
		x, y := make([]byte, n), make([]byte, n)
		i, e1 := over.ReadAt(x, at)
		j, e2 := want.ReadAt(y, at)
		if i != j || !bytes.Equal(x, y) || (e1 == nil) != (e2 == nil) {
			t.Fatalf("%d bytes at %d: %d %v, %d %v", n, at, i, e1, j, e2)
		}
	}
	made.GUID = other.GUID
	if _, err := made.Over(f, base.Size); err == nil {
		t.Error("a patch went onto another base")
	}
	for _, cut := range []int{0, 8, 50, len(data) - 1} {
		if _, err := patch.Parse(data[:cut]); err == nil {
			t.Errorf("%d bytes of a patch were taken", cut)
		}
	}
}

func sum(t *testing.T, r io.Reader) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func FuzzParse(f *testing.F) {
	data, _ := (&patch.Patch{Base: "b", Size: 1 << 20, Runs: []image.Run{{Offset: 512, Data: []byte("x")}}}).Marshal()
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := patch.Parse(data); err == nil {
			_, _ = p.Over(bytes.NewReader(make([]byte, 4096)), p.Size)
		}
	})
}
