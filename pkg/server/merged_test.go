package server

import (
	"errors"
	"net"
	"testing"
)

// What comes in at either address is accepted, and a close ends a waiting Accept.
func TestMerged(t *testing.T) {
	var list []net.Listener
	for range 2 {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	m := newMerged(list[0], list[1])
	for _, l := range list {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Accept()
		if err != nil || got.RemoteAddr().String() != c.LocalAddr().String() {
			t.Fatalf("accepted %v, %v", got, err)
		}
		_, _ = got.Close(), c.Close()
	}
	ended := make(chan error)
	go func() { _, err := m.Accept(); ended <- err }()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a waiting Accept ended with %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
}
