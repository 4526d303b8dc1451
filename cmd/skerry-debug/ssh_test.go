package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skerry-os/skerry/pkg/machine"
)

const patience = 30 * time.Second

// newKey makes a person's key, and its line in the config.
func newKey(t *testing.T) (ssh.Signer, ed25519.PrivateKey, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, private, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " admin@desk"
}

// bench is a server with one person who may come in.
type bench struct {
	t       *testing.T
	addr    string
	key     ssh.Signer
	private ed25519.PrivateKey
	host    ssh.PublicKey
	home    string
	stop    func() // and wait for the end

	mu   sync.Mutex
	keys []string
	out  bytes.Buffer
}

func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *bench) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, home: filepath.Join(t.TempDir(), "root")}
	var line string
	b.key, b.private, line = newKey(t)
	b.keys = []string{line}
	host, err := hostKey(filepath.Join(t.TempDir(), "debug", "key"))
	if err != nil {
		t.Fatal(err)
	}
	b.host = host.PublicKey()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	s := newServer(host, func() ([]string, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.keys, nil
	}, b.home, b)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.run(ctx, l); err != nil {
			t.Error(err)
		}
	}()
	b.stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	}
	t.Cleanup(func() {
		b.stop()
		if t.Failed() {
			t.Logf("the server said:\n%s", b.said())
		}
	})
	return b
}

func (b *bench) dial(user string, how ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", b.addr, &ssh.ClientConfig{User: user, Auth: how, HostKeyCallback: ssh.FixedHostKey(b.host), Timeout: patience})
}

func (b *bench) client() *ssh.Client {
	b.t.Helper()
	c, err := b.dial("root", ssh.PublicKeys(b.key))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bench) session(c *ssh.Client) *ssh.Session {
	b.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not %s", patience, what)
		}
	}
}

// Root comes in with a key of the config, and nobody else with anything else.
func TestWhoComesIn(t *testing.T) {
	b := newBench(t)
	other, _, line := newKey(t)
	asked := 0
	for name, c := range map[string]struct {
		user string
		how  []ssh.AuthMethod
		ok   bool
	}{
		"the right key":    {"root", []ssh.AuthMethod{ssh.PublicKeys(b.key)}, true},
		"the second key":   {"root", []ssh.AuthMethod{ssh.PublicKeys(other, b.key)}, true},
		"another key":      {"root", []ssh.AuthMethod{ssh.PublicKeys(other)}, false},
		"another user":     {"admin", []ssh.AuthMethod{ssh.PublicKeys(b.key)}, false},
		"no user":          {"", []ssh.AuthMethod{ssh.PublicKeys(b.key)}, false},
		"nothing":          {"root", nil, false},
		"a password":       {"root", []ssh.AuthMethod{ssh.PasswordCallback(func() (string, error) { asked++; return "", nil })}, false},
		"a keyboard":       {"root", []ssh.AuthMethod{ssh.KeyboardInteractive(func(_, _ string, _ []string, _ []bool) ([]string, error) { asked++; return nil, nil })}, false},
		"many wrong tries": {"root", []ssh.AuthMethod{ssh.PublicKeys(other, other, other, other, other, other, other, other, b.key)}, false},
	} {
		client, err := b.dial(c.user, c.how...)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = client.Close()
		}
	}
	if asked > 0 {
		t.Errorf("the client was asked for a password %d times", asked)
	}
	eventually(t, "said who came and who did not", func() bool {
		return strings.Contains(b.said(), "root came in from 127.0.0.1") && strings.Contains(b.said(), "(admin@desk)") && strings.Contains(b.said(), "refused 1 times")
	})
	for _, secret := range []string{strings.Fields(b.keys[0])[1], strings.Fields(line)[1]} {
		if strings.Contains(b.said(), secret) {
			t.Error("a key is in the log")
		}
	}
	// A key that is taken out of the config does not open any more, and one that is put in does.
	b.mu.Lock()
	b.keys = []string{"what is this", line}
	b.mu.Unlock()
	if _, err := b.dial("root", ssh.PublicKeys(b.key)); err == nil {
		t.Error("a key that was taken out opens")
	}
	c, err := b.dial("root", ssh.PublicKeys(other))
	if err != nil {
		t.Errorf("a key that was put in: %v", err)
	} else {
		_ = c.Close()
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	c := b.client()
	for command, want := range map[string]struct {
		in, out, err string
		code         int
		signal       string
	}{
		"echo out; echo err >&2; exit 7": {out: "out\n", err: "err\n", code: 7},
		"true":                           {},
		"cat; exit 3":                    {in: "what is typed\n", out: "what is typed\n", code: 3},
		"kill -TERM $$":                  {signal: "TERM"},
		"no-such-program":                {err: "not found", code: 127},
		"tty; echo $USER $HOME $TERM $KUBECONFIG; pwd": {out: "not a tty\nroot " + b.home + " vt220 /etc/skerry/skerry.yaml\n" + b.home + "\n"},
		"echo one; (sleep 0.2; echo later) & exit 5":   {out: "one\nlater\n", code: 5}, // what its children say is waited for
	} {
		s := b.session(c)
		var out, errOut bytes.Buffer
		s.Stdin, s.Stdout, s.Stderr = strings.NewReader(want.in), &out, &errOut
		err := s.Run(command)
		var exit *ssh.ExitError
		code, signal := 0, ""
		if errors.As(err, &exit) {
			code, signal = exit.ExitStatus(), exit.Signal()
		} else if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		if want.signal != "" {
			code = 0
		}
		if out.String() != want.out || !strings.Contains(errOut.String(), want.err) || code != want.code || signal != want.signal {
			t.Errorf("%s: %q, %q, exit status %d, signal %q", command, out.String(), errOut.String(), code, signal)
		}
	}
}

