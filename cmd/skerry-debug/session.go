package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// The requests of RFC 4254, section 6, as far as they are served.
type (
	ptyRequest struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	sizeRequest struct{ Columns, Rows, Width, Height uint32 }
	envRequest  struct{ Name, Value string }
	execRequest struct{ Command string }
	signalAsk   struct{ Name string }
	exitStatus  struct{ Status uint32 }
	exitSignal  struct {
		Name          string
		Core          bool
		Message, Lang string
	}
)

// signals are those that RFC 4254 names.
var signals = map[string]syscall.Signal{
	"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP, "ILL": unix.SIGILL, "INT": unix.SIGINT, "KILL": unix.SIGKILL,
	"PIPE": unix.SIGPIPE, "QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV, "TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
}

// envNames are what a client may set.
var envNames = regexp.MustCompile(`^(LANG|LC_[A-Z]+|TZ|COLORTERM|NO_COLOR)$`)

// session is one channel of a client: at most one program, on a terminal or not.
type session struct {
	channel ssh.Channel
	home    string
	pty     *pty // nil for none
	term    string
	env     []string
	program *exec.Cmd
	ended   chan struct{} // closed when the program has
}

// serveSession serves a channel until it is closed, by the client or after the program's end. A client that goes away takes its
// program with it.
func serveSession(home string, channel ssh.Channel, requests <-chan *ssh.Request) {
	s := &session{channel: channel, home: home, ended: make(chan struct{})}
	for r := range requests {
		err := s.request(r)
		if r.WantReply {
			_ = r.Reply(err == nil, nil) // a client that is gone needs none
		}
		if err == nil && s.program != nil && (r.Type == "shell" || r.Type == "exec") {
			go s.await()
		}
		if err != nil && r.WantReply && (r.Type == "shell" || r.Type == "exec") {
			_, _ = fmt.Fprintf(channel.Stderr(), "skerry-debug: %v\r\n", err)
			_ = channel.Close()
		}
	}
	s.hangUp()
	_ = channel.Close()
}

func (s *session) request(r *ssh.Request) error {
	switch r.Type {
	case "pty-req":
		var q ptyRequest
		if err := ssh.Unmarshal(r.Payload, &q); err != nil {
			return err
		}
		if s.pty != nil || s.program != nil {
			return errors.New("has a terminal, or a program, already")
		}
		p, err := newPTY()
		if err != nil {
			return err
		}
		s.pty, s.term = p, q.Term
		return p.resize(q.Columns, q.Rows, q.Width, q.Height)
	case "window-change":
		var q sizeRequest
		if err := ssh.Unmarshal(r.Payload, &q); err != nil {
			return err
		}
		if s.pty == nil {
			return errors.New("has no terminal")
		}
		return s.pty.resize(q.Columns, q.Rows, q.Width, q.Height)
	case "env":
		var q envRequest
		if err := ssh.Unmarshal(r.Payload, &q); err != nil {
			return err
		}
		if !envNames.MatchString(q.Name) || strings.ContainsRune(q.Value, 0) || len(s.env) == 32 {
			return errors.New("is not one that may be set")
		}
		s.env = append(s.env, q.Name+"="+q.Value)
		return nil
	case "shell":
		return s.start("")
	case "exec":
		var q execRequest
		if err := ssh.Unmarshal(r.Payload, &q); err != nil {
			return err
		}
		if q.Command == "" {
			return errors.New("the command is empty")
		}
		return s.start(q.Command)
	case "signal":
		var q signalAsk
		if err := ssh.Unmarshal(r.Payload, &q); err != nil {
			return err
		}
		sig, known := signals[q.Name]
		if !known || s.program == nil {
			return errors.New("is no signal, or there is no program to get it")
		}
		s.kill(sig)
		return nil
	}
	return errors.New("is not served")
}

// start starts the shell, with a command or to type in. The program leads a session, and so a process group.
func (s *session) start(command string) error {
	if s.program != nil {
		return errors.New("a program runs in this session already")
	}
	c := exec.Command(shell)
	c.Args = []string{"-sh"}
	if command != "" {
		c.Args = []string{"sh", "-c", command}
	}
	c.Env, c.Dir = append(environment(s.home, s.term), s.env...), folder(s.home)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.pty != nil {
		return s.startOnTerminal(c)
	}
	// Wait does not wait for what the client types, which may never end, but for all that the program and its children say.
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	c.Stdout, c.Stderr = s.channel, s.channel.Stderr()
	if err := c.Start(); err != nil {
		return err
	}
	s.program = c
	go func() {
		_, _ = io.Copy(in, s.channel)
		_ = in.Close()
	}()
	return nil
}

func (s *session) startOnTerminal(c *exec.Cmd) error {
	t, err := s.pty.terminal()
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }() // the program has its own
	c.Stdin, c.Stdout, c.Stderr = t, t, t
	c.SysProcAttr.Setctty = true // of its file 0
	if err := c.Start(); err != nil {
		return err
	}
	s.program = c
	go func() { _, _ = io.Copy(s.pty, s.channel) }()
	return nil
}

// await sends what the program says on its terminal and how it ended, and closes the channel.
func (s *session) await() {
	defer close(s.ended)
	said := make(chan struct{})
	go func() {
		defer close(said)
		if s.pty != nil {
			_, _ = io.Copy(s.channel, s.pty) // ends with an error when the terminal's session has, and all it said is read
		}
	}()
	_ = s.program.Wait() // its state says how it ended
	<-said
	_ = s.channel.CloseWrite()
	how, payload := ended(s.program.ProcessState)
	_, _ = s.channel.SendRequest(how, false, payload)
	_ = s.channel.Close()
}

// ended is how SSH says how a program ended.
func ended(p *os.ProcessState) (request string, payload []byte) {
	w, ok := p.Sys().(syscall.WaitStatus)
	if ok && w.Signaled() {
		for name, sig := range signals {
			if sig == w.Signal() {
				return "exit-signal", ssh.Marshal(exitSignal{Name: name, Core: w.CoreDump()})
			}
		}
		return "exit-status", ssh.Marshal(exitStatus{128 + uint32(w.Signal())})
	}
	return "exit-status", ssh.Marshal(exitStatus{uint32(p.ExitCode())})
}

// kill sends a signal to the program's group. The group is there as long as the program has not been waited for, or has children.
func (s *session) kill(sig syscall.Signal) {
	select {
	case <-s.ended:
	default:
		_ = syscall.Kill(-s.program.Process.Pid, sig)
	}
}

// hangUp ends what still runs of the session: it hears that its terminal or client is gone, and is killed if that does not do.
func (s *session) hangUp() {
	if s.program != nil {
		s.kill(unix.SIGHUP)
		s.kill(unix.SIGCONT) // or what is stopped hears nothing
	}
	if s.pty != nil {
		_ = s.pty.Close() // tells the other groups of the session
	}
	if s.program == nil {
		return
	}
	select {
	case <-s.ended:
		return
	case <-time.After(partingTime):
	}
	s.kill(unix.SIGKILL)
}
