package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// slacks reads the timer slack of every thread of this process, in nanoseconds, in the order they were started.
func slacks(t *testing.T) (all []string) {
	t.Helper()
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	threads, err := dir.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range threads {
		b, err := os.ReadFile("/proc/" + id + "/timerslack_ns")
		if err != nil {
			t.Skip(err) // the kernel lets only root look
		}
		all = append(all, strings.TrimSpace(string(b)))
	}
	return all
}

func TestTimersAreRelaxedButTheMonitors(t *testing.T) {
	before := slacks(t)
	if err := relaxTimers("/proc", 7*time.Millisecond); err != nil {
		t.Skip(err) // needs CAP_SYS_NICE
	}
	after := slacks(t)
	if len(after) < 2 || after[1] != before[1] {
		t.Errorf("the slack of the runtime's monitor was %s and is %s", before[1], after[1])
	}
	for i, slack := range after[:len(before)] {
		if i != 1 && slack != "7000000" {
			t.Errorf("thread %d has a slack of %s ns", i, slack)
		}
	}
}

func TestTimersStayWhereTheyCannotBeRelaxed(t *testing.T) {
	if err := relaxTimers(t.TempDir(), time.Millisecond); err == nil {
		t.Error("no error without a /proc")
	}
}
