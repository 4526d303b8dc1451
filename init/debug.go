package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

const (
	debugProgram = "/usr/libexec/skerry/skerry-debug" // no other root than a debug release's has it
	// shellTerminal is the virtual terminal that has a shell; the first has the display. Alt-F2 leads there.
	shellTerminal = "/dev/tty2"

	// shellGrace is short: a shell that somebody types in does not listen to SIGTERM.
	shellGrace = time.Second
	// sshGrace is what the server needs to end its sessions.
	sshGrace = 5 * time.Second
)

// startShells offers a shell on every console, early: a machine that waits for its config, or cannot start its node, is what one
// wants to look into.
func startShells(_ context.Context, s *system) error {
	s.console.say(machine.DebugNotice)
	for _, name := range shellConsoles(linux.Consoles(os.DirFS("/sys"))) {
		s.behind(func(ctx context.Context) {
			s.debugService("console "+name, shellGrace, "console", name).Run(ctx, s.reaper)
		})
	}
	return nil
}

// shellConsoles lists the terminals that get a shell: every serial line that is a console, and one virtual terminal if a screen is.
func shellConsoles(consoles []string) (out []string) {
	for _, name := range consoles {
		if virtualTerminal.MatchString(name) {
			name = shellTerminal
		}
		if name != "/dev/console" && !slices.Contains(out, name) { // that is another name for one of them
			out = append(out, name)
		}
	}
	return out
}

// debugService runs skerry-debug and keeps it running. It has waits of its own: a shell ends because somebody typed exit.
func (s *system) debugService(name string, grace time.Duration, args ...string) *process.Service {
	return &process.Service{
		Spec:    process.Spec{Path: filepath.Join("/", s.ssh.root, debugProgram), Args: args, Dir: "/", Env: []string{"PATH=" + nodePath}},
		Log:     &teller{say: func(line string) { s.console.sayf("%s: %s", name, line) }},
		Backoff: process.Backoff{First: time.Second, Most: 30 * time.Second, Reset: 10 * time.Second},
		Grace:   grace,
	}
}

// teller says each line that is not the same as the one before: a console that is not there is tried for ever.
type teller struct {
	say func(line string)

	mu         sync.Mutex
	rest, last []byte
}

// Write takes lines, in pieces.
func (t *teller) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		line, rest, whole := bytes.Cut(t.rest, []byte("\n"))
		if !whole {
			break
		}
		t.rest = rest
		if !bytes.Equal(line, t.last) {
			t.last = bytes.Clone(line)
			t.say(string(line))
		}
	}
	return len(p), nil
}

// sshService is the SSH server while it runs.
type sshService struct {
	root string // / but for tests
	port int
	stop func() // and wait for its end; nil when it does not run
}

// startSSH lets the keys of the config in.
func startSSH(_ context.Context, s *system) error { return s.applySSH(s.config.SSH) }

// applySSH makes the server do as the config says. It reads its keys itself, each time somebody knocks, so that whoever is in
// stays in when they change. A release without the server says so.
func (s *system) applySSH(c machine.SSH) error {
	if !s.id.Release.Debug {
		s.missSSH(c)
		return nil
	}
	data, err := json.Marshal(c)
	if err == nil {
		err = atomicfile.Write(filepath.Join("/", s.ssh.root, machine.SSHFile), append(data, '\n'), 0o600)
	}
	if err != nil {
		return err
	}
	if s.ssh.stop != nil && (len(c.Keys) == 0 || c.ListenPort() != s.ssh.port) {
		s.ssh.stop()
		s.ssh.stop = nil
	}
	if s.ssh.stop != nil || len(c.Keys) == 0 {
		return nil
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	s.ssh.port, s.ssh.stop = c.ListenPort(), func() { close(stopped); <-ended }
	s.behind(func(ctx context.Context) {
		defer close(ended)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-stopped:
				cancel()
			case <-ctx.Done():
			}
		}()
		s.debugService("ssh", sshGrace, "ssh").Run(ctx, s.reaper)
	})
	return nil
}

// missSSH says that a config's keys open nothing here.
func (s *system) missSSH(c machine.SSH) {
	text := ""
	if len(c.Keys) > 0 {
		text = "ssh: this release has no SSH; install one of skerry release build --debug, or take ssh out of the config"
		s.console.say("config: " + text)
	}
	s.note("ssh", text)
}
