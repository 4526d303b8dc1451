package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test program is skerry-debug on a console, when it is told to be.
const onConsole = "SKERRY_TEST_CONSOLE"

func TestMain(m *testing.M) {
	// Whoever runs the tests may not want to hear of a hang-up (nohup), and children would not either. On a machine they do.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	if args := strings.Split(os.Getenv(onConsole), " "); len(args) == 3 {
		if err := console(args[0], args[1], args[2]); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// terminal is a person at a console. dir is where open shells are noted.
type terminal struct {
	t    *testing.T
	pty  *pty
	out  *watched
	open string
	cmd  *exec.Cmd
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	p, err := newPTY()
	if err != nil {
		t.Fatal(err)
	}
	// A serial line goes on when its program ends; this one does while somebody has it open.
	hold, err := p.terminal()
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, pty: p, out: new(watched), open: filepath.Join(t.TempDir(), "shells", filepath.Base(p.name))}
	go func() { _, _ = io.Copy(x.out, p) }()
	t.Cleanup(func() {
		_ = hold.Close()
		_ = p.Close()
		if t.Failed() {
			t.Logf("the console showed %q", x.out.text())
		}
	})
	return x
}

// start starts the program as init does: in a session of its own, without a terminal.
func (x *terminal) start() {
	x.t.Helper()
	x.cmd = exec.Command("/proc/self/exe")
	x.cmd.Env = append(os.Environ(), onConsole+"="+x.pty.name+" "+filepath.Dir(x.open)+" "+filepath.Join(x.t.TempDir(), "root"))
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	x.cmd.Stderr = os.Stderr
	if err := x.cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = x.cmd.Process.Kill() })
	// It takes the echo off when it begins to wait.
	eventually(x.t, "waiting for Enter", func() bool { return !x.echo() })
}

func (x *terminal) echo() bool {
	x.t.Helper()
	var on bool
	err := x.pty.control(func(fd int) error {
		tm, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			on = tm.Lflag&unix.ECHO != 0
		}
		return err
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return on
}

func (x *terminal) types(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.pty, text); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) end() error {
	x.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- x.cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		x.t.Fatal("the program does not end")
		return nil
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// A console stays as it is until somebody presses Enter. Then there is a shell, whose terminal it is; at its end the console is as
// before.
func TestShellOnAConsole(t *testing.T) {
	x := newTerminal(t)
	x.start()
	x.types("zzz") // a line that nobody reads by program has been made of less
	if exists(x.open) || x.out.text() != "" {
		t.Errorf("before Enter the console shows %q", x.out.text())
	}
	x.types("\r")
	eventually(t, "a shell", func() bool { return exists(x.open) })
	x.types("echo $((40+2)) on $(tty) term $TERM at $PWD\r")
	x.out.await(t, "42 on "+x.pty.name+" term vt220 at ")
	if strings.Contains(x.out.text(), "zzz") {
		t.Error("what was typed before Enter is shown, or run")
	}
	// Signals of the keyboard, and job control: the terminal is the session's.
	x.types("sleep 1000\r")
	eventually(t, "sleep", func() bool { return front(t, x) != x.cmd.Process.Pid })
	x.types("\x03")
	x.out.awaitTyping(t, x.types, "echo after''wards\r", "afterwards")
	x.types("sleep 1000 &\r")
	x.types("jobs\r")
	x.out.await(t, "unning")
	x.types("kill %1; exit 5\r")
	var exit *exec.ExitError
	if err := x.end(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("the shell ended with %v", err)
	}
	x.out.await(t, "exit 5\r\n") // the echo may come late
	before := x.out.text()
	x.start()
	if exists(x.open) {
		t.Error("the console still counts as in use")
	}
	if now := strings.TrimPrefix(x.out.text(), before); now != "" {
		t.Errorf("after the shell's end the console shows %q", now)
	}
	// init stops it, before anybody pressed Enter.
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = x.end()
}

// init's end of a shell takes along what runs in front, however little it listens to.
func TestShellIsKilled(t *testing.T) {
	x := newTerminal(t)
	x.start()
	x.types("\r")
	eventually(t, "a shell", func() bool { return exists(x.open) })
	x.types("cat; echo not''this\r")
	eventually(t, "cat", func() bool { return front(t, x) != x.cmd.Process.Pid })
	pid := front(t, x)
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = x.end()
	eventually(t, "gone: what ran in front", func() bool { return gone(pid) })
}

// front gives the process group that has the terminal.
func front(t *testing.T, x *terminal) int {
	t.Helper()
	var pid int
	err := x.pty.control(func(fd int) (err error) {
		pid, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestConsolesThatAreNone(t *testing.T) {
	for name, want := range map[string]string{"/dev/no-such-tty": "no such file", "/dev/null": "inappropriate ioctl"} {
		if err := console(name, t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
