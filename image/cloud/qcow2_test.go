package cloud

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/image/imagetest"
)

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := off + int64(len(p)); need > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, need-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

// Whatever is written, in pieces of any size and order, is read back; the rest reads as zeros.
func TestReadsWhatWasWritten(t *testing.T) {
	const size = 600<<20 + 512 // two level-2 tables, and a last cluster that is not whole
	rng := rand.New(rand.NewPCG(1, 2))
	disk, file := make([]byte, size), &memory{bytes.Repeat([]byte{0xaa}, 1<<20)} // a file that held something before
	q, err := newQCOW2(file, size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		n := rng.IntN(3*cluster) + 1
		at := rng.Int64N(size)
		if i == 0 {
			at = size - 1
		}
		n = min(n, int(size-at))
		p := make([]byte, n)
		for j := range p {
			p[j] = byte(rng.Uint32() | 1)
		}
		copy(disk[at:], p)
		if _, err := q.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := openQCOW2(file)
	if err != nil || r.Size() != size {
		t.Fatalf("%v, size %d", err, r.Size())
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()+100))
	if err != nil || !bytes.Equal(got, disk) {
		t.Errorf("%d bytes came back, not those that were written (%v)", len(got), err)
	}
	if _, err := q.WriteAt([]byte{1}, size); err == nil {
		t.Error("a write behind the disk was taken")
	}
}

func TestQemuImgAgrees(t *testing.T) {
	qemuImg := imagetest.Tool(t, "qemu-img", "qemu-utils")
	dir := t.TempDir()
	raw, ours, theirs := filepath.Join(dir, "raw"), filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	const size = 5 << 30 // three refcount blocks' worth of clusters, were they all used
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	g, err := os.Create(ours)
	if err != nil {
		t.Fatal(err)
	}
	q, err := newQCOW2(g, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 100_000, 1 << 30, 3<<30 - 7, size - 9} {
		for _, w := range []io.WriterAt{f, q} {
			if _, err := w.WriteAt([]byte("something"), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = f.Close(), g.Close()
	imagetest.Run(t, qemuImg, "check", "-f", "qcow2", ours)
	imagetest.Run(t, qemuImg, "compare", "-f", "raw", "-F", "qcow2", raw, ours)
	// And the other way: we read what they write.
	imagetest.Run(t, qemuImg, "convert", "-f", "raw", "-O", "qcow2", raw, theirs)
	h, err := os.Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	r, err := openQCOW2(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 100_000, 1 << 30, 3<<30 - 7, size - 9} {
		b := make([]byte, 9)
		if _, err := r.ReadAt(b, at); err != nil || string(b) != "something" {
			t.Errorf("at %d: %q, %v", at, b, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	file := &memory{}
	q, err := newQCOW2(file, 3*cluster)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := q.WriteAt([]byte("x"), 5); err != nil {
		f.Fatal(err)
	}
	if err := q.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(24), []byte{0, 0, 0, 0, 0, 3})
	f.Add(uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		b := bytes.Clone(file.b)
		copy(b[int(at)%headerLen:], patch)
		r, err := openQCOW2(&memory{b})
		if err != nil {
			return
		}
		buf := make([]byte, cluster)
		for _, off := range []int64{0, r.Size() / 2, r.Size() - 1} {
			_, _ = r.ReadAt(buf, off) // whatever it gives, it ends
		}
	})
}
