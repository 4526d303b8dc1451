package main

import (
	"math"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gcPercent trades a little CPU for resident memory: the live heap is about 110 MB and still, so half of Go's usual
	// headroom is plenty.
	gcPercent = 50

	// startLimit is how far the heap may grow before anything is collected while the node starts. Starting allocates some
	// 250 MB and drops half of it; collecting on the way costs a fifth of the time to Ready.
	startLimit = 320 << 20
)

// tunedByOperator: what stands in Go's own variables is left alone.
func tunedByOperator() bool { return os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" }

// tuneMemory is for the start, settleMemory for afterwards.
func tuneMemory() {
	if !tunedByOperator() {
		debug.SetGCPercent(-1)
		debug.SetMemoryLimit(startLimit)
	}
}

func settleMemory() {
	if !tunedByOperator() {
		debug.SetMemoryLimit(math.MaxInt64)
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory()
	}
}

// cpuTime is what this process has used so far: beside the time that has passed it tells a slow machine from a busy one.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