// Much output arrives whole, from a program and from a terminal, before the exit status does.
func TestLargeOutput(t *testing.T) {
	b := newBench(t)
	c := b.client()
	for _, terminal := range []bool{false, true} {
		s := b.session(c)
		if terminal {
			if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		out, err := s.Output("seq 1 400000; exit 0")
		lines := strings.Fields(string(out))
		if err != nil || len(lines) != 400000 || lines[len(lines)-1] != "400000" {
			t.Errorf("on a terminal %v: %d lines, the last %q, %v", terminal, len(lines), lines[max(0, len(lines)-1):], err)
		}
	}
	s := b.session(c)
	s.Stdin = bytes.NewReader(make([]byte, 8<<20))
	if out, err := s.Output("wc -c"); err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(8<<20) {
		t.Errorf("large input: %q, %v", out, err)
	}
}

// watched collects what comes and lets a test wait for it.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *watched) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(w.text(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q did not come; there is %q", want, w.text())
		}
	}
}

// awaitTyping types a line until its answer comes: an interrupted shell drops what was typed meanwhile.
func (w *watched) awaitTyping(t *testing.T, typing func(string), line, want string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(w.text(), want); time.Sleep(300 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q did not come; there is %q", want, w.text())
		}
		typing(line)
	}
}

// A shell on a terminal: its size from the beginning and after a change, its keys, its end.
func TestTerminal(t *testing.T) {
	b := newBench(t)
	s := b.session(b.client())
	if err := s.Setenv("LC_ALL", "C"); err != nil {
		t.Error(err)
	}
	if err := s.Setenv("LD_PRELOAD", "x"); err == nil {
		t.Error("LD_PRELOAD may be set")
	}
	if err := s.RequestPty("xterm-256color", 33, 101, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := new(watched)
	s.Stdout = out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	type_ := func(text string) {
		if _, err := io.WriteString(in, text); err != nil {
			t.Fatal(err)
		}
	}
	type_("stty size; echo term=$TERM lc=$LC_ALL\n")
	out.await(t, "33 101")
	out.await(t, "term=xterm-256color lc=C")
	if err := s.WindowChange(44, 120); err != nil {
		t.Fatal(err)
	}
	out.awaitTyping(t, type_, "stty size\n", "44 120") // what is typed may overtake the change
	type_("echo be''gins; sleep 1000\n")
	out.await(t, "begins")
	type_("\x03") // the terminal makes it a signal for what is in front, and drops what was typed and not read
	out.awaitTyping(t, type_, "echo b''ack\n", "back")
	type_("exit 9\n")
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 9 {
		t.Errorf("%v; it showed %q", err, out.text())
	}
}

func TestSignals(t *testing.T) {
	b := newBench(t)
	s := b.session(b.client())
	out := new(watched)
	s.Stdout = out
	if err := s.Start("trap 'echo heard; exit 4' USR1; echo up; while :; do sleep 0.02; done"); err != nil {
		t.Fatal(err)
	}
	out.await(t, "up")
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.Signal() != "USR1" && exit.ExitStatus() != 4 {
		t.Errorf("%v, %q", err, out.text())
	}
}

// A client that goes away takes its programs with it, those that do not listen too; so does the server.
func TestWhoGoesAway(t *testing.T) {
	for name, tt := range map[string]struct {
		terminal bool
		leave    func(*bench, *ssh.Client)
	}{
		"a client":               {false, func(_ *bench, c *ssh.Client) { _ = c.Close() }},
		"a client of a terminal": {true, func(_ *bench, c *ssh.Client) { _ = c.Close() }},
		"the server":             {false, func(b *bench, _ *ssh.Client) { b.stop() }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := b.client()
			s := b.session(c)
			if tt.terminal {
				if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
					t.Fatal(err)
				}
			}
			out := new(watched)
			s.Stdout = out
			if err := s.Start("trap '' HUP TERM INT; sleep 1000 & echo child $! end; echo own $$ end; while :; do sleep 0.05; done"); err != nil {
				t.Fatal(err)
			}
			out.await(t, "own ")
			eventually(t, "all said", func() bool { return strings.Count(out.text(), " end") == 2 })
			var pids [2]int
			for line := range strings.Lines(out.text()) {
				_, _ = fmt.Sscanf(line, "child %d", &pids[0]) // the other line does not match
				_, _ = fmt.Sscanf(line, "own %d", &pids[1])
			}
			tt.leave(b, c)
			for _, pid := range pids {
				if pid == 0 {
					t.Fatalf("it said %q", out.text())
				}
				eventually(t, fmt.Sprintf("gone: process %d", pid), func() bool { return gone(pid) })
			}
		})
	}
}

