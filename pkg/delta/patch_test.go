package delta_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/pkg/delta"
)

// apply makes the whole new file.
func apply(t testing.TB, patch, old []byte, size int64) []byte {
	t.Helper()
	p, err := delta.ParsePatch(patch[:delta.PatchHead(size)], size)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for n := range p.Frames() {
		f := p.Frame(n)
		b, err := p.Apply(n, patch[f.At:f.At+f.Size], bytes.NewReader(old))
		if err != nil {
			t.Fatalf("frame %d: %v", n, err)
		}
		if span := p.Makes(n); span.At != int64(len(out)) || span.Size != int64(len(b)) {
			t.Fatalf("frame %d makes %d bytes at %d; says %v", n, len(b), len(out), span)
		}
		out = append(out, b...)
	}
	return out
}

func diff(t testing.TB, old, now []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := delta.Diff(&b, old, now); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Whatever was done to a file, its patch makes it; and what was there already hardly travels.
func TestPatchMakesTheFile(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	old := noise(r, 2*delta.FrameSize+12345)
	edited := bytes.Clone(old)
	for i := 100; i < len(edited); i += 1000 { // as addresses change
		edited[i] += 7
	}
	cases := map[string]struct {
		old, now []byte
		most     int // bytes of the patch
	}{
		"the same":               {old, old, 300},
		"something in front":     {old, append([]byte("in front"), old...), 400},
		"something less":         {old, slices.Concat(old[:999], old[12_345:]), 300},
		"a byte in each KB":      {old, edited, 60_000},
		"turned around":          {old, slices.Concat(old[5_000_000:], old[:5_000_000]), 400},
		"only a part":            {old, old[100:150], 200},
		"one byte":               {old, []byte{1}, 200},
		"nothing in common":      {old, noise(r, delta.FrameSize+1), delta.FrameSize + 1000},
		"from nothing":           {nil, old[:100_000], 101_000},
		"from less than a match": {[]byte("abc"), []byte("abcabcabcabcabcabc"), 200},
		"a whole frame":          {old, old[:delta.FrameSize], 200},
		"zeros":                  {old, make([]byte, delta.FrameSize+17), 400},
	}
	for name, c := range cases {
		p := diff(t, c.old, c.now)
		if got := apply(t, p, c.old, int64(len(c.now))); !bytes.Equal(got, c.now) {
			t.Errorf("%s: another file", name)
		}
		if len(p) > c.most {
			t.Errorf("%s: a patch of %d bytes; want %d at most", name, len(p), c.most)
		}
	}
	for range 300 { // small alphabets: matches everywhere
		alphabet := 1 + r.IntN(4)
		some := func() []byte {
			b := make([]byte, 1+r.IntN(300))
			for i := range b {
				b[i] = byte(r.IntN(alphabet))
			}
			return b
		}
		a, b := some(), some()
		if got := apply(t, diff(t, a, b), a, int64(len(b))); !bytes.Equal(got, b) {
			t.Fatalf("%x to %x: %x", a, b, got)
		}
	}
	if err := delta.Diff(io.Discard, old, nil); err == nil {
		t.Error("a patch to nothing")
	}
}

// A frame that is damaged or for another file ends with an error, or makes something else, which its reader's digests tell; it
// neither panics nor makes more than it should.
func TestBadPatch(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	old := noise(r, 100_000)
	now := slices.Concat(old[50_000:], []byte("new"), old[:50_000])
	good := diff(t, old, now)
	size := int64(len(now))
	head := good[:delta.PatchHead(size)]
	for name, h := range map[string][]byte{
		"empty": nil, "cut": head[:len(head)-1], "long": append(bytes.Clone(head), 0), "magic": append([]byte("x"), head[1:]...),
		"another size":            append(append(bytes.Clone(head[:16]), 0, 0, 0, 0, 0, 0, 0, 9), head[24:]...),
		"an old file without end": append(append(bytes.Clone(head[:8]), 255, 255, 255, 255, 255, 255, 255, 255), head[16:]...),
		"a frame without end":     append(bytes.Clone(head[:24]), 255, 255, 255, 255),
	} {
		if _, err := delta.ParsePatch(h, size); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
	p, err := delta.ParsePatch(head, size)
	if err != nil {
		t.Fatal(err)
	}
	frame := good[len(head):]
	if _, err := p.Apply(0, frame, bytes.NewReader(old[:1000])); err == nil {
		t.Error("an old file that is shorter than the patch says")
	}
	if _, err := p.Apply(0, frame, broken{}); !errors.Is(err, errBroken) {
		t.Errorf("an old file that cannot be read: %v", err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"nothing":                    {},
		"steps longer than the body": {200, 1, 0},
		"differences longer":         {0, 200, 1},
		"half a step":                {2, 0, 1, 1},
		"a copy before the file":     {4, 0, 0, 1, 0x81, 0x80},
		"a number without end":       {12, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
		"a copy without end":         append([]byte{8, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0}, make([]byte, 100)...),
		"more new bytes than fit":    append([]byte{0, 0}, make([]byte, size+1)...),
		"fewer":                      append([]byte{0, 0}, make([]byte, size-1)...),
		"more than memory":           make([]byte, 4*delta.FrameSize),
	} {
		if out, err := p.Apply(0, z.EncodeAll(body, nil), bytes.NewReader(old)); err == nil {
			t.Errorf("%s: made %d bytes", name, len(out))
		}
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func FuzzPatch(f *testing.F) {
	old := bytes.Repeat([]byte("what a machine has "), 50)
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	const size = 1000
	f.Add([]byte{0, 0})
	f.Add([]byte{3, 0, 0, 100, 2, 'x'})
	f.Add([]byte{6, 3, 3, 20, 0, 1, 30, 20, 1, 2, 3, 'n', 'e', 'w'})
	whole := make([]byte, size)
	f.Add(append([]byte{0, 0}, whole...))
	head := diff(f, old, whole)[:delta.PatchHead(size)]
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := delta.ParsePatch(head, size)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := p.Apply(0, z.EncodeAll(body, nil), bytes.NewReader(old)); err == nil && len(out) != size {
			t.Errorf("made %d bytes", len(out))
		}
		if q, err := delta.ParsePatch(body, size); err == nil && q.Frames() != 1 {
			t.Errorf("%d frames", q.Frames())
		}
	})
}
