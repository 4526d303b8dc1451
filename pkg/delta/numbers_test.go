package delta_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/delta"
)

var (
	oldRoot = flag.String("old", "", "root.img of the release a machine runs")
	newRoot = flag.String("new", "", "root.img of the release it gets")
)

// What travels between two real roots: as blocks, as content-defined chunks, as a zstd patch, and whole.
func TestNumbers(t *testing.T) {
	if *oldRoot == "" || *newRoot == "" {
		t.Skip("compares two releases: make delta OLD=out/release NEW=out/next")
	}
	a, err := os.ReadFile(*oldRoot)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(*newRoot)
	if err != nil {
		t.Fatal(err)
	}
	x, err := delta.Build(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := delta.NewPlan(x, nil, bytes.NewReader(a), 0, int64(len(a)))
	if err != nil {
		t.Fatal(err)
	}
	say := func(what string, n int64, note string) {
		t.Logf("%-44s %7.1f MB %5.1f %%  %s", what, float64(n)/1e6, 100*float64(n)/float64(len(b)), note)
	}
	say("whole root", int64(len(b)), "")
	say("blocks of 4 KiB, with the index", p.Fetches*delta.BlockSize+int64(len(x.Marshal())), "what updates use")
	for _, bits := range []int{14, 16} {
		n, index := chunks(a, b, bits)
		say("content-defined chunks, with their index", n+index, "average "+map[int]string{14: "16 KiB", 16: "64 KiB"}[bits])
	}
	for _, level := range []string{"-3"} {
		if n, err := patch(t, level); err == nil {
			say("zstd "+level+" --patch-from", n, "one file for each pair of releases")
		} else {
			t.Logf("zstd: %v", err)
		}
	}
}

// chunks cuts where a rolling hash of 64 bytes has zeros, and counts what of b is not in a.
func chunks(a, b []byte, bits int) (missing, index int64) {
	var gear [256]uint64
	for i := range gear {
		sum := sha256.Sum256([]byte{byte(i)})
		for _, c := range sum[:8] {
			gear[i] = gear[i]<<8 | uint64(c)
		}
	}
	cut := func(data []byte, each func([]byte)) {
		least, most := 1<<(bits-2), 1<<(bits+2)
		mask := uint64(1)<<bits - 1
		for len(data) > 0 {
			n, h := 0, uint64(0)
			for n < len(data) && n < most {
				h = h<<1 + gear[data[n]]
				n++
				if n >= least && h>>(64-bits)&mask == 0 {
					break
				}
			}
			each(data[:n])
			data = data[n:]
		}
	}
	have := map[[32]byte]bool{}
	cut(a, func(c []byte) { have[sha256.Sum256(c)] = true })
	cut(b, func(c []byte) {
		sum := sha256.Sum256(c)
		if !have[sum] {
			missing += int64(len(c))
			have[sum] = true
		}
		index += 16 + 4
	})
	return missing, index
}

func patch(t *testing.T, level string) (int64, error) {
	out := filepath.Join(t.TempDir(), "patch")
	if text, err := exec.Command("zstd", "-q", level, "--long=27", "--patch-from="+*oldRoot, *newRoot, "-o", out).CombinedOutput(); err != nil {
		return 0, &exec.Error{Name: strings.TrimSpace(string(text)), Err: err}
	}
	fi, err := os.Stat(out)
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
