package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/vm"
)

var (
	numbers = flag.Bool("numbers", false, "print the table of sizes and times; `make bench` does")
	idle    = flag.Duration("idle", 5*time.Minute, "how long a server is left alone before its memory and processor time are read")
)

// table is what `make bench` prints. It judges nothing: times on a shared machine are no test.
type table struct{ rows [][3]string }

func (tb *table) add(figure, value, aim string) {
	fmt.Fprintf(os.Stderr, "  %s: %s\n", figure, value) // so that somebody who waits sees it move
	tb.rows = append(tb.rows, [3]string{figure, value, aim})
}

func (tb *table) print(w io.Writer) {
	host, _ := os.Hostname()
	var width [3]int
	rows := append([][3]string{{"figure", "here", "aim"}, {"---", "---", "---"}}, tb.rows...)
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	fmt.Fprintf(w, "\n%s: %s\n\n", host, processor())
	for _, r := range rows {
		fmt.Fprint(w, "|")
		for i, cell := range r {
			fmt.Fprintf(w, " %s%s |", cell, strings.Repeat(" ", width[i]-len([]rune(cell))))
		}
		fmt.Fprintln(w)
	}
}

func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	names := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindAllStringSubmatch(string(b), -1)
	if len(names) == 0 {
		return "unknown processor"
	}
	return fmt.Sprintf("%d × %s", len(names), names[0][1])
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
func megabytes(n int64) string       { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// TestNumbers measures and prints.
func TestNumbers(t *testing.T) {
	if !*numbers {
		t.Skip("measures for ten minutes: add -numbers (or run make bench)")
	}
	var tb table
	defer func() { tb.print(os.Stdout) }()
	sizes(t, &tb)
	imageTime(t, &tb)
	if *onHost {
		t.Run("native", func(t *testing.T) { native(t, &tb) })
	}
	if *inVM {
		t.Run("vm", func(t *testing.T) { powerOn(t, &tb) })
	}
}

func sizes(t *testing.T, tb *table) {
	engine := built(t, "amd64/usr/bin/skerryd")
	fi, err := os.Stat(engine)
	if err != nil {
		t.Fatal(err)
	}
	tb.add("skerryd, raw", megabytes(fi.Size()), "≤ 160 MB")
	tb.add("skerryd, zstd -19", megabytes(squeezed(t, "cat", engine)), "≤ 38 MB")
	release := built(t, "release")
	tb.add("release, as its files", megabytes(folderSize(t, release)), "")
	tb.add("release, compressed", megabytes(squeezed(t, "tar", "-C", release, "-c", ".")), "≤ 128 MB")
}

func folderSize(t *testing.T, dir string) (n int64) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			n += fi.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// squeezed counts the bytes of a command's output behind zstd.
func squeezed(t *testing.T, name string, args ...string) int64 {
	source := exec.CommandContext(t.Context(), name, args...)
	zstd := exec.CommandContext(t.Context(), "zstd", "-q", "-19", "-T0", "-c")
	var err error
	if zstd.Stdin, err = source.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := zstd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(source.Start(), zstd.Start()); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, out)
	if err := errors.Join(err, zstd.Wait(), source.Wait()); err != nil {
		t.Fatal(err)
	}
	return n
}

func imageTime(t *testing.T, tb *table) {
	out := filepath.Join(t.TempDir(), "x.img")
	cmd := exec.CommandContext(t.Context(), built(t, "bin/skerry"), "image", "build", "--board", "x86-uefi", "--release", built(t, "release"),
		"--keys", built(t, "keys"), "--config", built(t, "run/node.yaml"), "-o", out)
	begin := time.Now()
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	tb.add("skerry image build", seconds(time.Since(begin)), "≤ 5 s")
}

