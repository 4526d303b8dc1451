package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/pkg/machine"
)

func TestSetup(t *testing.T) {
	eth := Link{Name: "eth0", MAC: "52:54:00:12:34:56", Wired: true}
	bridge := Link{Name: "cni0", MAC: "52:54:00:12:34:56"}
	byMAC := machine.Network{Interfaces: []machine.Interface{{MAC: "52:54:00:12:34:56", MTU: 9000}}}
	card := Link{Name: "eth7", Path: "pci0000:00/0000:00:03.0/virtio0", Driver: "virtio_net", Wired: true}
	byPath := machine.Network{Interfaces: []machine.Interface{{Path: "0000:00:03.*/virtio0", DHCP4: true}}}
	byDriver := machine.Network{Interfaces: []machine.Interface{{Driver: "virtio_net", DHCP4: true}}}
	bond := machine.Network{Interfaces: []machine.Interface{{Name: "bond0", Bond: &machine.Bond{Members: []string{"52:54:00:12:34:56"}}}}}
	for _, tt := range []struct {
		name string
		cfg  machine.Network
		link Link
		want machine.Interface
		ours bool
	}{
		{"nothing said: DHCP", machine.Network{}, eth, machine.Interface{Name: "eth0", DHCP4: true}, true},
		{"nothing said: not for bridges", machine.Network{}, bridge, machine.Interface{}, false},
		{"by hardware address", byMAC, eth, byMAC.Interfaces[0], true},
		{"a bridge that took the card's address", byMAC, bridge, machine.Interface{}, false},
		{"WiFi by hardware address", byMAC, Link{Name: "wlan0", MAC: "52:54:00:12:34:56", WiFi: true}, byMAC.Interfaces[0], true},
		{"nothing said: not for WiFi", machine.Network{}, Link{Name: "wlan0", WiFi: true}, machine.Interface{}, false},
		{"by path", byPath, card, byPath.Interfaces[0], true},
		{"by path, another slot", byPath, eth, machine.Interface{}, false},
		{"by driver", byDriver, card, byDriver.Interfaces[0], true},
		{"a member of a bond", bond, eth, machine.Interface{Name: "eth0"}, true},
		{"another is named", machine.Network{Interfaces: []machine.Interface{{Name: "eth1"}}}, eth, machine.Interface{}, false},
	} {
		got, ours := setup(tt.cfg, tt.link)
		if !reflect.DeepEqual(got, tt.want) || ours != tt.ours {
			t.Errorf("%s: %+v, %v", tt.name, got, ours)
		}
	}
}

func TestResolvConf(t *testing.T) {
	a := netip.MustParseAddr
	got := resolvConf([]string{"192.0.2.1"}, []netip.Addr{a("192.0.2.1"), a("192.0.2.2"), a("192.0.2.3"), a("192.0.2.4")}, []string{"lab", "example.org"})
	_, got, _ = strings.Cut(got, "\n")
	want := "search lab example.org\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n# more than 3 are not read: 192.0.2.4\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// What a server says is not taken on trust.
func TestReadLease(t *testing.T) {
	now := time.Unix(1e9, 0)
	read := func(mods ...dhcpv4.Modifier) (*lease, error) {
		ack, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 5))}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		return readLease(&nclient4.Lease{ACK: ack, Offer: ack}, now)
	}
	l, err := read()
	if err != nil || l.addr.String() != "10.0.0.5/24" || l.expires != now.Add(time.Hour) || l.renew != now.Add(time.Hour/2) {
		t.Errorf("the least an answer can say: %+v, %v", l, err)
	}
	l, err = read(dhcpv4.WithLeaseTime(0), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionRenewTimeValue, []byte{0, 0, 0, 0})))
	if err != nil || l.expires != now.Add(time.Minute) || l.renew != now.Add(time.Minute/2) {
		t.Errorf("a lease of nothing must not make a busy loop: %+v, %v", l, err)
	}
	for _, ip := range []net.IP{net.IPv4zero, net.IPv4(224, 0, 0, 1), net.IPv4(127, 0, 0, 1)} {
		if _, err := read(dhcpv4.WithYourIP(ip)); err == nil {
			t.Errorf("address %v was accepted", ip)
		}
	}
	_, dst, _ := net.ParseCIDR("10.9.0.0/16")
	l, err = read(dhcpv4.WithRouter(net.IPv4(10, 0, 0, 1)), dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: dst, Router: net.IPv4(10, 0, 0, 2)})))
	if err != nil || len(l.routes) != 1 || l.routes[0].to.String() != "10.9.0.0/16" {
		t.Errorf("classless routes stand in for the router: %+v, %v", l, err)
	}
}

// inNamespace runs the calling test again in a network namespace of its own, and returns true there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const env = "SKERRY_TEST_IN_NAMESPACE"
	if os.Getenv(env) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), env+"="+t.Name())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// router makes a namespace for the machine at the other end of cables, and returns how to run something in it.
func router(t *testing.T) (in func(func() error)) {
	t.Helper()
	work, done := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- syscall.Unshare(syscall.CLONE_NEWNET)
		for f := range work {
			done <- f()
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(work) })
	return func(f func() error) {
		t.Helper()
		work <- f
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// cable leads from a new card called near to one called far in the router, which has the address 10.0.9.1.
func cable(t *testing.T, in func(func() error), near, far string) {
	t.Helper()
	var ns *os.File
	in(func() (err error) { ns, err = os.Open("/proc/thread-self/ns/net"); return err })
	defer ns.Close()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: far, PeerNamespace: netlink.NsFd(ns.Fd())}); err != nil {
		t.Fatal(err)
	}
	in(func() error {
		l, err := netlink.LinkByName(far)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.0.9.1/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	})
}

