package netboot

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// solicit is what firmware asks first by IPv6; change makes something else of it.
func solicit(t testing.TB, id dhcpv6.DUID, change func(*dhcpv6.Message)) []byte {
	t.Helper()
	m, err := dhcpv6.NewMessage(dhcpv6.WithClientID(id), dhcpv6.WithIAID([4]byte{1, 2, 3, 4}), dhcpv6.WithArchType(iana.EFI_X86_64))
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = dhcpv6.MessageTypeSolicit
	if change != nil {
		change(m)
	}
	return m.ToBytes()
}

var (
	hw6  = net.HardwareAddr{0x52, 0x54, 0, 0x0b, 0x0c, 0x0d}
	uid6 = [16]byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
)

// The firmware of a machine that is to start from its disk is told that there is nothing; nobody else is told anything.
func TestNothingByIPv6(t *testing.T) {
	byUUID, byMAC := &dhcpv6.DUIDUUID{UUID: uid6}, netip.MustParseAddr("fe80::5054:ff:fe0b:c0d%eth1")
	other := netip.MustParseAddr("fe80::1234:5678:9abc:def0%eth1")
	d := &dhcp6{id: &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, onDisk: func(mac, uuid string) bool {
		return mac == hw6.String() || uuid == "00112233-4455-6677-8899-aabbccddeeff"
	}}
	for name, c := range map[string]struct {
		packet []byte
		from   netip.Addr
		want   bool
	}{
		"known by its address":              {solicit(t, &dhcpv6.DUIDOpaque{Type: 9, Data: []byte{1}}, nil), byMAC, true},
		"known by its UUID":                 {solicit(t, byUUID, nil), other, true},
		"known by the card of its ID":       {solicit(t, &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw6}, nil), other, true},
		"known by the card of its dated ID": {solicit(t, &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw6}, nil), other, true},
		"known by nothing":                  {solicit(t, &dhcpv6.DUIDOpaque{Type: 9, Data: []byte{1}}, nil), other, false},
		"another machine's UUID":            {solicit(t, &dhcpv6.DUIDUUID{UUID: [16]byte{1}}, nil), other, false},
		"another machine's card": {
			solicit(t, &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}, nil), other, false,
		},
		"an address that only looks like it": {solicit(t, &dhcpv6.DUIDOpaque{Type: 9, Data: []byte{1}}, nil), netip.MustParseAddr("2001:db8::5054:ff:fe0b:c0d"), false},
		"an operating system":                {solicit(t, byUUID, func(m *dhcpv6.Message) { m.Options.Del(dhcpv6.OptionClientArchType) }), byMAC, false},
		"no ID":                              {solicit(t, byUUID, func(m *dhcpv6.Message) { m.Options.Del(dhcpv6.OptionClientID) }), byMAC, false},
		"a later question":                   {solicit(t, byUUID, func(m *dhcpv6.Message) { m.MessageType = dhcpv6.MessageTypeRequest }), byMAC, false},
		"an answer":                          {solicit(t, byUUID, func(m *dhcpv6.Message) { m.MessageType = dhcpv6.MessageTypeAdvertise }), byMAC, false},
		"a relay's":                          {append([]byte{byte(dhcpv6.MessageTypeRelayForward)}, make([]byte, 40)...), byMAC, false},
		"garbage":                            {[]byte("GET / HTTP/1.1"), byMAC, false},
		"nothing at all":                     {nil, byMAC, false},
	} {
		r := d.answer(c.packet, c.from)
		if (r != nil) != c.want {
			t.Errorf("%s: %v", name, r)
		}
		if r != nil {
			nothing(t, name, r)
		}
	}
}

// nothing wants an offer of no address and no boot file.
func nothing(t *testing.T, name string, r *dhcpv6.Message) {
	t.Helper()
	if r.MessageType != dhcpv6.MessageTypeAdvertise || r.Options.ServerID() == nil || r.Options.ClientID() == nil || len(r.Options.Options) != 2 {
		t.Errorf("%s: %s", name, r.Summary())
	}
}

func FuzzIPv6(f *testing.F) {
	f.Add(solicit(f, &dhcpv6.DUIDUUID{UUID: uid6}, nil))
	f.Add(solicit(f, &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw6}, nil))
	f.Add([]byte{1, 0, 0, 0, 0, 1, 0, 2, 0, 4})
	d := &dhcp6{id: &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw6}, onDisk: func(string, string) bool { return true }}
	from := netip.MustParseAddr("fe80::5054:ff:fe0b:c0d%eth1")
	f.Fuzz(func(t *testing.T, packet []byte) {
		if r := d.answer(packet, from); r != nil {
			if _, err := dhcpv6.MessageFromBytes(r.ToBytes()); err != nil {
				t.Errorf("%x is answered by %x: %v", packet, r.ToBytes(), err)
			}
		}
	})
}

// On a real cable: a machine is answered once it is installed, and no more when it is to be installed again.
func TestIPv6OnTheCable(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l, b := newLAN(t), bench(t)
	o := options(t, b)
	o.DHCP = addresses(t)
	s := run(t, o)
	mark := func(at time.Time) {
		t.Helper()
		if _, err := s.Change(hw6.String(), func(m *Machine) error { m.Installed = at; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	ask := func() *dhcpv6.Message {
		t.Helper()
		var out *dhcpv6.Message
		l.in(func() error {
			var conn *net.UDPConn
			var err error
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // the card's address is looked for on the cable first
				if conn, err = net.ListenUDP("udp6", &net.UDPAddr{Port: dhcpv6.DefaultClientPort}); err != nil {
					return err
				}
				if _, err = conn.WriteTo(solicit(t, &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw6}, nil),
					&net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers, Port: dhcpv6.DefaultServerPort, Zone: "far"}); err == nil {
					break
				}
				_ = conn.Close()
			}
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // a test's
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			buf := make([]byte, 2000)
			n, _, err := conn.ReadFromUDP(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err == nil {
				out, err = dhcpv6.MessageFromBytes(buf[:n])
			}
			return err
		})
		return out
	}
	if r := ask(); r != nil {
		t.Errorf("a machine that nobody knows is told %s", r.Summary())
	}
	mark(time.Now())
	if r := ask(); r == nil {
		t.Error("an installed machine is told nothing")
	} else {
		nothing(t, "installed", r)
	}
	mark(time.Time{})
	if r := ask(); r != nil {
		t.Errorf("a machine that is to be installed is told %s", r.Summary())
	}
}
