package balance

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

// Of a network, those are found that listen on the port; the machine itself is not asked.
func TestListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.77.1.200:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, at := range []string{"127.77.1.5:", "127.77.0.9:", "127.77.9.9:"} {
		l, err := net.Listen("tcp", at+port)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	networks := []netip.Prefix{netip.MustParsePrefix("127.77.0.9/23"), netip.MustParsePrefix("127.77.1.7/24")}
	got := listening(t.Context(), networks, port)
	if want := []string{"127.77.1.200:" + port, "127.77.1.5:" + port}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	for _, n := range own() {
		if n.Bits() < nearby || n.Addr().IsLoopback() {
			t.Errorf("%s is looked at", n)
		}
	}
}

// The first look waits for a server that is only starting anew, and the next ones take longer and longer.
func TestSearchIsSeldom(t *testing.T) {
	search := Neighbours("1")
	for range 3 {
		if found := search(t.Context()); len(found) > 0 {
			t.Errorf("found %q", found)
		}
	}
}