// dhcpServer is a real one on the far end that does as the test says.
type dhcpServer struct {
	mu       sync.Mutex
	ip       net.IP
	nak      bool
	requests int
	hostname string
}

func (s *dhcpServer) set(ip net.IP, nak bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ip, s.nak = ip, nak
}

func (s *dhcpServer) seen() (int, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.hostname
}

func (s *dhcpServer) start(t *testing.T, in func(func() error), iface string) {
	t.Helper()
	var srv *server4.Server
	self := net.IPv4(10, 0, 9, 1)
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		s.mu.Lock()
		defer s.mu.Unlock()
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
			s.requests++
			s.hostname = m.HostName()
			asked := m.RequestedIPAddress()
			if !m.ClientIPAddr.IsUnspecified() {
				asked = m.ClientIPAddr
			}
			if s.nak || !asked.Equal(s.ip) {
				kind = dhcpv4.MessageTypeNak
			}
		}
		reply, err := dhcpv4.NewReplyFromRequest(m,
			dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(s.ip), dhcpv4.WithServerIP(self), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(self), dhcpv4.WithDNS(net.IPv4(10, 0, 9, 53)), dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionRenewTimeValue, []byte{0, 0, 0, 1})), dhcpv4.WithOption(dhcpv4.OptDomainName("lab.example")))
		if err == nil {
			_, err = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
		}
		if err != nil {
			t.Logf("server: %v", err)
		}
	}
	in(func() (err error) { srv, err = server4.NewServer(iface, nil, handler); return err })
	go func() { _ = srv.Serve() }()
	t.Cleanup(func() { _ = srv.Close() })
}

// manage runs a Manager for the test and waits until ok.
func manage(t *testing.T, m *Manager) (wait func(what string, ok func() bool)) {
	t.Helper()
	if m.Log == nil {
		m.Log = t.Logf
	}
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() { // the test's context has ended by now
		if err := <-done; err != nil {
			t.Errorf("the manager ended: %v", err)
		}
	})
	return func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for !ok() {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-deadline:
				t.Fatalf("not within 30 s: %s", what)
			}
		}
	}
}

func has(m *Manager, addr string) bool {
	list, err := m.Addresses()
	if err != nil {
		return false
	}
	for _, a := range list {
		if a.IP.String() == addr {
			return true
		}
	}
	return false
}

func defaultVia(gw string) bool {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, r := range routes {
		if r.Gw.String() == gw && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
			return true
		}
	}
	return false
}

// The whole life of a lease against a real server: asked for in vain, had, renewed, refused, had anew with another address.
func TestDHCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := router(t)
	cable(t, in, "near", "far")
	dir := t.TempDir()
	m := &Manager{
		Config:     machine.Network{Interfaces: []machine.Interface{{Name: "near", DHCP4: true}}},
		Hostname:   "north-1",
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		StateDir:   dir,
	}
	var s dhcpServer
	s.set(net.IPv4(10, 0, 9, 50), false)
	wait := manage(t, m)
	s.start(t, in, "far")
	wait("an address", func() bool { return has(m, "10.0.9.50") })
	wait("a way out", func() bool { return defaultVia("10.0.9.1") })
	wait("name servers", func() bool {
		conf, err := os.ReadFile(m.ResolvConf)
		return err == nil && strings.Contains(string(conf), "search lab.example\nnameserver 10.0.9.53\n")
	})
	if _, name := s.seen(); name != "north-1" {
		t.Errorf("the server heard host name %q", name)
	}
	wait("the address remembered for the next start", func() bool { return m.remembered("near").String() == "10.0.9.50" })
	before, _ := s.seen()
	wait("renewals", func() bool { n, _ := s.seen(); return n > before+1 })

	s.set(net.IPv4(10, 0, 9, 60), true)
	wait("the refused address taken away", func() bool { return !has(m, "10.0.9.50") })
	s.set(net.IPv4(10, 0, 9, 60), false)
	wait("the new address", func() bool { return has(m, "10.0.9.60") && defaultVia("10.0.9.1") })
}

// A card that comes after the start, with static addresses of both families.
func TestStaticOnALateCard(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := &Manager{Config: machine.Network{
		Interfaces:  []machine.Interface{{Name: "late", Addresses: []string{"192.0.2.5/24", "2001:db8::5/64"}, Gateway: "192.0.2.1", MTU: 1400}},
		Nameservers: []string{"192.0.2.53"},
	}, ResolvConf: filepath.Join(t.TempDir(), "resolv.conf")}
	wait := manage(t, m)
	wait("loopback", func() bool { l, err := netlink.LinkByName("lo"); return err == nil && l.Attrs().Flags&net.FlagUp != 0 })
	changed := m.Changed()
	cable(t, router(t), "late", "far")
	if err := m.WaitAddress(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-changed
	wait("both addresses", func() bool { return has(m, "192.0.2.5") && has(m, "2001:db8::5") })
	wait("the gateway", func() bool { return defaultVia("192.0.2.1") })
	if l, err := netlink.LinkByName("late"); err != nil || l.Attrs().MTU != 1400 {
		t.Errorf("mtu: %v", err)
	}
	if conf, err := os.ReadFile(m.ResolvConf); err != nil || !strings.Contains(string(conf), "nameserver 192.0.2.53\n") {
		t.Errorf("resolv.conf: %s, %v", conf, err)
	}
}