func native(t *testing.T, tb *table) {
	e := newEngine(t)
	readyz := make(chan time.Duration, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		begin := time.Now()
		for ctx.Err() == nil {
			if code, _, err := e.stranger("/readyz", 0); err == nil && code == 200 {
				readyz <- time.Since(begin)
				return
			}
			time.Sleep(10 * time.Millisecond) // asking without a pause would take the processor from what is measured
		}
	}()
	first := e.start()
	tb.add("skerryd server, fresh → /readyz", seconds(<-readyz), "≤ 1.5 s")
	tb.add("skerryd server, fresh → node Ready", seconds(e.nodeReady(t)), "≤ 2.5 s")
	tb.add("skerryd server, fresh → all components applied", seconds(first), "")
	e.cluster().ready()
	e.stop()
	second := e.start()
	tb.add("second start → node Ready", seconds(e.nodeReady(t)), "≤ 2 s")
	tb.add("second start → all components applied", seconds(second), "")

	fmt.Fprintf(os.Stderr, "  leaving the server alone for %v\n", *idle)
	used := cpuTime(t, e.cmd.Process.Pid)
	begin := time.Now()
	select {
	case <-time.After(*idle):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	used = cpuTime(t, e.cmd.Process.Pid) - used
	tb.add(fmt.Sprintf("idle processor time, over %v", *idle), fmt.Sprintf("%.1f %% of a core", 100*used.Seconds()/time.Since(begin).Seconds()), "≤ 3 %")
	total, anonymous := memory(t, e.cmd.Process.Pid)
	tb.add(fmt.Sprintf("idle memory after %v (of it anonymous)", *idle), fmt.Sprintf("%s (%s)", megabytes(total), megabytes(anonymous)), "≤ 350 MB")
	e.stop()
}

// nodeReady is how long the last start took until the API said that the node is Ready: skerryd logs when it does.
func (e *engine) nodeReady(t *testing.T) time.Duration {
	b, err := os.ReadFile(filepath.Join(e.dir, "skerryd.log"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for _, line := range slices.Backward(lines) {
		if stamp, rest, _ := strings.Cut(strings.TrimPrefix(line, "time="), " "); strings.Contains(rest, "msg=ready service=node-ready ") {
			if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.After(e.began) {
				return at.Sub(e.began)
			}
		}
	}
	t.Fatalf("the log does not say when the node was Ready:\n%s", e.tail())
	return 0
}

// cpuTime is what a process has used: fields 14 and 15 of its stat file, in hundredths of a second.
func cpuTime(t *testing.T, pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func memory(t *testing.T, pid int) (total, anonymous int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &total) // other lines do not match
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &anonymous)
	}
	return total * 1024, anonymous * 1024
}

// powerOn splits the way from power on to Ready by what runs.
func powerOn(t *testing.T, tb *table) {
	o := machineOf(t)
	o.Forwards = []vm.Forward{{Guest: 6443}}
	n := power(t, o)
	accel, _ := n.Accel()
	last := time.Now()
	stage := func(what, line string) {
		n.expect(2*patience, line)
		tb.add(fmt.Sprintf("QEMU (%s): %s", accel, what), seconds(time.Since(last)), "")
		last = time.Now()
	}
	stage("firmware, keys enrolled, firmware again, kernel", `skerry: mount kernel filesystems`)
	stage("stage 1: modules, slot verified, root opened", `skerry: switch root`)
	stage("stage 2: data made, network, skerryd started", `skerry: start node`)
	stage("skerryd → Ready", `skerry: node: Ready`)
	tb.add(fmt.Sprintf("QEMU (%s): power on → Ready, first boot", accel), seconds(time.Since(n.Started())), "")
	n.PowerCut()
	n = power(t, o)
	n.expect(2*patience, `skerry: node: Ready`)
	tb.add(fmt.Sprintf("QEMU (%s): power on → Ready, second boot", accel), seconds(time.Since(n.Started())), "")
	written(t, tb, n)
}

// written is what a card or a flash chip takes from a server that nobody uses: everything, logs and datastore and the filesystem's own.
func written(t *testing.T, tb *table, n *node) {
	time.Sleep(5 * time.Minute) // what a start leaves to do
	const idle = 10 * time.Minute
	before, requests, err := n.Written(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(idle)
	after, more, err := n.Written(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	perHour := float64(time.Hour) / float64(idle)
	tb.add("QEMU: an idle server writes to its disk in an hour", fmt.Sprintf("%.0f MB in %.0f writes", float64(after-before)/1e6*perHour, float64(more-requests)*perHour), "")
}
