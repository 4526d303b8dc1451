package server

import (
	"errors"
	"net"
	"sync"
)

// merged accepts what comes in at several addresses. It calls itself by the first.
type merged struct {
	net.Listener
	all    []net.Listener
	conns  chan accepted
	closed chan struct{}
	once   sync.Once
}

type accepted struct {
	conn net.Conn
	err  error
}

func newMerged(first net.Listener, more ...net.Listener) *merged {
	m := &merged{Listener: first, all: append([]net.Listener{first}, more...), conns: make(chan accepted), closed: make(chan struct{})}
	for _, l := range m.all {
		go func() {
			for {
				conn, err := l.Accept()
				select {
				case m.conns <- accepted{conn, err}:
				case <-m.closed:
					if conn != nil {
						_ = conn.Close()
					}
					return
				}
				if errors.Is(err, net.ErrClosed) {
					return
				}
			}
		}()
	}
	return m
}

func (m *merged) Accept() (net.Conn, error) {
	select {
	case a := <-m.conns:
		return a.conn, a.err
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *merged) Close() error {
	var errs []error
	m.once.Do(func() {
		close(m.closed)
		for _, l := range m.all {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}
