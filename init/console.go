package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// console is everything the kernel calls a console: screens, which get one status display that is redrawn, and serial
// lines, which get lines.
type console struct {
	mu     sync.Mutex
	ttys   []tty
	log    *process.LogFile // on the data partition, once it is there
	recent []string
	status []string // the display; nil until the node starts
	ended  bool     // no display any more
	shells string   // folder that has a file for each console on which somebody uses a shell
}

type tty struct {
	f      *os.File
	screen bool
}

// initLogSize bounds init's log: a node whose engine dies again and again, or a cable that comes and goes, writes for years.
const initLogSize = 1 << 20

// recentLines is how many of the last lines stay below the status display.
const recentLines = 12

var virtualTerminal = regexp.MustCompile(`^/dev/tty[0-9]+$`)

// open opens the devices again, after /dev appeared or changed.
func (c *console) open(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.ttys {
		_ = t.f.Close()
	}
	c.ttys = nil
	for _, name := range names {
		f, err := openTTY(name)
		if err != nil {
			continue // the command line names a port that this machine does not have
		}
		c.ttys = append(c.ttys, tty{f, virtualTerminal.MatchString(name)})
	}
}

// openTTY opens a terminal, never as the controlling one, and never to wait for: a serial line may have nobody at its end.
func openTTY(name string) (*os.File, error) { return os.OpenFile(name, os.O_WRONLY|noCTTY|nonBlock, 0) }

// say prints one line, as "skerry: line", everywhere. Text of several lines becomes one: readers look for the prefix.
func (c *console) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line = "skerry: " + joinLines(line)
	c.recent = append(c.recent, line)
	c.recent = c.recent[max(0, len(c.recent)-recentLines):]
	if c.log != nil {
		_, _ = fmt.Fprintf(c.log, "%s %s\n", time.Now().UTC().Format(time.RFC3339), line)
	}
	for i := range c.ttys {
		if t := &c.ttys[i]; !t.screen || c.status == nil {
			t.write(c.fresh(t) + line + "\n")
		}
	}
	c.draw()
}

func (c *console) sayf(format string, a ...any) { c.say(fmt.Sprintf(format, a...)) }

// show puts the status display up, or changes it. Serial lines get it as a block, and only when it changed.
func (c *console) show(status []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || strings.Join(c.status, "\n") == strings.Join(status, "\n") {
		return
	}
	c.status = status
	for i := range c.ttys {
		if t := &c.ttys[i]; !t.screen {
			t.write(c.fresh(t) + block(status))
		}
	}
	c.draw()
}

// redraw changes the status display on screens only, for news that serial lines got as a line.
func (c *console) redraw(status []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == nil {
		return
	}
	c.status = status
	c.draw()
}

// block is the status on a serial line.
func block(status []string) string {
	var b strings.Builder
	for _, l := range status {
		b.WriteString("skerry| " + l + "\n")
	}
	return b.String()
}

// draw redraws the screens: the status, then the last lines.
func (c *console) draw() {
	if c.status == nil {
		return
	}
	var b strings.Builder
	b.WriteString("\x1b[H\x1b[2J\n")
	for _, l := range c.status {
		b.WriteString("  " + l + "\n")
	}
	b.WriteString("\n")
	for _, l := range c.recent {
		b.WriteString("  " + l + "\n")
	}
	for i := range c.ttys {
		if t := &c.ttys[i]; t.screen {
			t.write(b.String())
		}
	}
}

// plain takes the display down, so that the last words of a machine are lines on every console.
func (c *console) plain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.ended = nil, true
}

// logTo also writes lines to a file, the ones so far included. The file before it, if any, is closed.
func (c *console) logTo(f *process.LogFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		_ = c.log.Close()
	}
	c.log = f
	if f == nil {
		return
	}
	for _, l := range c.recent {
		_, _ = fmt.Fprintf(f, "%s %s\n", time.Now().UTC().Format(time.RFC3339), l)
	}
}

// fresh is what brings a console to the begin of a line, where a person may be in the middle of one: on a debug release alone.
func (c *console) fresh(t *tty) string {
	if _, err := os.Stat(filepath.Join(c.shells, filepath.Base(t.f.Name()))); c.shells == "" || err != nil {
		return ""
	}
	return "\r\n"
}

// write waits a second for a terminal that takes nothing. One whose shell ended was hung up for all who had it open: it is opened
// anew, which may take a moment.
func (t *tty) write(s string) {
	for range 10 {
		_ = t.f.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := t.f.WriteString(s); !errors.Is(err, syscall.EIO) {
			return
		}
		if f, err := openTTY(t.f.Name()); err == nil {
			_ = t.f.Close()
			t.f = f
			continue
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// oneLine puts an error of many lines on one.
func oneLine(err error) string { return joinLines(err.Error()) }

func joinLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " | ")
}
