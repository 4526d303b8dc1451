package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/platform"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

func TestConsolesWithShells(t *testing.T) {
	for consoles, want := range map[string]string{
		"/dev/tty0 /dev/ttyS0":               "/dev/tty2 /dev/ttyS0",
		"/dev/tty0 /dev/ttyS0 /dev/ttyAMA0":  "/dev/tty2 /dev/ttyS0 /dev/ttyAMA0",
		"/dev/tty1 /dev/tty0 /dev/hvc0":      "/dev/tty2 /dev/hvc0",
		"/dev/console":                       "",
		"/dev/ttyS1":                         "/dev/ttyS1",
		"/dev/ttyAMA10 /dev/tty0 /dev/ttyS0": "/dev/ttyAMA10 /dev/tty2 /dev/ttyS0",
	} {
		if got := strings.Join(shellConsoles(strings.Fields(consoles)), " "); got != want {
			t.Errorf("%s: shells on %q, want %q", consoles, got, want)
		}
	}
}

// The steps of a debug release are done and told of there alone.
func TestDebugSteps(t *testing.T) {
	for _, debug := range []bool{false, true} {
		done := false
		var said []string
		s := &system{id: machine.Identity{Release: machine.Release{Debug: debug}}}
		st := onDebug("start shells", func(context.Context, *system) error { done = true; return nil }, time.Minute)
		if err := runSteps(t.Context(), s, []step{st}, func(line string) { said = append(said, line) }); err != nil || done != debug || len(said) > 0 != debug {
			t.Errorf("debug %v: done %v, said %q, %v", debug, done, said, err)
		}
	}
	at := func(name string) int { return slices.IndexFunc(stage2, func(st step) bool { return st.name == name }) }
	// A machine that waits for a person, or whose node does not start, has a shell by then.
	if shells, ssh := at("start shells"), at("start SSH"); shells < at("read identity") || shells > at("find node") || ssh < at("mount data") || ssh < at("bring up network") || ssh > at("start node") {
		t.Errorf("shells are step %d and SSH is %d", shells, ssh)
	}
	for _, st := range slices.Concat(stage1, stageNet, stage2) {
		if st.debug && st.must {
			t.Errorf("%s: a machine restarts for its shell", st.name)
		}
	}
}

// While somebody uses the shell on a serial line, what init says there begins on a line of its own, and else nothing changes.
func TestLinesBesideAShell(t *testing.T) {
	c, read := pipeConsole(t)
	c.shells = t.TempDir()
	c.say("one")
	open := filepath.Join(c.shells, "serial")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.say("two")
	c.show([]string{"three"})
	if err := os.Remove(open); err != nil {
		t.Fatal(err)
	}
	c.say("four")
	if got, want := read(false), "skerry: one\n\r\nskerry: two\n\r\nskerry| three\nskerry: four\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := read(true); !strings.HasPrefix(got, "skerry: one\nskerry: two\n\x1b[H") {
		t.Errorf("the screen, where nobody types, shows %q", got)
	}
}

