package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"time"
)

// timerSlack is by how much the kernel may put a timer of ours off, to let it go off together with others. Kubernetes in one process
// has some five hundred a second, most of which only look whether there is something to do; they are half of what a node at rest
// uses of the processor. With this, it wakes 200 times a second instead of 900. What comes over a connection or from a file is
// never put off. See PR_SET_TIMERSLACK in prctl(2); the kernel's default is 50 µs.
const timerSlack = 20 * time.Millisecond

// timersAgain is how often new threads are looked for.
const timersAgain = 10 * time.Minute

// settleTimers is for a node that has started: while it does, much waits for timers of a few milliseconds.
func settleTimers(log *slog.Logger) {
	if err := relaxTimers("/proc", timerSlack); err != nil {
		log.Debug("timers stay as exact as they are", "err", err)
		return
	}
	time.AfterFunc(timersAgain, func() { settleTimers(log) })
}

// relaxTimers sets the timer slack of all threads of this process but one: the second that Go's runtime starts, before any other
// code runs, is its monitor, which has to notice within microseconds that a thread is held up in the kernel.
func relaxTimers(proc string, slack time.Duration) error {
	dir, err := os.Open(proc + "/self/task")
	if err != nil {
		return err
	}
	defer dir.Close()                    //nolint:errcheck // opened for reading
	threads, err := dir.Readdirnames(-1) // in the order they were started
	if err != nil {
		return err
	}
	for i, id := range threads {
		if i == 1 {
			continue
		}
		err := os.WriteFile(fmt.Sprintf("%s/%s/timerslack_ns", proc, id), []byte(strconv.FormatInt(slack.Nanoseconds(), 10)), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a thread that has ended
			return err
		}
	}
	return nil
}
