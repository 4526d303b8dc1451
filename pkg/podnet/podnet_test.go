package podnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// machine is a node in a network namespace of the real kernel. Its pods are addresses on its loopback device.
type machine struct {
	t    *testing.T
	ns   ns.NetNS
	net  *Network
	self Node
	mtu  int
}

func (m *machine) do(f func()) {
	m.t.Helper()
	check(m.t, m.ns.Do(func(ns.NetNS) error { f(); return nil }))
}

// start is what a start of the engine does: nothing is remembered from before.
func (m *machine) start(cfg Config, addresses ...string) {
	m.t.Helper()
	var err error
	m.net, err = New(cfg)
	check(m.t, err)
	m.prepare(addresses...)
}

func (m *machine) prepare(addresses ...string) {
	m.t.Helper()
	var lacks error
	m.do(func() {
		told, mtu, err := m.net.Prepare(addrs(addresses...))
		if errors.Is(err, ErrUnsupported) {
			lacks = err
			return
		}
		check(m.t, err)
		told, err = ParseAnnouncement(told.String()) // as the others get it
		check(m.t, err)
		m.self.Announcement, m.mtu = told, mtu
	})
	if lacks != nil {
		m.t.Skip(lacks)
	}
}

func (m *machine) apply(others ...*machine) error {
	var nodes []Node
	for _, o := range others {
		nodes = append(nodes, o.self)
	}
	var err error
	m.do(func() { err = m.net.Apply(m.self.Subnets, nodes) })
	return err
}

func (m *machine) address(address string) {
	m.t.Helper()
	m.do(func() { addAddress(m.t, "eth0", address) })
}

func addAddress(t *testing.T, link, address string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	check(t, err)
	a, err := netlink.ParseAddr(address)
	check(t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	check(t, netlink.AddrAdd(l, a))
}

// pair makes two machines on one wire, each with a pod's address in each of its subnets.
func pair(t *testing.T, subnetsA, subnetsB []netip.Prefix) (a, b *machine) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	newMachine := func(name string, subnets []netip.Prefix) *machine {
		n, err := ns.TempNetNS()
		if err != nil {
			t.Skipf("needs network namespaces: %v", err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return &machine{t: t, ns: n, self: Node{Name: name, Subnets: subnets}}
	}
	a, b = newMachine("a", subnetsA), newMachine("b", subnetsB)
	a.do(func() {
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.ns.Fd())}))
	})
	for _, m := range []*machine{a, b} {
		m.do(func() {
			for _, name := range []string{"lo", "eth0"} {
				l, err := netlink.LinkByName(name)
				check(t, err)
				check(t, netlink.LinkSetUp(l))
			}
			for _, s := range m.self.Subnets {
				addAddress(t, "lo", netip.PrefixFrom(m.pod(s), s.Addr().BitLen()).String())
			}
		})
	}
	return a, b
}

func (m *machine) pod(subnet netip.Prefix) netip.Addr { return gateway(subnet).Next() }

// listen answers every connection with the caller's address and then with what the caller sends.
func (m *machine) listen(at netip.Addr) {
	m.t.Helper()
	var l net.Listener
	m.do(func() {
		var err error
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 8080).String())
		check(m.t, err)
	})
	m.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = fmt.Fprintln(c, host)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// patience is longer than WireGuard waits after a handshake that came before the other end knew its peer, five seconds.
const patience = 30 * time.Second

// dial connects and gives the address that the other side saw.
func (m *machine) dial(from, to netip.Addr) (c net.Conn, seen string, err error) {
	m.do(func() {
		d := net.Dialer{Timeout: patience}
		if from.IsValid() {
			d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
		}
		c, err = d.Dial("tcp", netip.AddrPortFrom(to, 8080).String())
	})
	if err != nil {
		return nil, "", err
	}
	m.t.Cleanup(func() { _ = c.Close() })
	seen, err = line(c)
	return c, seen, err
}

func line(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	var text []byte
	for one := make([]byte, 1); ; {
		if _, err := c.Read(one); err != nil {
			return string(text), err
		}
		if one[0] == '\n' {
			return string(text), nil
		}
		text = append(text, one[0])
	}
}

var cluster = prefixes("10.42.0.0/16", "fd00:42::/56")

