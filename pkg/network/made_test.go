package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/machine"
)

// kernelHas skips a test of a kind of link that this kernel does not have; TestInQEMU runs it on the release's kernel.
func kernelHas(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no such links")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func isUp(name string) bool {
	l, err := netlink.LinkByName(name)
	return err == nil && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

func inMaster(name, master string) bool {
	l, err := netlink.LinkByName(name)
	m, merr := netlink.LinkByName(master)
	return err == nil && merr == nil && l.Attrs().MasterIndex == m.Attrs().Index
}

func routeTo(dst, via string, metric int) bool {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Dst != nil && r.Dst.String() == dst && (via == "" && r.Gw == nil || r.Gw.String() == via) && (metric == 0 || r.Priority == metric)
	})
}

// A bridge of two cards, one of which comes late, that asks DHCP and has static addresses, gateways and routes of both families.
func TestBridge(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := router(t)
	cable(t, in, "near", "far")
	m := &Manager{Config: machine.Network{Interfaces: []machine.Interface{{
		Name: "br0", Bridge: &machine.Bridge{Members: []string{"near", "late"}}, DHCP4: true, MTU: 1400,
		Addresses: []string{"192.0.2.5/24", "2001:db8::5/64"}, Gateway: "192.0.2.1, fe80::1",
		Routes: []machine.Route{{To: "198.51.100.0/24", Via: "192.0.2.9", Metric: 7}, {To: "2001:db8:9::/48", Via: "2001:db8::9"}, {To: "203.0.113.0/24"}},
	}}}}
	var s dhcpServer
	s.set(net.IPv4(10, 0, 9, 50), false)
	s.start(t, in, "far")
	wait := manage(t, m)
	wait("an address by DHCP", func() bool { return has(m, "10.0.9.50") })
	wait("static addresses", func() bool { return has(m, "192.0.2.5") && has(m, "2001:db8::5") })
	wait("gateways", func() bool { return defaultVia("192.0.2.1") && defaultVia("fe80::1") })
	wait("routes", func() bool {
		return routeTo("198.51.100.0/24", "192.0.2.9", 7) && routeTo("2001:db8:9::/48", "2001:db8::9", 0) && routeTo("203.0.113.0/24", "", 0)
	})
	cable(t, router(t), "late", "far2")
	wait("both cards in it", func() bool { return inMaster("near", "br0") && inMaster("late", "br0") })
	wait("its MTU", func() bool { return link(t, "br0").Attrs().MTU == 1400 })
}

