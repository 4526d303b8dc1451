package delta_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/delta"
)

var (
	oldRelease = flag.String("old", "", "folder of the release a machine runs")
	newRelease = flag.String("new", "", "folder of the release it gets")
)

// What travels between two real releases: roots as blocks, as content-defined chunks, as patches, and whole; kernel images as patches.
func TestNumbers(t *testing.T) {
	if *oldRelease == "" || *newRelease == "" {
		t.Skip("compares two releases: make delta OLD=out/release NEW=out/next")
	}
	read := func(name string) (before, after []byte) {
		t.Helper()
		var errs [2]error
		before, errs[0] = os.ReadFile(filepath.Join(*oldRelease, name))
		after, errs[1] = os.ReadFile(filepath.Join(*newRelease, name))
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		return before, after
	}
	a, b := read("root.img")
	x, err := delta.Build(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := delta.NewPlan(x, nil, bytes.NewReader(a), 0, int64(len(a)))
	if err != nil {
		t.Fatal(err)
	}
	index := int64(len(x.Marshal()))
	say := func(what string, n int64, of []byte, note string) {
		t.Logf("%-44s %7.1f MB %5.1f %%  %s", what, float64(n)/1e6, 100*float64(n)/float64(len(of)), note)
	}
	patched := func(what string, more int64, a, b []byte) int64 {
		start := time.Now()
		patch := diff(t, a, b)
		made := time.Since(start)
		start = time.Now()
		if got := apply(t, patch, a, int64(len(b))); !bytes.Equal(got, b) {
			t.Fatalf("%s: makes another file", what)
		}
		n := int64(len(patch)) + more
		say(what, n, b, fmt.Sprintf("from one release; made in %.1f s, applied in %.1f s", made.Seconds(), time.Since(start).Seconds()))
		return n
	}
	say("whole root", int64(len(b)), b, "")
	say("blocks of 4 KiB, with the index", p.Fetches*delta.BlockSize+index, b, "from any release")
	for _, bits := range []int{14, 16} {
		n, index := chunks(a, b, bits)
		say("content-defined chunks, with their index", n+index, b, "average "+map[int]string{14: "16 KiB", 16: "64 KiB"}[bits])
	}
	if n, err := zstdPatch(t, filepath.Join(*oldRelease, "root.img"), filepath.Join(*newRelease, "root.img")); err == nil {
		say("zstd -3 --patch-from", n, b, "from one release, which must be in memory")
	} else {
		t.Logf("zstd: %v", err)
	}
	root := patched("patch, with the index", index, a, b)
	kernels, err := filepath.Glob(filepath.Join(*newRelease, "boot", "*-*.efi"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range kernels {
		if strings.HasPrefix(filepath.Base(name), "systemd-") {
			continue
		}
		k, now := read(filepath.Join("boot", filepath.Base(name)))
		n := patched("patch of "+filepath.Base(name), 0, k, now)
		all := slices.Concat(b, now)
		say("all that travels to such a board", root+n, all, "of root and kernel image")
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

func zstdPatch(t *testing.T, before, after string) (int64, error) {
	out := filepath.Join(t.TempDir(), "patch")
	if text, err := exec.Command("zstd", "-q", "-3", "--long=27", "--patch-from="+before, after, "-o", out).CombinedOutput(); err != nil {
		return 0, &exec.Error{Name: strings.TrimSpace(string(text)), Err: err}
	}
	fi, err := os.Stat(out)
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
