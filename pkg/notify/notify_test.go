package notify_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/notify"
)

func TestSendAndListen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify.sock")
	for range 2 { // a socket left over by an init that died is replaced
		l, err := notify.Listen(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := send(t, name, notify.Status("waits for\nthe datastore"), notify.Ready); err != nil {
			t.Fatal(err)
		}
		m, err := l.Next()
		if err != nil || !m.Ready() || m.Fields["STATUS"] != "waits for the datastore" || m.PID != os.Getpid() {
			t.Errorf("got %+v, %v", m, err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	if err := send(t, "", notify.Ready); err != nil {
		t.Errorf("without a supervisor: %v", err)
	}
	if err := send(t, filepath.Join(t.TempDir(), "gone.sock"), notify.Ready); err == nil || !strings.Contains(err.Error(), "gone.sock") {
		t.Errorf("error %v, want one that names the socket", err)
	}
}

func TestCloseEndsNext(t *testing.T) {
	l, err := notify.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { _, err := l.Next(); done <- err }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Next ended with %v", err)
	}
}

// Rubbish from a service does not become anything else.
func TestOddMessages(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	l, err := notify.Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		line  string
		ready bool
	}{{"READY=0", false}, {"READY", false}, {"=1", false}, {"", false}, {"READY=0\nREADY=1", true}, {"STATUS=READY=1", false}} {
		if err := send(t, name, tt.line); err != nil {
			t.Fatal(err)
		}
		if m, err := l.Next(); err != nil || m.Ready() != tt.ready {
			t.Errorf("%q: %+v, %v", tt.line, m, err)
		}
	}
}

// send is what a service does: it takes the socket's name, and nobody it starts sees it.
func send(t *testing.T, socket string, lines ...string) error {
	t.Helper()
	t.Setenv(notify.SocketEnv, socket)
	s, err := notify.Take()
	if err != nil {
		t.Fatal(err)
	}
	if name, set := os.LookupEnv(notify.SocketEnv); set {
		t.Errorf("%s is still %q", notify.SocketEnv, name)
	}
	return s.Send(lines...)
}

// A supervisor that has stopped reading holds nobody up for long.
func TestDeafSupervisor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := notify.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv(notify.SocketEnv, socket)
	s, err := notify.Take()
	if err != nil {
		t.Fatal(err)
	}
	var full error
	for range 10_000 {
		if full = s.Send("STATUS=busy"); full != nil {
			break
		}
	}
	if !errors.Is(full, os.ErrDeadlineExceeded) {
		t.Errorf("10000 messages that nobody reads: %v", full)
	}
}
