package fleet

import (
	"bytes"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A thousand cards: how long it takes and what it takes on the disk is printed.
func BenchmarkBuild1000(b *testing.B) {
	bench := newBench(b, 64<<20)
	text, err := New(Sketch{Name: "big", Board: "x86-uefi", Servers: 3, Agents: 997, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")})
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