// Pods reach pods of the other node, and nodes do, in both families, over either; and all of it is gone in the end.
func TestPodsReachPods(t *testing.T) {
	for name, c := range map[string]struct {
		backend        Backend
		a, b           []string
		subnetA, podsB []netip.Prefix
		mtu            int
	}{
		"vxlan over IPv4":     {VXLAN, []string{"192.0.2.1"}, []string{"192.0.2.2"}, prefixes("10.42.0.0/24", "fd00:42:0:0::/64"), prefixes("10.42.1.0/24", "fd00:42:0:1::/64"), 1450},
		"vxlan over IPv6":     {VXLAN, []string{"2001:db8::1"}, []string{"2001:db8::2"}, prefixes("fd00:42:0:0::/64", "10.42.0.0/24"), prefixes("fd00:42:0:1::/64", "10.42.1.0/24"), 1430},
		"host-gw":             {HostGW, []string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.2", "2001:db8::2"}, prefixes("10.42.0.0/24", "fd00:42:0:0::/64"), prefixes("10.42.1.0/24", "fd00:42:0:1::/64"), 1500},
		"wireguard over IPv4": {WireGuard, []string{"192.0.2.1"}, []string{"192.0.2.2"}, prefixes("10.42.0.0/24", "fd00:42:0:0::/64"), prefixes("10.42.1.0/24", "fd00:42:0:1::/64"), 1440},
		"wireguard over IPv6": {WireGuard, []string{"2001:db8::1"}, []string{"2001:db8::2"}, prefixes("fd00:42:0:0::/64"), prefixes("fd00:42:0:1::/64"), 1420},
		"vxlan, pods of one":  {VXLAN, []string{"192.0.2.1"}, []string{"192.0.2.2"}, prefixes("10.42.0.0/24"), prefixes("10.42.1.0/24"), 1450},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, c.subnetA, c.podsB)
			for m, list := range map[*machine][]string{a: c.a, b: c.b} {
				for _, text := range list {
					m.address(text + map[bool]string{false: "/24", true: "/64"}[strings.Contains(text, ":")])
				}
				m.start(Config{Backend: c.backend, Name: m.self.Name, Cluster: cluster, KeyFile: filepath.Join(t.TempDir(), "key")}, list...)
			}
			check(t, a.apply(b))
			check(t, b.apply(a))
			if a.mtu != c.mtu {
				t.Errorf("pods may send %d bytes; want %d", a.mtu, c.mtu)
			}
			for i, s := range b.self.Subnets {
				b.listen(b.pod(s))
				pod := a.pod(a.self.Subnets[i])
				if _, seen, err := a.dial(pod, b.pod(s)); err != nil || seen != pod.String() {
					t.Errorf("pod to %s: seen as %q, %v; want %s", b.pod(s), seen, err, pod)
				}
				want := gateway(a.self.Subnets[i])
				if c.backend == HostGW {
					want = addrs(c.a...)[i]
				}
				if _, seen, err := a.dial(netip.Addr{}, b.pod(s)); err != nil || seen != want.String() {
					t.Errorf("node to %s: seen as %q, %v; want %s", b.pod(s), seen, err, want)
				}
			}
			a.do(func() { check(t, Remove()) })
			if links, routes := a.left(); len(links) > 0 || len(routes) > 0 {
				t.Errorf("Remove left %v, %v", links, routes)
			}
		})
	}
}

// left lists our links and routes.
func (m *machine) left() (links []string, routes map[routeKey]route) {
	m.t.Helper()
	m.do(func() {
		list, err := netlink.LinkList()
		check(m.t, err)
		for _, l := range list {
			if strings.HasPrefix(l.Attrs().Name, "skerry") {
				links = append(links, l.Attrs().Name)
			}
		}
		routes, err = listRoutes()
		check(m.t, err)
	})
	return links, routes
}

func vxlanPair(t *testing.T) (a, b *machine) {
	t.Helper()
	a, b = pair(t, prefixes("10.42.0.0/24", "fd00:42:0:0::/64"), prefixes("10.42.1.0/24", "fd00:42:0:1::/64"))
	a.address("192.0.2.1/24")
	b.address("192.0.2.2/24")
	a.start(Config{Backend: VXLAN, Name: "a", Cluster: cluster}, "192.0.2.1")
	b.start(Config{Backend: VXLAN, Name: "b", Cluster: cluster}, "192.0.2.2")
	check(t, a.apply(b))
	check(t, b.apply(a))
	return a, b
}

