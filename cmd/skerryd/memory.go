package main

import (
	"os"
	"runtime/debug"
)

// gcPercent trades a little CPU for resident memory: the live heap is small and still, so half the usual headroom costs
// next to nothing.
const gcPercent = 50

// tuneMemory applies unless the operator has said otherwise in Go's own variable.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
