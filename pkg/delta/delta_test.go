package delta_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/skerry-os/skerry/pkg/delta"
)

func blocks(r *rand.Rand, alphabet, n int) []byte {
	b := make([]byte, n*delta.BlockSize)
	for i := range n {
		v := byte(r.IntN(alphabet))
		for j := range delta.BlockSize {
			b[i*delta.BlockSize+j] = v
		}
	}
	return b
}

// follow does what a plan says, in rising order and in place, as an update does.
func follow(t *testing.T, p *delta.Plan, x *delta.Index, target, other, want []byte) (fetched int64) {
	t.Helper()
	const n = delta.BlockSize
	for i, s := range p.Sources {
		at := i * n
		var from []byte
		switch s.From {
		case delta.Keep:
			continue
		case delta.Target:
			from = target[s.Block*n:]
		case delta.Other:
			from = other[s.Block*n:]
		case delta.Fetch:
			from = want[at:]
			fetched++
		}
		if delta.Of(from[:n]) != x.Blocks[i] {
			t.Fatalf("block %d: its source %v has another content by then", i, s)
		}
		copy(target[at:at+n], from[:n])
	}
	return fetched
}

// Whatever the slots hold, a plan that is followed in order gives the new root and fetches what it said.
func TestPlanGivesTheRoot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		alphabet := 2 + r.IntN(30)
		want := blocks(r, alphabet, 1+r.IntN(40))
		target, other := blocks(r, alphabet, len(want)/delta.BlockSize+r.IntN(10)), blocks(r, alphabet, r.IntN(40))
		x, err := delta.Build(bytes.NewReader(want), int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		if x, err = delta.Parse(x.Marshal()); err != nil {
			t.Fatal(err)
		}
		p, err := delta.NewPlan(x, bytes.NewReader(target), bytes.NewReader(other), int64(len(target)), int64(len(other)))
		if err != nil {
			t.Fatal(err)
		}
		if got := follow(t, p, x, target, other, want); got != p.Fetches {
			t.Fatalf("fetched %d, said %d", got, p.Fetches)
		}
		if !bytes.Equal(target[:len(want)], want) {
			t.Fatal("is another root")
		}
	}
}

func TestNothingTravelsTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	want := blocks(r, 200, 100)
	x, err := delta.Build(bytes.NewReader(want), int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	shifted := append(make([]byte, 3*delta.BlockSize), want...)
	for name, other := range map[string][]byte{"the same": want, "moved": shifted} {
		p, err := delta.NewPlan(x, nil, bytes.NewReader(other), 0, int64(len(other)))
		if err != nil || p.Fetches != 0 {
			t.Errorf("%s: fetches %d, %v", name, p.Fetches, err)
		}
	}
}

func TestBadIndex(t *testing.T) {
	x, err := delta.Build(bytes.NewReader(make([]byte, 8192)), 8192)
	if err != nil {
		t.Fatal(err)
	}
	good := x.Marshal()
	for name, b := range map[string][]byte{"empty": nil, "cut": good[:len(good)-1], "long": append(bytes.Clone(good), 0), "magic": append([]byte("x"), good[1:]...)} {
		if _, err := delta.Parse(b); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
	if _, err := delta.Build(bytes.NewReader(make([]byte, 100)), 8192); err == nil {
		t.Error("a root that ends early")
	}
	if _, err := delta.Build(io.LimitReader(rand.NewChaCha8([32]byte{}), 100), 100); err == nil {
		t.Error("a root of no whole blocks")
	}
}

func FuzzIndex(f *testing.F) {
	x, err := delta.Build(bytes.NewReader(make([]byte, 8192)), 8192)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(x.Marshal())
	f.Add([]byte("SKIDX\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := delta.Parse(b); err == nil && !bytes.Equal(x.Marshal(), b) {
			t.Error("was read as something else")
		}
	})
}
