package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// accept reads a connection's first message and passes the connection on: to a pod, or to the HTTP server.
func (p *port) accept(c net.Conn, inner *handover) {
	_ = c.SetReadDeadline(time.Now().Add(headerTimeout))
	sni, c, err := peek(c)
	if err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	n := p.table.Load().name(hostOf(sni))
	if n == nil {
		_ = c.Close() // a name that nobody has is told nothing
		return
	}
	if !n.hasRoutes {
		inner.give(c)
		return
	}
	defer c.Close() //nolint:errcheck // nothing is buffered
	var route *TLSRoute
	n.routes.find(hostOf(sni), func(r *TLSRoute, _ int) bool { route = r; return true })
	if route == nil {
		return
	}
	defer p.streams.add(c)()
	if route.Terminate {
		server := tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return n.certificate(h)
		}})
		ctx, cancel := context.WithTimeout(context.Background(), headerTimeout)
		defer cancel()
		if server.HandshakeContext(ctx) != nil {
			return
		}
		c = server
	}
	b := weighted(route.turn, route.Backends)
	if b == nil || b.Invalid || len(b.Addresses) == 0 {
		return
	}
	at := b.turn.next(len(b.Addresses))
	for range min(len(b.Addresses), 4) {
		out, err := net.DialTimeout("tcp", b.Addresses[at], dialTimeout)
		if err == nil {
			join(c, out)
			return
		}
		at = (at + 1) % len(b.Addresses)
	}
}

// join copies both ways until both sides are done.
func join(a, b net.Conn) {
	defer b.Close() //nolint:errcheck // nothing is buffered
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		_ = to.Close()
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

var errPeeked = errors.New("seen enough")

// peek reads the server name that a client asks for and gives a connection that begins with the same bytes again.
func peek(c net.Conn) (string, net.Conn, error) {
	var seen bytes.Buffer
	sni, got := "", false
	err := tls.Server(&readOnly{Conn: c, r: io.TeeReader(io.LimitReader(c, 64<<10), &seen)}, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			sni, got = h.ServerName, true
			return nil, errPeeked
		},
	}).Handshake()
	again := &prefixed{Conn: c, r: io.MultiReader(&seen, c)}
	if !got {
		return "", again, err
	}
	return sni, again, nil
}

// readOnly lets a handshake read and keeps what it says to itself.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c *readOnly) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *readOnly) Write(b []byte) (int, error) { return len(b), nil }
func (c *readOnly) Close() error                { return nil }

type prefixed struct {
	net.Conn
	r io.Reader
}

func (c *prefixed) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *prefixed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// handover is a listener of connections that were accepted elsewhere.
type handover struct {
	address net.Addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func newHandover(a net.Addr) *handover {
	return &handover{address: a, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error   { h.once.Do(func() { close(h.closed) }); return nil }
func (h *handover) Addr() net.Addr { return h.address }

// streams are connections passed on.
type streams struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	all  sync.WaitGroup
}

func (s *streams) add(c net.Conn) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[net.Conn]struct{}{}
	}
	s.open[c] = struct{}{}
	s.all.Add(1)
	return func() {
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		s.all.Done()
	}
}

// wait lets connections end until ctx does, and then ends them.
func (s *streams) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() { s.all.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	<-done
}
