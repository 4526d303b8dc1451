package balance

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// server answers every line with its name, and can stop answering without closing anything, as a machine that vanished does.
type server struct {
	net.Listener
	name string

	mu   sync.Mutex
	sick bool
}

func newServer(t *testing.T, name string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l, name: name}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				in := bufio.NewScanner(c)
				for in.Scan() {
					s.mu.Lock()
					sick := s.sick
					s.mu.Unlock()
					if !sick {
						_, _ = c.Write([]byte(name + "\n"))
					}
				}
				_ = c.Close()
			}()
		}
	}()
	return s
}

func (s *server) addr() string { return s.Listener.Addr().String() }

func (s *server) set(sick bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sick = sick
}

// bench is a balancer that runs.
type bench struct {
	*Balancer
	t    *testing.T
	addr string
}

func run(t *testing.T, cfg Config, servers ...*server) *bench {
	t.Helper()
	cfg.Check = func(ctx context.Context, addr string) error {
		for _, s := range servers {
			s.mu.Lock()
			sick := s.sick
			s.mu.Unlock()
			if s.addr() == addr && !sick {
				return nil
			}
		}
		return errors.New("sick")
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() { done <- b.Run(ctx, l, func() { once.Do(func() { close(ready) }) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	return &bench{Balancer: b, t: t, addr: l.Addr().String()}
}

// dial opens a connection and says who answers.
func (b *bench) dial() (net.Conn, string) {
	b.t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c, b.ask(c)
}

func (b *bench) ask(c net.Conn) string {
	b.t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("who\n")); err != nil {
		return "cut"
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "cut"
	}
	return line[:len(line)-1]
}

func TestAVanishedServerIsLeft(t *testing.T) {
	one, two := newServer(t, "one"), newServer(t, "two")
	file := filepath.Join(t.TempDir(), "servers.json")
	b := run(t, Config{File: file, Fixed: []string{one.addr()}}, one, two)
	c, who := b.dial()
	if who != "one" {
		t.Fatalf("connected to %s", who)
	}
	if err := b.Set([]string{two.addr(), one.addr(), two.addr()}); err != nil {
		t.Fatal(err)
	}
	if again := b.ask(c); again != "one" {
		t.Errorf("a new server moved a connection to %s", again)
	}
	one.set(true) // it answers nothing any more, and closes nothing
	b.nudge()
	if got := b.ask(c); got != "cut" {
		t.Errorf("the connection to a vanished server says %q", got)
	}
	if _, who := b.dial(); who != "two" {
		t.Errorf("then connected to %s", who)
	}
	one.set(false)
	if _, who := b.dial(); who != "two" {
		t.Errorf("a server that came back is taken although the other works: %s", who)
	}
}

// The server it joined through is gone for good, and what it learned leads on, also after a restart.
func TestWhatWasLearnedOutlivesARestart(t *testing.T) {
	one, two := newServer(t, "one"), newServer(t, "two")
	file := filepath.Join(t.TempDir(), "servers.json")
	b, err := New(Config{File: file, Fixed: []string{one.addr()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Set([]string{two.addr()}), b.Set(nil), one.Close()); err != nil {
		t.Fatal(err)
	}
	again := run(t, Config{File: file, Fixed: []string{one.addr()}, Known: []string{one.addr()}}, two)
	if _, who := again.dial(); who != "two" {
		t.Errorf("connected to %s", who)
	}
	if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	torn := run(t, Config{File: file, Fixed: []string{two.addr()}}, two)
	if _, who := torn.dial(); who != "two" {
		t.Errorf("after the file was damaged: connected to %s", who)
	}
}

func TestASearchFindsAMovedServer(t *testing.T) {
	one, two := newServer(t, "one"), newServer(t, "two")
	one.set(true)
	b := run(t, Config{
		File: filepath.Join(t.TempDir(), "s"), Fixed: []string{one.addr()},
		Search: func(context.Context) []string { return []string{one.addr(), two.addr()} },
	}, one, two)
	if _, who := b.dial(); who != "two" {
		t.Errorf("connected to %s", who)
	}
	if got := b.Servers(); got[0] != two.addr() || !slices.Contains(got, one.addr()) {
		t.Errorf("servers %v", got)
	}
}