// A VLAN on a bond of two cards: all of it is made, and packets get to the other end.
func TestVLANOnBond(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	probe := netlink.NewLinkBond(netlink.NewLinkAttrs())
	probe.Name = "probe"
	kernelHas(t, netlink.LinkAdd(probe))
	if err := netlink.LinkDel(probe); err != nil {
		t.Fatal(err)
	}
	in := router(t)
	cable(t, in, "near", "far")
	spare := router(t)
	cable(t, spare, "spare", "nowhere")
	spare(func() error { // this cable is dead, and the bond must find out
		l, err := netlink.LinkByName("nowhere")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
	in(func() error { // the other end speaks VLAN 10 alone
		far, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = "far.10", far.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 10, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
			return err
		}
		l, err := netlink.LinkByName("far.10")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.0.10.1/24")
		return errors.Join(err, netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	})
	dir := t.TempDir()
	m := &Manager{StateDir: dir, Patience: time.Minute, Config: machine.Network{Interfaces: []machine.Interface{
		{Name: "lan", VLAN: &machine.VLAN{ID: 10, On: "bond0"}, Addresses: []string{"10.0.10.5/24"}, Gateway: "10.0.10.1"},
		{Name: "bond0", Bond: &machine.Bond{Members: []string{"near", "spare"}}},
		{Name: "near", MTU: 1480},
	}}}
	wait := manage(t, m)
	wait("members of the bond", func() bool { return inMaster("near", "bond0") && inMaster("spare", "bond0") && isUp("bond0") })
	wait("the address", func() bool { return has(m, "10.0.10.5") })
	if b, ok := link(t, "bond0").(*netlink.Bond); !ok || b.Mode != netlink.BOND_MODE_ACTIVE_BACKUP || b.Miimon != lookEvery {
		t.Errorf("the bond is %+v", b)
	}
	if v, ok := link(t, "lan").(*netlink.Vlan); !ok || v.VlanId != 10 {
		t.Errorf("the VLAN is %+v", v)
	}
	wait("an answer of the router", func() bool { _, err := os.Stat(filepath.Join(dir, goodFile)); return err == nil })
}

// A config that works is remembered; one that reaches no router gives way to it; a good one after that takes its place; and when
// neither works the person's stays.
func TestLastGood(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := router(t)
	cable(t, in, "near", "far") // 10.0.9.1
	dir := t.TempDir()
	config := func(addr, gw string, nameserver string) machine.Network {
		return machine.Network{Interfaces: []machine.Interface{{Name: "near", Addresses: []string{addr}, Gateway: gw}}, Nameservers: []string{nameserver}}
	}
	said := func(m *Manager, part string) func() bool {
		return func() bool { return strings.Contains(m.Note(), part) }
	}
	m := &Manager{Config: config("10.0.9.5/24", "10.0.9.1", "10.0.9.53"), StateDir: dir, ResolvConf: filepath.Join(dir, "resolv.conf"), Patience: 6 * time.Second}
	wait := manage(t, m)
	wait("the good config kept", func() bool { _, err := os.Stat(filepath.Join(dir, goodFile)); return err == nil })
	if st, err := os.Stat(filepath.Join(dir, goodFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("it may hold secrets: %v, %v", st.Mode(), err)
	}

	m.Apply(config("10.0.9.6/24", "10.0.9.99", "10.0.9.54"))
	wait("the new address", func() bool { return has(m, "10.0.9.6") && !has(m, "10.0.9.5") })
	wait("the fall back", said(m, "the one that worked last is in use"))
	if !strings.Contains(m.Note(), "no answer of router 10.0.9.99") {
		t.Errorf("it says %q", m.Note())
	}
	wait("the old address", func() bool { return has(m, "10.0.9.5") && !has(m, "10.0.9.6") && defaultVia("10.0.9.1") })
	wait("the old name server", func() bool {
		conf, err := os.ReadFile(m.ResolvConf)
		return err == nil && strings.Contains(string(conf), "nameserver 10.0.9.53")
	})

	m.Apply(config("10.0.9.7/24", "10.0.9.1", "10.0.9.53"))
	wait("the next good one", func() bool { return has(m, "10.0.9.7") && m.Note() == "" })
	wait("the next good one kept", func() bool {
		good, err := m.lastGood()
		return err == nil && good != nil && good.Interfaces[0].Addresses[0] == "10.0.9.7/24"
	})

	in(func() error {
		l, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
	m.Apply(config("10.0.9.8/24", "10.0.9.1", "10.0.9.53"))
	wait("the fall back", said(m, "the one that worked last is in use"))
	wait("the end of trying", said(m, "neither the network config nor the one that worked last"))
	wait("what the person wants", func() bool { return has(m, "10.0.9.8") })
	in(func() error {
		l, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	wait("the cable back", func() bool { return m.Note() == "" })
}

// The first config of a machine has nothing to fall back to, and stays.
func TestNothingToFallBackTo(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	cable(t, router(t), "near", "far")
	m := &Manager{StateDir: t.TempDir(), Patience: time.Second, Config: machine.Network{
		Interfaces: []machine.Interface{{Name: "near", Addresses: []string{"10.0.9.5/24"}, Gateway: "10.0.9.99"}}}}
	wait := manage(t, m)
	wait("the address", func() bool { return has(m, "10.0.9.5") })
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if m.Note() != "" || !has(m, "10.0.9.5") {
			t.Fatalf("it went elsewhere: %q", m.Note())
		}
	}
}

// Name servers of a router's advertisements end up in resolv.conf, and go when it takes them back.
func TestNameServersOfRouters(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := router(t)
	cable(t, in, "near", "far")
	m := &Manager{ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"), Config: machine.Network{Interfaces: []machine.Interface{{Name: "near"}}}}
	wait := manage(t, m)
	advertise := func(lifetime uint32) {
		in(func() error {
			c, err := net.ListenPacket("ip6:ipv6-icmp", "::")
			if err != nil {
				return err
			}
			defer c.Close()
			raw, err := c.(*net.IPConn).SyscallConn()
			if err != nil {
				return err
			}
			var serr error
			err = raw.Control(func(fd uintptr) {
				serr = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), unix.SetsockoptInt(int(fd), unix.IPPROTO_RAW, unix.IPV6_CHECKSUM, 2))
			})
			if err := errors.Join(err, serr); err != nil {
				return err
			}
			be := binary.BigEndian
			ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // type, code, sum, hop limit, flags, router lifetime 1800 s
			ra = append(ra, optRDNSS, 3, 0, 0)
			ra = be.AppendUint32(ra, lifetime)
			server := netip.MustParseAddr("2001:db8::53").As16()
			ra = append(ra, server[:]...)
			ra = append(ra, optDNSSL, 3, 0, 0)
			ra = be.AppendUint32(ra, lifetime)
			ra = append(ra, "\x03lab\x07example\x00\x00\x00\x00"...)
			_, err = c.WriteTo(ra, &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: "far"})
			return err
		})
	}
	conf := func(want bool) func() bool {
		return func() bool {
			data, err := os.ReadFile(m.ResolvConf)
			return err == nil && strings.Contains(string(data), "search lab.example\nnameserver 2001:db8::53\n") == want
		}
	}
	in(func() error { // nobody sends before its own address is certain
		l, err := netlink.LinkByName("far")
		for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			addrs, aerr := netlink.AddrList(l, netlink.FAMILY_V6)
			if aerr == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE == 0 }) {
				return nil
			}
		}
		return errors.Join(err, errors.New("no IPv6 address"))
	})
	wait("name servers", func() bool { advertise(600); return conf(true)() })
	wait("none", func() bool { advertise(0); return conf(false)() })
}

// Whatever routers send, nothing but names and addresses comes out of it.
func FuzzRouterOptions(f *testing.F) {
	f.Add([]byte{optRDNSS, 3, 0, 0, 0, 0, 1, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53})
	f.Add([]byte{optDNSSL, 3, 0, 0, 0, 0, 1, 0, 3, 'l', 'a', 'b', 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 0, 0, 0, 0})
	f.Add([]byte{optDNSSL, 2, 0, 0, 0, 0, 1, 0, 3, 'a', '\n', 'b', 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var h heard
		h.read(data)
		if strings.ContainsAny(strings.Join(h.search, ""), " \n\t#") {
			t.Errorf("search %q", h.search)
		}
	})
}
