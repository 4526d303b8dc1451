package main

import (
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// gcPercent trades a little CPU for resident memory once the node runs: the live heap is about 100 MB and still, so a quarter
// of Go's usual headroom is plenty. While the node starts, the usual headroom applies: much is allocated and dropped. (More
// of it, up to no collection at all, made no start faster, and left 40 MB of holes in the heap.)
const gcPercent = 25

// calm is when the controllers have seen everything once: what that took is given back too, some 20 MB.
const calm = time.Minute

// settleMemory is for a node that has started. It leaves alone what the operator has said in Go's own variables.
func settleMemory() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
	time.AfterFunc(calm, debug.FreeOSMemory)
}

// cpuTime is what this process has used so far: beside the time that has passed it tells a slow machine from a busy one.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