// The other end of a WireGuard tunnel comes back with another key, and one that is gone is forgotten; a stream does not mind a
// start over what runs.
func TestWireGuardPeers(t *testing.T) {
	a, b := pair(t, prefixes("10.42.0.0/24"), prefixes("10.42.1.0/24"))
	a.address("192.0.2.1/24")
	b.address("192.0.2.2/24")
	config := Config{Backend: WireGuard, Name: "a", Cluster: cluster, KeyFile: filepath.Join(t.TempDir(), "key")}
	a.start(config, "192.0.2.1")
	b.start(Config{Backend: WireGuard, Name: "b", Cluster: cluster, KeyFile: filepath.Join(t.TempDir(), "key")}, "192.0.2.2")
	check(t, a.apply(b))
	check(t, b.apply(a))
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	stream, _, err := a.dial(a.pod(a.self.Subnets[0]), to)
	check(t, err)
	a.start(config, "192.0.2.1")
	check(t, a.apply(b))
	if _, err := fmt.Fprintln(stream, "still there"); err != nil {
		t.Fatal(err)
	}
	if got, err := line(stream); err != nil || got != "still there" {
		t.Errorf("the stream broke: %q, %v", got, err)
	}
	old := b.self.PublicKey
	b.start(Config{Backend: WireGuard, Name: "b", Cluster: cluster, KeyFile: filepath.Join(t.TempDir(), "other")}, "192.0.2.2")
	if b.self.PublicKey == old {
		t.Fatal("the key is the same")
	}
	check(t, b.apply(a))
	check(t, a.apply(b))
	if _, _, err := a.dial(a.pod(a.self.Subnets[0]), to); err != nil {
		t.Errorf("with the new key: %v", err)
	}
	check(t, a.apply())
	a.do(func() {
		control, err := wgctrl.New()
		check(t, err)
		defer control.Close() //nolint:errcheck // a test's
		d, err := control.Device(wireguardName)
		check(t, err)
		if len(d.Peers) != 0 {
			t.Errorf("peers are left: %v", d.Peers)
		}
	})
}

// A start over a running network sends the kernel nothing, and a stream goes on.
func TestRestartChangesNothing(t *testing.T) {
	a, b := vxlanPair(t)
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	stream, _, err := a.dial(a.pod(a.self.Subnets[0]), to)
	check(t, err)

	done := make(chan struct{})
	links, routes, neighs := make(chan netlink.LinkUpdate, 100), make(chan netlink.RouteUpdate, 100), make(chan netlink.NeighUpdate, 100)
	addresses := make(chan netlink.AddrUpdate, 100)
	a.do(func() {
		check(t, netlink.LinkSubscribe(links, done))
		check(t, netlink.RouteSubscribe(routes, done))
		check(t, netlink.NeighSubscribe(neighs, done))
		check(t, netlink.AddrSubscribe(addresses, done))
	})
	for range 3 {
		a.start(Config{Backend: VXLAN, Name: "a", Cluster: cluster}, "192.0.2.1")
		check(t, a.apply(b))
	}
	// A change that is seen proves that those before it would have been.
	a.do(func() { addAddress(t, "lo", "10.42.0.77/32") })
	<-addresses
	close(done)
	for l := range links {
		t.Errorf("link changed: %v", l.Attrs())
	}
	for r := range routes {
		if r.Protocol == protocol {
			t.Errorf("route changed: %v", r.Route)
		}
	}
	for n := range neighs {
		if n.State&netlink.NUD_PERMANENT != 0 {
			t.Errorf("neighbour changed: %v", n.Neigh)
		}
	}
	_, err = fmt.Fprintln(stream, "still there")
	check(t, err)
	if got, err := line(stream); err != nil || got != "still there" {
		t.Errorf("the stream broke: %q, %v", got, err)
	}
}

