package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// waitChildren waits until the process has exactly n children, zombies included.
func waitChildren(t *testing.T, pid, n int) {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/task", pid)
	last := -1
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		threads, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		last = 0
		for _, thread := range threads {
			list, err := os.ReadFile(path + "/" + thread.Name() + "/children")
			if os.IsNotExist(err) && last == 0 {
				if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())); err != nil {
					t.Skip("this kernel does not list children in /proc (CONFIG_PROC_CHILDREN)")
				}
			}
			last += len(strings.Fields(string(list)))
		}
		if last == n {
			return
		}
	}
	t.Fatalf("process %d has %d children; want %d", pid, last, n)
}
