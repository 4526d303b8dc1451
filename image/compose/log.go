package compose

import (
	"fmt"
	"io"
	"time"
)

// Log tells a person what a build is doing. The zero value says nothing.
type Log struct {
	W     io.Writer
	Start time.Time
}

// NewLog writes to w, one line a stage.
func NewLog(w io.Writer) Log { return Log{W: w, Start: time.Now()} }

// Stage begins a stage; what it returns ends it.
func (l Log) Stage(what string) (done func(notes ...string)) {
	begin := time.Now()
	return func(notes ...string) {
		note := ""
		for _, n := range notes {
			note += ", " + n
		}
		l.Say(fmt.Sprintf("%-52s %6.1f s%s", what, time.Since(begin).Seconds(), note))
	}
}

// Say writes a line with the time since the start.
func (l Log) Say(s string) {
	if l.W != nil {
		_, _ = fmt.Fprintf(l.W, "%7.1f  %s\n", time.Since(l.Start).Seconds(), s)
	}
}