// What others left, by hand or from before, goes; what was taken away comes back.
func TestMends(t *testing.T) {
	a, b := vxlanPair(t)
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	for name, harm := range map[string]func(){
		"device removed":    func() { check(t, removeLink(vxlanName)) },
		"device down":       func() { l, err := netlink.LinkByName(vxlanName); check(t, err); check(t, netlink.LinkSetDown(l)) },
		"another MAC":       func() { setMAC(t, "02:00:00:00:00:07") },
		"smaller":           func() { l, err := netlink.LinkByName(vxlanName); check(t, err); check(t, netlink.LinkSetMTU(l, 900)) },
		"another device":    func() { check(t, removeLink(vxlanName)); strangeDevice(t) },
		"no routes":         func() { check(t, syncRoutes(nil)) },
		"no neighbours":     func() { check(t, syncNeighbours(a.net.link, nil)) },
		"stale neighbours":  func() { stale(t, a.net.link) },
		"stale route":       func() { staleRoute(t, a.net.link) },
		"forwarding is off": func() { check(t, sysctl("ipv4/ip_forward", "0")) },
	} {
		a.do(harm)
		a.prepare("192.0.2.1")
		if err := a.apply(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := a.dial(a.pod(a.self.Subnets[0]), to); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, routes := a.left(); len(routes) != 4 { // two to the other node's pods, two that are unreachable
			t.Errorf("%s: routes are %v", name, routes)
		}
		a.do(func() {
			have, err := listNeighbours(a.net.link)
			check(t, err)
			if len(have) != 3 {
				t.Errorf("%s: neighbours are %v", name, have)
			}
			if f, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(f) != "1\n" {
				t.Errorf("%s: forwarding is %s, %v", name, f, err)
			}
		})
	}
}

func setMAC(t *testing.T, text string) {
	l, err := netlink.LinkByName(vxlanName)
	check(t, err)
	mac, err := net.ParseMAC(text)
	check(t, err)
	check(t, netlink.LinkSetHardwareAddr(l, mac))
}

func strangeDevice(t *testing.T) {
	check(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vxlanName}, VxlanId: 5, Port: 4789, Learning: true}))
}

func stale(t *testing.T, dev *device) {
	for _, n := range []neighbour{{unix.AF_BRIDGE, netip.MustParseAddr("192.0.2.9"), "02:00:00:00:00:09"}, {unix.AF_INET, netip.MustParseAddr("10.42.9.1"), "02:00:00:00:00:09"}} {
		check(t, netlink.NeighSet(n.entry(dev)))
	}
}

func staleRoute(t *testing.T, dev *device) {
	check(t, netlink.RouteReplace(route{dst: netip.MustParsePrefix("10.42.9.0/24"), link: dev.index, via: netip.MustParseAddr("10.42.9.1"), onlink: true}.entry()))
}

// A node that moves to another address is found there, in both directions, and one that is gone is unreachable at once.
func TestNodeMovesAndGoes(t *testing.T) {
	a, b := vxlanPair(t)
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	b.do(func() {
		l, err := netlink.LinkByName("eth0")
		check(t, err)
		old, err := netlink.ParseAddr("192.0.2.2/24")
		check(t, err)
		check(t, netlink.AddrDel(l, old))
		addAddress(t, "eth0", "192.0.2.22/24")
		if _, _, err := b.net.Prepare(addrs("192.0.2.2")); err == nil || !strings.Contains(err.Error(), "192.0.2.2 is on no interface") {
			t.Errorf("an address that is gone: %v", err)
		}
	})
	b.prepare("192.0.2.22")
	check(t, b.apply(a))
	check(t, a.apply(b))
	if _, _, err := a.dial(a.pod(a.self.Subnets[0]), to); err != nil {
		t.Errorf("after the move: %v", err)
	}
	check(t, a.apply())
	if _, _, err := a.dial(netip.Addr{}, to); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("a pod of a node that is gone: %v; want unreachable", err)
	}
	a.do(func() {
		if have, err := listNeighbours(a.net.link); err != nil || len(have) != 0 {
			t.Errorf("neighbours are %v, %v", have, err)
		}
	})
}

// The device follows the one below it, whatever it is called.
func TestUnderlay(t *testing.T) {
	a, _ := vxlanPair(t)
	a.do(func() {
		l, err := netlink.LinkByName("eth0")
		check(t, err)
		check(t, netlink.LinkSetMTU(l, 9000))
		addAddress(t, "eth0", "198.51.100.1/24")
	})
	a.prepare("192.0.2.1")
	if a.mtu != 8950 {
		t.Errorf("MTU is %d after the device below got 9000", a.mtu)
	}
	a.start(Config{Backend: VXLAN, Name: "a", Cluster: cluster, Iface: "eth0"})
	if a.self.Addresses[0].String() != "192.0.2.1" {
		t.Errorf("the address of eth0 is %v", a.self.Addresses)
	}
	a.start(Config{Backend: VXLAN, Name: "a", Cluster: cluster, External: addrs("203.0.113.7")}, "192.0.2.1")
	if a.self.Addresses[0].String() != "203.0.113.7" {
		t.Errorf("the external address is told as %v", a.self.Addresses)
	}
	a.do(func() {
		n, err := New(Config{Backend: VXLAN, Name: "a", Cluster: cluster, Iface: "eth7"})
		check(t, err)
		if _, _, err := n.Prepare(nil); err == nil || !strings.Contains(err.Error(), "flannel-iface: eth7") {
			t.Errorf("a device that is not there: %v", err)
		}
	})
	a.start(Config{Backend: HostGW, Name: "a", Cluster: cluster}, "192.0.2.1")
	check(t, a.apply())
	if links, _ := a.left(); len(links) != 0 {
		t.Errorf("links of the back end before: %v", links)
	}
}

