package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// progress turns a machine's console into a line per stage, with the time since its power came on. On a terminal the stage
// that runs is shown too, and overwritten when it ends.
type progress struct {
	w        io.Writer
	start    time.Time
	terminal bool
	began    bool // the first word of init was heard: firmware and kernel are done
}

func newProgress(w io.Writer, start time.Time) *progress {
	return &progress{w: w, start: start, terminal: isTerminal(w)}
}

var (
	initLine = regexp.MustCompile(`^skerry: (.*)$`)
	stepOK   = regexp.MustCompile(`^(.+): ok(?: \((.*)\))?$`)
	// ready is what init says when skerryd told it that the node is Ready.
	ready = regexp.MustCompile(`^node: Ready\b`)
	// saidReady finds the same in a whole console log.
	saidReady = regexp.MustCompile(`(?m)node: Ready\b.*$`)
	// trouble is shown whatever stage it comes from.
	trouble = regexp.MustCompile(`Kernel panic|Out of memory|BUG: |Security Policy Violation|Access Denied|Error loading|No bootable`)
)

// line takes one line of the console and says whether the node is Ready.
func (p *progress) line(text string) (done bool) {
	m := initLine.FindStringSubmatch(text)
	if m == nil {
		if trouble.MatchString(text) {
			p.print("!", text)
		}
		return false
	}
	if !p.began {
		p.began = true
		p.print("+", "firmware, boot loader and kernel")
	}
	if step := stepOK.FindStringSubmatch(m[1]); step != nil {
		p.print("+", strings.TrimSpace(step[1]+"  "+step[2]))
		return false
	}
	if ready.MatchString(m[1]) {
		p.print("+", m[1])
		return true
	}
	if p.terminal {
		_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s … %.100s", p.elapsed(), m[1])
	} else {
		p.print(" ", m[1])
	}
	return false
}

func (p *progress) elapsed() string { return fmt.Sprintf("%7.1f s", time.Since(p.start).Seconds()) }

func (p *progress) print(sign, text string) {
	clear := ""
	if p.terminal {
		clear = "\r\x1b[K"
	}
	_, _ = fmt.Fprintf(p.w, "%s%s %s %s\n", clear, p.elapsed(), sign, text) // progress is no result: who cannot see it loses nothing
}

// abandon ends an unfinished line.
func (p *progress) abandon() {
	if p.terminal {
		_, _ = fmt.Fprintln(p.w)
	}
}

// lastStep is the last line of init in a console's text.
func lastStep(text string) string {
	last := "nothing yet: firmware or boot loader"
	for line := range strings.Lines(text) {
		if m := initLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			last = m[1]
		}
	}
	return last
}
