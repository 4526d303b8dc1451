package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Options are what a server is made with.
type Options struct {
	Address netip.Addr // to listen on; none: all
	// Challenge answers an ACME issuer's questions on plain ports, and says whether the request was one.
	Challenge func(http.ResponseWriter, *http.Request) bool
	// Metrics counts requests; none: nobody does.
	Metrics *Metrics
}

// Server serves a Config.
type Server struct {
	options Options
	proxy   *forwarder

	mu     sync.Mutex
	ports  map[uint16]*port
	ending sync.WaitGroup // ports that are no more, finishing their requests
}

// port is one that listens.
type port struct {
	Options
	proxy     *forwarder
	table     atomic.Pointer[table]
	listener  net.Listener
	http      *http.Server
	challenge func(http.ResponseWriter, *http.Request) bool
	metrics   *Metrics
	streams   streams
	done      chan struct{}
	isTLS     bool
}

// Limits of a client's connection. There is none for the whole of a request: uploads and streams take their time.
const (
	headerTimeout  = 30 * time.Second
	idleTimeout    = 3 * time.Minute
	maxHeaderBytes = 64 << 10
	drainTimeout   = 60 * time.Second
)

// New makes a server that serves nothing yet.
func New(o Options) *Server {
	return &Server{options: o, proxy: newForwarder(), ports: map[uint16]*port{}}
}

// Apply puts a Config in force. A port that cannot be opened is an error, and all the others serve.
func (s *Server) Apply(c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var faults []error
	want := map[uint16]bool{}
	used := map[string]bool{}
	for i := range c.Ports {
		t := newTable(&c.Ports[i])
		t.eachBackend(func(b *Backend) {
			if b.TLS != nil {
				used[fmt.Sprint(b.Protocol, b.TLS.Key)] = true
			}
		})
		n := t.Number
		want[n] = true
		if p := s.ports[n]; p != nil && p.isTLS == t.TLS {
			p.table.Store(t)
			continue
		} else if p != nil {
			s.end(p) // its socket is closed when this returns
			delete(s.ports, n)
		}
		p, err := s.open(t)
		if err != nil {
			faults = append(faults, fmt.Errorf("port %d: %w", n, err))
			continue
		}
		s.ports[n] = p
	}
	for n, p := range s.ports {
		if !want[n] {
			s.end(p)
			delete(s.ports, n)
		}
	}
	s.proxy.keep(used)
	return errors.Join(faults...)
}

func (s *Server) open(t *table) (*port, error) {
	address := ""
	if s.options.Address.IsValid() {
		address = s.options.Address.String()
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(t.Number)))
	if err != nil {
		return nil, err
	}
	p := &port{
		Options: s.options, proxy: s.proxy, listener: l, challenge: s.options.Challenge, metrics: s.options.Metrics,
		done: make(chan struct{}), isTLS: t.TLS,
	}
	p.table.Store(t)
	p.http = &http.Server{
		Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0), // handshakes that clients break off are no news
	}
	p.http.Protocols.SetHTTP1(true)
	if t.TLS {
		p.http.Protocols.SetHTTP2(true)
		p.http.TLSConfig = p.tlsConfig()
	} else {
		p.http.Protocols.SetUnencryptedHTTP2(true)
	}
	go p.run()
	return p, nil
}

// run serves until the listener closes.
func (p *port) run() {
	defer close(p.done)
	if !p.isTLS {
		_ = p.http.Serve(p.listener)
		return
	}
	inner := newHandover(p.listener.Addr())
	go func() { _ = p.http.ServeTLS(inner, "", "") }()
	for {
		c, err := p.listener.Accept()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of file descriptors: others will be closed
			continue
		}
		if !p.table.Load().streams {
			inner.give(c)
			continue
		}
		go p.accept(c, inner)
	}
}

// end closes a port for new connections at once and lets the rest finish behind our back.
func (s *Server) end(p *port) {
	_ = p.listener.Close()
	s.ending.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		p.finish(ctx)
	})
}

func (p *port) finish(ctx context.Context) {
	_ = p.listener.Close()
	if p.http.Shutdown(ctx) != nil {
		_ = p.http.Close()
	}
	p.streams.wait(ctx)
	<-p.done
}

// Shutdown takes no more connections and returns when all requests are answered, or ctx ends.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	var all sync.WaitGroup
	for n, p := range s.ports {
		all.Go(func() { p.finish(ctx) })
		delete(s.ports, n)
	}
	s.mu.Unlock()
	all.Wait()
	done := make(chan struct{})
	go func() { s.ending.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func newTable(p *Port) *table {
	t := &table{Port: p}
	for _, s := range p.Sites {
		t.sites = append(t.sites, newSite(s))
	}
	if p.TLS {
		t.addNames()
	}
	return t
}

func (t *table) eachBackend(f func(*Backend)) {
	for i := range t.Sites {
		for j := range t.Sites[i].Listeners {
			for _, r := range t.Sites[i].Listeners[j].Routes {
				if r.Action == nil {
					continue
				}
				for k := range r.Action.Backends {
					f(&r.Action.Backends[k])
				}
				for _, fl := range r.Action.Filters {
					if fl.Mirror != nil && fl.Mirror.Backend != nil {
						f(fl.Mirror.Backend)
					}
				}
			}
		}
	}
}