// Checksums in the tunnel can be left to the processor, for cards that get them wrong.
func TestOffload(t *testing.T) {
	a, b := vxlanPair(t)
	a.do(func() {
		tool, err := ethtool.NewEthtool()
		check(t, err)
		defer tool.Close()
		check(t, switchOffload(tool, vxlanName, "vmxnet3"))
		on, err := tool.Features(vxlanName)
		check(t, err)
		if on[checksumFeature] {
			t.Error("checksums are still left to the card")
		}
	})
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	if _, _, err := a.dial(a.pod(a.self.Subnets[0]), to); err != nil {
		t.Error(err)
	}
}

// One node's wrong announcement is told by name, and the others are served.
func TestWrongNodes(t *testing.T) {
	a, b := vxlanPair(t)
	to := b.pod(b.self.Subnets[0])
	b.listen(to)
	wrong := func(name string, change func(*Node)) Node {
		n := Node{Name: name, Subnets: prefixes("10.42.5.0/24"), Announcement: Announcement{Backend: VXLAN, Addresses: addrs("192.0.2.5"), MAC: "02:00:00:00:00:05"}}
		change(&n)
		return n
	}
	var err error
	a.do(func() {
		err = a.net.Apply(a.self.Subnets, []Node{
			wrong("aa-backend", func(n *Node) { n.Backend = WireGuard }),
			wrong("aa-outside", func(n *Node) { n.Subnets = prefixes("192.0.2.0/24") }),
			wrong("aa-wider", func(n *Node) { n.Subnets = prefixes("10.0.0.0/8") }),
			wrong("aa-ours", func(n *Node) { n.Subnets = a.self.Subnets }),
			wrong("aa-mac", func(n *Node) { n.MAC = "x" }),
			wrong("z-thief", func(n *Node) { n.Subnets = b.self.Subnets }),
			b.self,
		})
	})
	for _, want := range []string{
		"aa-backend: its pod network is wireguard-native", "aa-outside: its pod network 192.0.2.0/24 is outside", "aa-wider: its pod network 10.0.0.0/8 is outside",
		"aa-ours: its pod network 10.42.0.0/24 overlaps", "aa-mac: its VXLAN address", "z-thief: its pod network 10.42.1.0/24 overlaps",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nobody says %q: %v", want, err)
		}
	}
	if _, _, err := a.dial(a.pod(a.self.Subnets[0]), to); err != nil {
		t.Errorf("the good node: %v", err)
	}
}

func TestHostGWNeedsOneSegment(t *testing.T) {
	a, b := pair(t, prefixes("10.42.0.0/24"), prefixes("10.42.1.0/24"))
	a.address("192.0.2.1/24")
	b.address("192.0.2.2/24")
	a.do(func() {
		_, all, _ := net.ParseCIDR("0.0.0.0/0")
		check(t, netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP("192.0.2.2")}))
	})
	a.start(Config{Backend: HostGW, Name: "a", Cluster: cluster}, "192.0.2.1")
	b.self.Announcement = Announcement{Backend: HostGW, Addresses: addrs("198.51.100.2")}
	if err := a.apply(b); err == nil || !strings.Contains(err.Error(), "node b: 198.51.100.2 is behind a router") {
		t.Errorf("%v", err)
	}
}

func TestAnnouncement(t *testing.T) {
	for _, text := range []string{"", "x", "{}", `{"addresses":["x"]}`, `{"backend":"vxlan","addresses":[]}`} {
		if a, err := ParseAnnouncement(text); err == nil {
			t.Errorf("%q is %v", text, a)
		}
	}
	if _, err := New(Config{Backend: "ipsec"}); err == nil || !strings.Contains(err.Error(), "none of vxlan, host-gw") {
		t.Error(err)
	}
	if a, b := vtepMAC("a"), vtepMAC("b"); a.String() == b.String() || a[0]&3 != 2 || a.String() != vtepMAC("a").String() {
		t.Errorf("MACs are %s and %s", a, b)
	}
}

