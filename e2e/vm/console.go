package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Console is what the machine wrote to its serial port since it was started. Lines and Wait read on from where the last
// call stopped, so that a test that reboots a machine waits for the second boot's line and not the first one's.
type Console struct {
	dir    string
	name   string
	offset int64
	rest   string // an unfinished line
}

func newConsole(dir string, offset int64) *Console {
	return &Console{dir: dir, name: filepath.Join(dir, consoleLog), offset: offset}
}

// Path is the log's file.
func (c *Console) Path() string { return c.name }

// Connect opens the machine's serial port to type on it. One connection at a time.
func (c *Console) Connect(ctx context.Context) (net.Conn, error) {
	return dialUnix(ctx, c.dir, conSock)
}

// Keyboard is somebody who types on the machine's serial console.
type Keyboard struct {
	conn net.Conn
	read chan struct{}
}

// Keyboard sits down at the console, until Close. What the machine writes goes on to the log. One at a time.
func (v *VM) Keyboard(ctx context.Context) (*Keyboard, error) {
	conn, err := v.Console.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	k := &Keyboard{conn, make(chan struct{})}
	go func() {
		_, _ = io.Copy(io.Discard, conn) // or the machine would wait for its reader
		close(k.read)
	}()
	return k, nil
}

// Type types a text; Enter is \r.
func (k *Keyboard) Type(text string) error {
	if _, err := io.WriteString(k.conn, text); err != nil {
		return fmt.Errorf("console: typing: %w", err)
	}
	return nil
}

// Close leaves the console. What was typed just before may be lost.
func (k *Keyboard) Close() error {
	err := k.conn.Close()
	<-k.read
	return err
}

// Text is all the machine wrote since it was started, cleaned.
func (v *VM) Text() string {
	b, err := os.ReadFile(v.Console.name)
	if err != nil || len(b) < v.state.Boots {
		return ""
	}
	return clean(string(b[v.state.Boots:]))
}

// escapes are terminal sequences: colours, cursor moves, titles.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?=]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9]|[A-Za-z=>])`)

// clean makes console text fit for matching and printing: no escape sequences, no control characters but newlines.
func clean(s string) string {
	s = escapes.ReplaceAllString(strings.ReplaceAll(s, "\r\n", "\n"), "")
	return strings.Map(func(r rune) rune {
		if r == '\r' {
			return '\n'
		}
		if r < ' ' && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
}

// read returns the complete lines that came since the last read.
func (c *Console) read() ([]string, error) {
	f, err := os.Open(c.name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.NewSectionReader(f, c.offset, 1<<62))
	if err != nil {
		return nil, err
	}
	c.offset += int64(len(b))
	text := c.rest + string(b)
	end := strings.LastIndexByte(text, '\n') + 1
	c.rest = text[end:]
	var lines []string
	for line := range strings.Lines(clean(text[:end])) {
		if line = strings.TrimRight(line, " \t\n"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// Lines calls each for every new line until it returns true, the machine ends (ErrNotRunning) or ctx does.
func (v *VM) Lines(ctx context.Context, each func(line string) (stop bool)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var pending []string
	for {
		running := v.Running() // before reading: what it wrote last must still be read
		lines, err := v.Console.read()
		if err != nil {
			return err
		}
		pending = append(pending, lines...)
		for i, line := range pending {
			if each(line) {
				// Lines after the one that was waited for are for the next call.
				v.Console.unread(pending[i+1:])
				return nil
			}
		}
		pending = pending[:0]
		if !running {
			return ErrNotRunning
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (c *Console) unread(lines []string) {
	if len(lines) > 0 {
		c.rest = strings.Join(lines, "\n") + "\n" + c.rest
	}
}

// WaitConsole waits for a line that matches and returns it and its groups. On any other end the error holds the last lines.
func (v *VM) WaitConsole(ctx context.Context, expr string) ([]string, error) {
	re := regexp.MustCompile(expr)
	var found, last []string
	err := v.Lines(ctx, func(line string) bool {
		if last = append(last, line); len(last) > 40 {
			last = last[1:]
		}
		found = re.FindStringSubmatch(line)
		return found != nil
	})
	if err != nil {
		return nil, fmt.Errorf("console: no line matches %q: %w; the last lines were:\n  %s", expr, err, strings.Join(last, "\n  "))
	}
	return found, nil
}
