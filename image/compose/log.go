package compose

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Log tells a person what a build is doing. The zero value says nothing.
type Log struct {
	w     io.Writer
	start time.Time
	mu    *sync.Mutex
}

// NewLog writes to w: a line when a stage ends, and one before, if that takes long.
func NewLog(w io.Writer) Log { return Log{w: w, start: time.Now(), mu: new(sync.Mutex)} }

// patience is how long a stage may take before its name is shown.
const patience = 3 * time.Second

// Stage begins a stage; what it returns ends it.
func (l Log) Stage(what string) (done func(notes ...string)) {
	begin := time.Now()
	busy := time.AfterFunc(patience, func() { l.Say(what + " ...") })
	return func(notes ...string) {
		busy.Stop()
		line := fmt.Sprintf("%-52s %6.1f s", what, time.Since(begin).Seconds())
		for _, n := range notes {
			line += ", " + n
		}
		l.Say(line)
	}
}

// Say writes a line with the time since the start.
func (l Log) Say(s string) {
	if l.w == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, "%7.1f  %s\n", time.Since(l.start).Seconds(), s)
}
