// Package process starts child processes where one loop reaps them all, as process 1 must: every orphan of the machine
// becomes its child. Exit statuses go to whoever started the child, and those of orphans nowhere.
//
// In a program with a Reaper nothing may wait for children by itself, so os/exec is out: its Wait and the loop would race
// for the same status. Reaper.Start and Reaper.Output stand in for it.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper collects the children of this process.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*Child
	orphans  int
}

// NewReaper makes a Reaper. Children end only while Run runs.
func NewReaper() *Reaper { return &Reaper{children: map[int]*Child{}} }

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGCHLD)
	defer signal.Stop(c)
	for {
		r.reap() // first, for those that ended before the handler stood
		select {
		case <-ctx.Done():
			return
		case <-c:
		}
	}
}

// reap takes every status there is. Signals come in one where several children end at once, so it goes on to the last.
func (r *Reaper) reap() {
	for {
		// The lock spans fork and registration in Start, so that a child cannot end before it is known.
		r.mu.Lock()
		var ws unix.WaitStatus
		var ru unix.Rusage
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, &ru)
		if errors.Is(err, unix.EINTR) {
			r.mu.Unlock()
			continue
		}
		if pid <= 0 {
			r.mu.Unlock()
			return
		}
		c := r.children[pid]
		if c == nil {
			r.orphans++
		}
		delete(r.children, pid)
		if c != nil {
			c.status = Status{ws}
			close(c.done)
		}
		r.mu.Unlock()
	}
}

// Orphans counts the children reaped that nobody here started.
func (r *Reaper) Orphans() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans
}

// Spec is what to start.
type Spec struct {
	Path   string
	Args   []string // without the program's own name
	Env    []string
	Dir    string
	Stdout *os.File // nil means /dev/null
	Stderr *os.File
	Cgroup string // folder of the cgroup v2 to start in; "" means this process's own
}

func (s Spec) String() string { return strings.Join(append([]string{s.Path}, s.Args...), " ") }

// Child is a process that was started.
type Child struct {
	reaper *Reaper
	pid    int
	done   chan struct{}
	status Status
}

// Start starts s in a session of its own.
func (r *Reaper) Start(s Spec) (*Child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	fd := func(f *os.File) uintptr {
		if f == nil {
			f = null
		}
		return f.Fd()
	}
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{null.Fd(), fd(s.Stdout), fd(s.Stderr)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if s.Cgroup != "" {
		g, err := os.Open(s.Cgroup)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Path, err)
		}
		defer g.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.Fd())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(s.Path, append([]string{s.Path}, s.Args...), attr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Path, err)
	}
	c := &Child{reaper: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// PID is the child's process id. After Done it may belong to another.
func (c *Child) PID() int { return c.pid }

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status is how the child ended; only valid after Done.
func (c *Child) Status() Status { return c.status }

// Signal sends sig to the child. After its end it does nothing, so that a process which got its id is safe.
func (c *Child) Signal(sig syscall.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	select {
	case <-c.done:
		return nil
	default:
		return unix.Kill(c.pid, sig)
	}
}

// Status is how a process ended.
type Status struct{ ws unix.WaitStatus }

// Code is the exit code, or -1 after a signal.
func (s Status) Code() int { return s.ws.ExitStatus() }

// Signal is what ended the process, or 0.
func (s Status) Signal() syscall.Signal {
	if s.ws.Signaled() {
		return s.ws.Signal()
	}
	return 0
}

func (s Status) String() string {
	if s.ws.Signaled() {
		return fmt.Sprintf("killed by %v", unix.SignalName(s.ws.Signal()))
	}
	return fmt.Sprintf("exit status %d", s.ws.ExitStatus())
}

// ExitError is an exit status that was not 0, and the last of what the program said.
type ExitError struct {
	Path   string
	Status Status
	Output string
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s: %v", e.Path, e.Status)
	if out := strings.TrimSpace(e.Output); out != "" {
		lines := strings.Split(out, "\n")
		msg += ": " + strings.Join(lines[max(0, len(lines)-4):], " | ")
	}
	return msg
}