func TestTeller(t *testing.T) {
	var said []string
	w := &teller{say: func(line string) { said = append(said, line) }}
	for _, piece := range []string{"a\n", "a\na\nb", "\n", "a\nhalf"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if got := strings.Join(said, " "); got != "a b a" {
		t.Errorf("said %q", got)
	}
}

const sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKkv1+ixUQ4yvL+jV3eHzDUZaGwDtHK0IykxdKzAdGmH admin@desk"

// A release without SSH says that a config's keys open nothing, until the config has none any more. The key itself is not told.
func TestSSHWithoutIt(t *testing.T) {
	c, read := pipeConsole(t)
	s := &system{console: c, config: decode(t, "ssh: {keys: ["+sshKey+"]}\n")}
	s.missSSH(s.config.SSH)
	if got := read(false); !strings.HasPrefix(got, "skerry: config: ssh: this release has no SSH; install one of skerry release build --debug, or take ssh out of the config\n") || strings.Contains(got, "AAAA") {
		t.Errorf("the console says %q", got)
	}
	if n := s.allNotes(); len(n) != 1 || !strings.Contains(n[0], "ssh: this release has no SSH") {
		t.Errorf("the display says %q", n)
	}
	if err := s.applySSH(machine.SSH{}); err != nil || len(s.allNotes()) != 0 {
		t.Errorf("after it was taken out: %v, the display says %q", err, s.allNotes())
	}
	s.id.Release.Debug = true
	if n := s.allNotes(); len(n) != 1 || !strings.HasPrefix(n[0], machine.DebugNotice) {
		t.Errorf("on a debug release the display says %q", n)
	}
}

// The server runs while the config has keys, hears of other keys without a restart, and starts anew for another port.
func TestSSHFollowsTheConfig(t *testing.T) {
	c, read := pipeConsole(t)
	s := &system{console: c, reaper: process.NewReaper()}
	s.life, s.end = context.WithCancelCause(context.Background())
	reaping, reaped := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.reaper.Run(reaping); close(ended) }()
	defer func() { reaped(); <-ended }()
	s.id = machine.Identity{Release: machine.Release{Debug: true}, Boot: machine.Boot{Slot: slot.A}}
	s.ssh.root = t.TempDir()
	program := filepath.Join(s.ssh.root, debugProgram)
	for _, dir := range []string{filepath.Dir(program), filepath.Join(s.ssh.root, filepath.Dir(machine.SSHFile))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\ntrap 'echo ends; exit 0' TERM\necho \"began: $*\"\nwhile :; do sleep 0.02; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	finish := func() {
		s.end(stop{why: "the test is over"})
		s.background.Wait()
	}
	defer finish()
	count := func(line string) int { return strings.Count(read(false), "skerry: ssh: "+line) }
	await := func(line string, n int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); count(line) != n; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not %d times %q:\n%s", n, line, read(false))
			}
		}
	}
	apply := func(c machine.SSH) {
		t.Helper()
		if err := s.applySSH(c); err != nil {
			t.Fatal(err)
		}
		var got machine.SSH
		file := filepath.Join(s.ssh.root, machine.SSHFile)
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &got)
		}
		if st, serr := os.Stat(file); err != nil || serr != nil || st.Mode() != 0o600 || !slices.Equal(got.Keys, c.Keys) || got.Port != c.Port {
			t.Fatalf("%s: %s, %v, %v", file, data, err, serr)
		}
	}
	apply(machine.SSH{})
	apply(machine.SSH{Keys: []string{"one"}})
	await("began: ssh", 1)
	apply(machine.SSH{Keys: []string{"one", "two"}, Port: 22})
	if count("ends") != 0 {
		t.Error("another key ended it")
	}
	apply(machine.SSH{Keys: []string{"one"}, Port: 2222})
	await("began: ssh", 2)
	apply(machine.SSH{Port: 2222})
	await("ends", 2)
	apply(machine.SSH{Keys: []string{"one"}})
	await("began: ssh", 3)
	finish()
	await("ends", 3)
}

// Keys of the platform fill what the config leaves open, on a debug release alone. What is no key is passed over.
func TestSSHKeysOfAPlatform(t *testing.T) {
	const ground = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\ncluster: {token: 0123456789abcdef0123}\n"
	i := &platform.Instance{Platform: "aws", ID: "i-1", SSHKeys: []string{sshKey, "ssh-dss AAAA old", sshKey}}
	for _, tt := range []struct {
		debug        bool
		config, keys string
	}{{false, "", ""}, {true, "", sshKey}, {true, "ssh: {keys: [" + strings.Replace(sshKey, "admin@", "own@", 1) + "]}\n", strings.Replace(sshKey, "admin@", "own@", 1)}} {
		s := &system{told: told{data: []byte(ground + tt.config)}}
		s.id.Release.Debug = tt.debug
		c, _, err := s.configFrom(i)
		if err != nil || strings.Join(c.SSH.Keys, "|") != tt.keys {
			t.Errorf("debug %v, %q: %v, %v", tt.debug, tt.config, c, err)
		}
	}
}

// A terminal is hung up for all who have it open when a shell on it ends. What init says goes on there.
func TestConsoleIsHungUp(t *testing.T) {
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|noCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = near.Close() }()
	var name string
	raw, err := near.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				var n int
				n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
				name = fmt.Sprintf("/dev/pts/%d", n)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	far, err := openTTY(name)
	if err != nil {
		t.Fatal(err)
	}
	c := &console{ttys: []tty{{f: far}}}
	defer func() { _ = c.ttys[0].f.Close() }()
	hangUp := func() {
		t.Helper()
		f, err := openTTY(name)
		if err == nil {
			err = unix.IoctlSetInt(int(f.Fd()), unix.TIOCVHANGUP, 0)
		}
		if err != nil {
			t.Skip(err) // it takes root
		}
		_ = f.Close()
	}
	lines := bufio.NewReader(near)
	for _, line := range []string{"one", "two", "three"} {
		c.say(line)
		if got, err := lines.ReadString('\n'); err != nil || got != "skerry: "+line+"\r\n" {
			t.Fatalf("%q, %v", got, err)
		}
		hangUp()
		if _, err := far.WriteString("x"); line == "one" && !errors.Is(err, unix.EIO) {
			t.Fatalf("the terminal was not hung up: %v", err)
		}
	}
}
