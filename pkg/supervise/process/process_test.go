package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// reaper runs one for the test, in a process that adopts orphans as process 1 does.
func reaper(t *testing.T) *process.Reaper {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r := process.NewReaper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func sh(script string) process.Spec {
	return process.Spec{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

// Every owner gets the status of its own child, however many end at the same instant, while orphans by the hundred end too.
func TestStatusesGoToTheirOwners(t *testing.T) {
	r := reaper(t)
	var wg sync.WaitGroup
	for code := range 40 {
		wg.Go(func() {
			_, err := r.Output(t.Context(), sh(fmt.Sprintf("for i in 1 2 3 4 5; do (sleep 0.0$i &) ; done; exit %d", code)))
			var exit *process.ExitError
			switch {
			case code == 0 && err != nil:
				t.Errorf("exit 0: %v", err)
			case code != 0 && (!errors.As(err, &exit) || exit.Status.Code() != code):
				t.Errorf("exit %d: got %v", code, err)
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for r.Orphans() < 200 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if n := r.Orphans(); n != 200 {
		t.Errorf("%d orphans reaped of 200", n)
	}
	if kids, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", unix.Gettid())); err == nil && len(bytes.TrimSpace(kids)) > 0 {
		t.Errorf("children left: %s", kids)
	}
}

func TestSignalAfterTheEnd(t *testing.T) {
	r := reaper(t)
	c, err := r.Start(sh("kill -TERM $$"))
	if err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if c.Status().Signal() != unix.SIGTERM || c.Status().Code() != -1 || c.Status().String() != "killed by SIGTERM" {
		t.Errorf("got %v", c.Status())
	}
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Errorf("a signal to one that has ended: %v", err)
	}
}

func TestOutput(t *testing.T) {
	r := reaper(t)
	out, err := r.Output(t.Context(), sh("echo one; echo two >&2"))
	if err != nil || out != "one\ntwo\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = r.Output(t.Context(), sh("echo the disk is on fire >&2; exit 3"))
	if err == nil || !strings.Contains(err.Error(), "/bin/sh: exit status 3: the disk is on fire") {
		t.Errorf("error %v, want one that says what the program said", err)
	}
	if _, err := r.Output(t.Context(), process.Spec{Path: "/no/such/program"}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Output(ctx, sh("exec sleep 60")); err == nil || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("a program that hangs: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	b := process.Backoff{First: time.Second, Most: time.Minute, Reset: 10 * time.Minute}
	for i, step := range []struct{ ran, want time.Duration }{
		{0, time.Second}, {0, 2 * time.Second}, {time.Minute, 4 * time.Second}, {0, 8 * time.Second}, {0, 16 * time.Second}, {0, 32 * time.Second},
		{0, time.Minute}, {9 * time.Minute, time.Minute}, {10 * time.Minute, time.Second}, {0, 2 * time.Second},
	} {
		if got := b.Next(step.ran); got != step.want {
			t.Errorf("step %d: waits %v, want %v", i, got, step.want)
		}
	}
}

// A service that dies is started again with longer and longer waits; one that is asked to stop gets to say goodbye.
func TestService(t *testing.T) {
	r := reaper(t)
	dir := t.TempDir()
	log, err := process.OpenLog(filepath.Join(dir, "log"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waits []time.Duration
	var how []string
	s := process.Service{
		// It dies twice, and then runs until it is told to stop.
		Spec:    sh(fmt.Sprintf(`cd %s; n=$(ls runs | wc -l); touch runs/$n; [ $n -lt 2 ] && { echo dying $n; exit 7; }; trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`, dir)),
		Log:     log,
		Backoff: process.Backoff{First: time.Second, Most: time.Minute, Reset: time.Hour},
		Grace:   20 * time.Second,
		Ended:   func(h string, d time.Duration) { how, waits = append(how, h), append(waits, d) },
		After: func(time.Duration) (<-chan time.Time, func()) {
			c := make(chan time.Time)
			close(c)
			return c, func() {}
		},
	}
	if err := os.Mkdir(filepath.Join(dir, "runs"), 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Run(ctx, r); close(done) }()
	for {
		if last := log.Last(1); len(last) > 0 && last[0] == "up" {
			break
		}
		select {
		case <-done:
			t.Fatal("it gave up")
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel()
	<-done
	if got := strings.Join(log.Last(10), ","); got != "dying 0,dying 1,up,bye" {
		t.Errorf("the log says %s", got)
	}
	if fmt.Sprint(waits) != "[1s 2s]" || fmt.Sprint(how) != "[exit status 7 exit status 7]" {
		t.Errorf("ended %v, waited %v", how, waits)
	}
}

// One that does not listen to SIGTERM is killed, and a child of its own that holds its output does not hold up the end.
func TestServiceThatWillNotStop(t *testing.T) {
	r := reaper(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := process.Service{
		Spec:    sh(`trap '' TERM; sleep 300 & echo $!; while :; do sleep 0.01; done`),
		Backoff: process.Backoff{First: time.Second, Most: time.Second, Reset: time.Second},
		Grace:   50 * time.Millisecond,
	}
	pids := make(chan int, 1)
	s.Log = writerFunc(func(p []byte) {
		var pid int
		if _, err := fmt.Sscan(string(p), &pid); err == nil {
			pids <- pid
		}
	})
	done := make(chan struct{})
	go func() { s.Run(ctx, r); close(done) }()
	orphan := <-pids
	cancel()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("Run does not return")
	}
	_ = unix.Kill(orphan, unix.SIGKILL)
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// However much is logged, the two files together stay below twice the limit and hold the newest lines.
func TestLogRotation(t *testing.T) {
	name := filepath.Join(t.TempDir(), "skerryd.log")
	for round := range 3 { // a log is taken up again after a restart
		l, err := process.OpenLog(name, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if _, err := fmt.Fprintf(l, "round %d line %03d\n", round, i); err != nil {
				t.Fatal(err)
			}
		}
		if last := l.Last(2); len(last) != 2 || last[1] != fmt.Sprintf("round %d line 099", round) {
			t.Errorf("last lines are %q", last)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	now, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(name + ".1")
	if err != nil {
		t.Fatal(err)
	}
	if len(now) > 1000 || len(before) > 1000 || !bytes.HasSuffix(now, []byte("round 2 line 099\n")) {
		t.Errorf("%d and %d bytes, ending in %q", len(now), len(before), now[max(0, len(now)-20):])
	}
	all := string(before) + string(now)
	if strings.Count(all, "\n") < 60 || !strings.Contains(all, "round 2 line 050") {
		t.Errorf("too little is left: %d lines", strings.Count(all, "\n"))
	}
}

// hold makes a log that holds its lines, and a way to see what a power cut would leave.
func hold(t *testing.T, limit int64, d time.Duration) (l *process.LogFile, onDisk func() string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "skerryd.log")
	l, err := process.OpenLog(name, limit)
	if err != nil {
		t.Fatal(err)
	}
	l.Hold(d)
	return l, func() string {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
}

// Lines wait in memory for as long as they were told to, and the wait begins with the first of them.
func TestLogHoldsLinesForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, onDisk := hold(t, 1<<20, 5*time.Minute)
		for _, line := range []string{"one\n", "two\n"} {
			_, _ = l.Write([]byte(line))
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if got := onDisk(); got != "" {
				t.Errorf("%q was written after two minutes", got)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := onDisk(); got != "one\ntwo\n" {
			t.Errorf("%q is on the disk after five minutes", got)
		}
		if last := l.Last(1); len(last) != 1 || last[0] != "two" {
			t.Errorf("the last line is %q", last)
		}
		_, _ = l.Write([]byte("three\n"))
		l.Hold(0)
		_, _ = l.Write([]byte("four\n"))
		if got := onDisk(); got != "one\ntwo\nthree\nfour\n" {
			t.Errorf("nothing is held any more, and %q is on the disk", got)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// However much is written, memory is bounded, no line is lost, and the size limit of the file holds.
func TestLogHoldsNoMoreThanItMay(t *testing.T) {
	l, onDisk := hold(t, 1<<30, time.Hour)
	total := 0
	for i := range 20000 {
		line := fmt.Sprintf("line %d of many\n", i)
		total += len(line)
		_, _ = l.Write([]byte(line))
		if i%1000 == 0 && total-len(onDisk()) > 64<<10 {
			t.Fatalf("%d bytes are in memory alone", total-len(onDisk()))
		}
	}
	_, _ = l.Write(bytes.Repeat([]byte("x"), 200<<10)) // more than is ever held
	if got := len(onDisk()); got != total+200<<10 {
		t.Errorf("%d bytes are on the disk, of %d", got, total+200<<10)
	}
	small, onDisk := hold(t, 100<<10, time.Hour)
	for range 20000 {
		_, _ = small.Write([]byte("a line like many others\n"))
	}
	if err := small.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(onDisk()); n > 100<<10 || n == 0 {
		t.Errorf("the file of at most 100KiB has %d bytes", n)
	}
}

// What explains a crash does not wait: a panic, the end of a program, the end of the log.
func TestLogHoldsNoLastWords(t *testing.T) {
	for name, c := range map[string]struct{ say, want string }{
		"a panic that the program got over": {"Observed a panic: assignment to entry in nil map\n", "before\nObserved a panic: assignment to entry in nil map\n"},
		"the runtime's last":                {"fatal error: all goroutines are asleep\n", "before\nfatal error: all goroutines are asleep\n"},
		"a usual line":                      {"all is well\n", ""},
	} {
		l, onDisk := hold(t, 1<<20, time.Hour)
		_, _ = l.Write([]byte("before\n"))
		_, _ = l.Write([]byte(c.say))
		if got := onDisk(); got != c.want {
			t.Errorf("%s: %q is on the disk; want %q", name, got, c.want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if got := onDisk(); got != "before\n"+c.say {
			t.Errorf("%s: %q is on the disk once the log is closed", name, got)
		}
	}
	r := reaper(t)
	l, onDisk := hold(t, 1<<20, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	s := process.Service{
		Spec: sh("echo the disk is on fire; exit 1"), Log: l, Backoff: process.Backoff{First: time.Hour, Most: time.Hour, Reset: time.Hour},
		Ended: func(string, time.Duration) {
			if got := onDisk(); got != "the disk is on fire\n" {
				t.Errorf("the program ended, and %q is on the disk", got)
			}
			cancel()
		},
	}
	s.Run(ctx, r)
}

// Logs of a folder are held alike, also those that come later, and one that is closed is forgotten.
func TestLogsOfAFolder(t *testing.T) {
	dir := t.TempDir()
	logs := process.NewLogs(dir)
	onDisk := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
	open := func(name string) *process.LogFile {
		t.Helper()
		l, err := logs.Open(name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a := open("a.log")
	logs.Hold(time.Hour)
	b := open("b.log")
	_, _ = a.Write([]byte("a\n"))
	_, _ = b.Write([]byte("b\n"))
	onDisk("a.log", "")
	onDisk("b.log", "")
	logs.Flush()
	onDisk("a.log", "a\n")
	onDisk("b.log", "b\n")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := logs.Sync(); err != nil {
		t.Errorf("one is closed: %v", err)
	}
}
