package fleet

import (
	"bytes"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
)

// A thousand cards: how long it takes and what it takes on the disk is printed.
func BenchmarkBuild1000(b *testing.B) {
	bench := newBench(b, 64<<20)
	text, err := New(Sketch{Name: "big", Boards: []Batch{{"x86-uefi", 1000}}, Servers: 3, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		b.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("out/"), nil)
	for b.Loop() {
		if err := os.RemoveAll(bench.out); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		r := bench.build(string(text), Options{})
		b.ReportMetric(time.Since(start).Seconds(), "s/1000-cards")
		if len(r.New) != 1000 {
			b.Fatalf("%s", r)
		}
		var base, all int64
		_ = filepath.WalkDir(bench.out, func(path string, d fs.DirEntry, err error) error {
			if info, e := d.Info(); e == nil && !d.IsDir() {
				used := info.Sys().(*syscall.Stat_t).Blocks * 512
				if all += used; strings.HasPrefix(d.Name(), "base-") {
					base = used
				}
			}
			return err
		})
		b.ReportMetric(float64(base)/1e6, "MB-base")
		b.ReportMetric(float64(all-base)/1e6, "MB-cards")
	}
}

// Where the file system shares blocks between files, a hundred whole images take what is theirs alone beside one.
func TestSharedBlocks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a disk")
	}
	mkfs := imagetest.Tool(t, "mkfs.xfs", "xfsprogs")
	b := newBench(t, 16<<20)
	disk, at := filepath.Join(t.TempDir(), "xfs"), t.TempDir()
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 2<<30); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{mkfs, "-q", "-m", "reflink=1", disk}, {"mount", "-o", "loop", disk, at}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no file system that shares blocks here: %v %s", err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	text, err := New(Sketch{Name: "big", Boards: []Batch{{"x86-uefi", 100}}, Servers: 1, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	used := func() int64 {
		t.Helper()
		var s syscall.Statfs_t
		if err := syscall.Statfs(at, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks-s.Bfree) * s.Bsize
	}
	before := used()
	b.out = filepath.Join(at, "cards")
	r := b.build(string(bytes.ReplaceAll(text, []byte("out/"), nil)), Options{Whole: true})
	var one int64
	if err := filepath.WalkDir(b.out, func(_ string, d fs.DirEntry, err error) error {
		if info, e := d.Info(); e == nil && strings.HasPrefix(d.Name(), "base-") {
			one = info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	all := used() - before
	t.Logf("one image takes %d bytes, a hundred cards beside it %d", one, all-one)
	if !r.Whole || all > one+100<<20 {
		t.Errorf("whole images: %v; they take %d bytes, one takes %d", r.Whole, all, one)
	}
	b.partition("agent-99")
}