// gone says whether a process has ended; whether its parent took notice does not count.
func gone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z")
}

// Nothing is forwarded, and there is no way to start what is not a shell's.
func TestNothingIsForwarded(t *testing.T) {
	b := newBench(t)
	c := b.client()
	if conn, err := c.Dial("tcp", b.addr); err == nil || !strings.Contains(err.Error(), "forwards nothing") {
		t.Errorf("a connection from here on: %v, %v", conn, err)
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Errorf("a listener: %v", l.Addr())
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); ok || err != nil {
		t.Errorf("whether anybody is there: %v, %v", ok, err)
	}
	s := b.session(c)
	if err := s.RequestSubsystem("sftp"); err == nil {
		t.Error("there is a subsystem")
	}
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); ok || err != nil {
		t.Errorf("an agent: %v, %v", ok, err)
	}
	if err := s.Run(""); err == nil {
		t.Error("an empty command runs")
	}
	s = b.session(c)
	if ok, err := s.SendRequest("pty-req", true, []byte("short")); ok || err != nil {
		t.Errorf("half a request: %v, %v", ok, err)
	}
	if err := s.Run("true"); err != nil {
		t.Errorf("after half a request: %v", err)
	}
}

// Those who knock and say nothing do not keep others out for long, nor are there ever many of them.
func TestGuests(t *testing.T) {
	b := newBench(t)
	var silent []net.Conn
	for range mostGuests {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
		line := make([]byte, 4)
		if _, err := io.ReadFull(c, line); err != nil || string(line) != "SSH-" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	if _, err := b.dial("root", ssh.PublicKeys(b.key)); err == nil {
		t.Errorf("there are more than %d at once", mostGuests)
	}
	for _, c := range silent {
		_ = c.Close()
	}
	eventually(t, "let in again", func() bool {
		c, err := b.dial("root", ssh.PublicKeys(b.key))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// The file that init writes: without a key in it nothing listens, and the machine's own key is made once.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	file, keyFile := filepath.Join(dir, "ssh.json"), filepath.Join(dir, "debug", "key")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	write := func(c machine.SSH) {
		t.Helper()
		data, err := json.Marshal(c)
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(machine.SSH{Port: port})
	if err := serve(t.Context(), file, keyFile); err == nil || !strings.Contains(err.Error(), "nobody may log in") {
		t.Errorf("without keys: %v", err)
	}
	if _, err := os.Stat(keyFile); err == nil {
		t.Error("without keys it made one of its own")
	}
	signer, _, line := newKey(t)
	write(machine.SSH{Port: port, Keys: []string{line}})
	var own []string
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- serve(ctx, file, keyFile) }()
		eventually(t, "let in", func() bool {
			c, err := ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
				HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
					own = append(own, ssh.FingerprintSHA256(key))
					return nil
				}})
			if err != nil {
				own = nil
				return false
			}
			_ = c.Close()
			return true
		})
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	st, err := os.Stat(keyFile)
	if err != nil || st.Mode() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	first, err := hostKey(keyFile)
	if err != nil || own[len(own)-1] != ssh.FingerprintSHA256(first.PublicKey()) {
		t.Errorf("%v, %v", own, err)
	}
	if err := os.WriteFile(keyFile, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := hostKey(keyFile); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("a damaged key: %v", err)
	}
}