// A node's key stays, is nobody else's to read, and is made again when its file is damaged.
func TestKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent", "wireguard.key")
	one, err := ensureKey(file)
	check(t, err)
	two, err := ensureKey(file)
	check(t, err)
	info, err := os.Stat(file)
	check(t, err)
	if one != two || info.Mode().Perm() != 0o600 {
		t.Errorf("two keys, or mode %v", info.Mode())
	}
	check(t, os.WriteFile(file, []byte("half a k"), 0o600))
	if three, err := ensureKey(file); err != nil || three == one {
		t.Errorf("%v", err)
	}
	if _, err := parseKey("secret"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// Peers that did not change are left alone; a node's new key takes its networks from the old one.
func TestPeerChanges(t *testing.T) {
	key := func() wgtypes.Key { k, err := wgtypes.GeneratePrivateKey(); check(t, err); return k.PublicKey() }
	old, fresh, other := key(), key(), key()
	node := func(k wgtypes.Key, subnet, at string) Node {
		return Node{Subnets: prefixes(subnet), Announcement: Announcement{Backend: WireGuard, Addresses: addrs(at), PublicKey: k.String()}}
	}
	peer := func(k wgtypes.Key, subnet, at string) wgtypes.Peer {
		c := peerChanges(nil, []Node{node(k, subnet, at)})[0]
		return wgtypes.Peer{PublicKey: k, Endpoint: c.Endpoint, PersistentKeepaliveInterval: *c.PersistentKeepaliveInterval, AllowedIPs: c.AllowedIPs}
	}
	have := []wgtypes.Peer{peer(other, "10.42.1.0/24", "192.0.2.1"), peer(old, "10.42.2.0/24", "192.0.2.2")}
	for name, c := range map[string]struct {
		others []Node
		want   []string
	}{
		"the same": {[]Node{node(old, "10.42.2.0/24", "192.0.2.2"), node(other, "10.42.1.0/24", "192.0.2.1")}, nil},
		"new key":  {[]Node{node(fresh, "10.42.2.0/24", "192.0.2.2"), node(other, "10.42.1.0/24", "192.0.2.1")}, []string{"-" + old.String(), "+" + fresh.String()}},
		"moved":    {[]Node{node(old, "10.42.2.0/24", "192.0.2.9"), node(other, "10.42.1.0/24", "192.0.2.1")}, []string{"+" + old.String()}},
		"new net":  {[]Node{node(old, "10.42.7.0/24", "192.0.2.2"), node(other, "10.42.1.0/24", "192.0.2.1")}, []string{"+" + old.String()}},
		"gone":     {[]Node{node(other, "10.42.1.0/24", "192.0.2.1")}, []string{"-" + old.String()}},
	} {
		var got []string
		for _, p := range peerChanges(have, c.others) {
			got = append(got, map[bool]string{true: "-", false: "+"}[p.Remove]+p.PublicKey.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: changes are %v; want %v", name, got, c.want)
		}
	}
}

// Watch tells of what matters, soon.
func TestWatch(t *testing.T) {
	a, _ := vxlanPair(t)
	changed := make(chan struct{}, 100)
	ended := make(chan error)
	ready := make(chan struct{})
	ctx := t.Context()
	go func() {
		ended <- a.ns.Do(func(ns.NetNS) error {
			close(ready)
			return Watch(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
		})
	}()
	<-ready
	for name, change := range map[string]func(){
		"route":   func() { check(t, syncRoutes(nil)); check(t, a.net.Apply(a.self.Subnets, nil)) },
		"address": func() { addAddress(t, "eth0", fmt.Sprintf("192.0.2.%d/24", 100+time.Now().Nanosecond()%100)) },
	} {
		seen := false
		for deadline := time.Now().Add(5 * time.Second); !seen && time.Now().Before(deadline); { // until the subscription stands
			a.do(change)
			select {
			case <-changed:
				seen = true
			case <-time.After(50 * time.Millisecond):
			}
		}
		if !seen {
			t.Errorf("a change of a %s was not told", name)
		}
	}
}
