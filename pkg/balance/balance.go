// Package balance is the way from a node to the cluster's servers: one port on this machine that leads to a server that works.
// It carries bytes and looks into none, so TLS is between the node's clients and the server, as without it.
//
// It stays with one server while that one works. When it does not, connections to it are cut, for clients would wait for a
// machine that vanished for as long as TCP does, and new ones go to another. Servers it was told of are remembered on disk: a
// node starts again although the server it joined through is long gone.
package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

const (
	dialTimeout = 3 * time.Second
	checkEvery  = 5 * time.Second
	checkLimit  = 5 * time.Second // a busy server is not a lost one
	strikes     = 2               // checks that fail before a server is left
	hurry       = 1 * time.Second // between checks when one failed
)

// Config says where servers may be.
type Config struct {
	File  string   // where they are remembered
	Fixed []string // as a person wrote them, host:port; a name among them may lead elsewhere tomorrow
	Known []string // from the join

	// Check says whether a server works. It is asked for the one in use every few seconds.
	Check func(ctx context.Context, addr string) error

	// Search is asked when none works, and may take its time; nil if there is nowhere to look.
	Search func(ctx context.Context) []string
}

// Balancer is made by New.
type Balancer struct {
	cfg Config

	mu      sync.Mutex
	learned []string
	current string
	conns   map[net.Conn]string // to servers, with whose it is
	wake    chan struct{}       // asks for a check now
}

// New reads what is remembered.
func New(cfg Config) (*Balancer, error) {
	b := &Balancer{cfg: cfg, conns: map[net.Conn]string{}, wake: make(chan struct{}, 1)}
	data, err := os.ReadFile(cfg.File)
	if err == nil {
		err = json.Unmarshal(data, &b.learned)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It can be learned again.
		slog.Warn("the remembered servers cannot be read; starting with those of the join", "err", fmt.Errorf("%s: %w", cfg.File, err))
	}
	if len(b.learned) == 0 {
		b.learned = slices.Clone(cfg.Known)
	}
	// Nodes that all start with the first would all burden one.
	rand.Shuffle(len(b.learned), func(i, j int) { b.learned[i], b.learned[j] = b.learned[j], b.learned[i] })
	return b, nil
}

// Servers are all that may be tried, the one in use in front.
func (b *Balancer) Servers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, s := range slices.Concat([]string{b.current}, b.learned, b.cfg.Fixed) {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Set is told which servers the cluster has. An empty list is a server's that is just starting, and changes nothing.
func (b *Balancer) Set(servers []string) error {
	slices.Sort(servers)
	servers = slices.Compact(servers)
	b.mu.Lock()
	old := slices.Clone(b.learned)
	slices.Sort(old)
	if len(servers) == 0 || slices.Equal(old, servers) {
		b.mu.Unlock()
		return nil
	}
	b.learned = servers
	b.mu.Unlock()
	slog.Info("the cluster's servers", "servers", servers)
	data, err := json.Marshal(servers)
	if err != nil {
		return err
	}
	return atomicfile.Write(b.cfg.File, data, 0o600)
}

// Run carries connections from l until ctx ends. It is ready when a server works.
func (b *Balancer) Run(ctx context.Context, l net.Listener, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer b.cut("")
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	all.Go(func() { b.watch(ctx, ready) })
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		all.Go(func() { b.carry(ctx, c) })
	}
}

// watch keeps a working server in use.
func (b *Balancer) watch(ctx context.Context, ready func()) {
	failed, quiet := 0, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-b.wake:
		}
		b.mu.Lock()
		current := b.current
		b.mu.Unlock()
		var err error
		if current != "" {
			err = b.check(ctx, current)
		}
		switch {
		case ctx.Err() != nil:
			return
		case current != "" && err == nil:
			failed, quiet = 0, false
			timer.Reset(checkEvery)
			continue
		case current != "":
			failed++
		}
		if current == "" || failed >= strikes {
			if b.move(ctx, current) {
				failed, quiet = 0, false
				ready()
				timer.Reset(checkEvery)
				continue
			}
			if !quiet {
				slog.Warn("no server works; trying on", "servers", b.Servers(), "err", err)
				quiet = true
			}
		}
		timer.Reset(hurry)
	}
}

func (b *Balancer) check(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	return b.cfg.Check(ctx, addr)
}

// move goes to another server that works, if there is one.
func (b *Balancer) move(ctx context.Context, from string) bool {
	try := func(list []string) bool {
		for _, s := range list {
			if s == from || b.check(ctx, s) != nil {
				continue
			}
			b.mu.Lock()
			b.current = s
			b.mu.Unlock()
			slog.Info("connected to a server", "server", s, "before", from)
			if from != "" {
				b.cut(from)
			}
			return true
		}
		return false
	}
	if try(b.Servers()) {
		return true
	}
	if b.cfg.Search == nil || from != "" && b.check(ctx, from) == nil {
		return false
	}
	return try(b.cfg.Search(ctx))
}

// cut ends the connections to a server, or all.
func (b *Balancer) cut(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c, s := range b.conns {
		if server == "" || s == server {
			_ = c.Close()
		}
	}
}

// carry joins a client's connection to a server's.
func (b *Balancer) carry(ctx context.Context, client net.Conn) {
	defer client.Close() //nolint:errcheck // nothing is lost with it
	for _, s := range b.Servers() {
		server, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", s)
		if err != nil {
			b.nudge()
			continue
		}
		b.mu.Lock()
		b.conns[server] = s
		moved := b.current != "" && b.current != s && ctx.Err() == nil
		b.mu.Unlock()
		if moved {
			b.nudge() // it carries on, and the check decides who is left
		}
		pipe(client, server)
		b.mu.Lock()
		delete(b.conns, server)
		b.mu.Unlock()
		return
	}
}

// nudge asks for a check now.
func (b *Balancer) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// pipe copies both ways until both have ended, or one was cut.
func pipe(a, b net.Conn) {
	done := make(chan struct{})
	oneWay := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		_ = to.Close()
		_ = from.Close()
	}
	go func() { defer close(done); oneWay(a, b) }()
	oneWay(b, a)
	<-done
	_ = b.Close()
}