// OpenSSH's client agrees.
func TestOpenSSH(t *testing.T) {
	client, err := exec.LookPath("ssh")
	if err != nil {
		if os.Getenv("SKERRY_TOOLS") != "" {
			t.Fatal("make setup installs it: ", err)
		}
		t.Skip("make setup installs it: ", err)
	}
	b := newBench(t)
	dir := t.TempDir()
	save := func(name string, private ed25519.PrivateKey) string {
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			t.Fatal(err)
		}
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	_, wrong, _ := newKey(t)
	right, other := save("right", b.private), save("wrong", wrong)
	host, port, err := net.SplitHostPort(b.addr)
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, fmt.Appendf(nil, "[%s]:%s %s", host, port, ssh.MarshalAuthorizedKey(b.host)), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(key, in string, args ...string) (string, int) {
		t.Helper()
		c := exec.CommandContext(t.Context(), client, append([]string{"-F", "none", "-i", key, "-p", port, "-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=/dev/null",
			"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"}, args...)...)
		c.Stdin = strings.NewReader(in)
		out, err := c.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), c.ProcessState.ExitCode()
	}
	if out, code := run(right, "typed\n", "root@"+host, "cat; echo $USER; exit 7"); code != 7 || out != "typed\nroot\n" {
		t.Errorf("exit status %d: %q", code, out)
	}
	if out, code := run(right, "", "-tt", "root@"+host, "tty; exit 3"); code != 3 || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("on a terminal: exit status %d: %q", code, out)
	}
	if out, code := run(right, "", "root@"+host, "seq 1 200000"); code != 0 || !strings.HasSuffix(out, "\n200000\n") || strings.Count(out, "\n") != 200000 {
		t.Errorf("large output: exit status %d, %d bytes", code, len(out))
	}
	if out, code := run(other, "", "root@"+host, "echo in"); code != 255 || !strings.Contains(out, "Permission denied (publickey)") {
		t.Errorf("another key: exit status %d: %q", code, out)
	}
	if out, code := run(right, "", "admin@"+host, "echo in"); code != 255 || !strings.Contains(out, "Permission denied (publickey)") {
		t.Errorf("another user: exit status %d: %q", code, out)
	}
	if out, code := run(right, "", "-W", b.addr, "root@"+host); code == 0 || !strings.Contains(out, "forwards nothing") {
		t.Errorf("a forward: exit status %d: %q", code, out)
	}
	if out, code := run(right, "", "-s", "root@"+host, "sftp"); code == 0 {
		t.Errorf("sftp: exit status %d: %q", code, out)
	}
}
