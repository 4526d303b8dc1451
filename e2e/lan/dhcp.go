package lan

import (
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
)

// DHCP gives these machines, by hardware address, these addresses, and this host as the way out and to names. Nobody else gets any.
func (l *LAN) DHCP(addresses map[string]string) {
	l.t.Helper()
	own := net.ParseIP(Address).To4()
	s, err := server4.NewServer(Bridge, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort}, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		address, known := addresses[m.ClientHWAddr.String()]
		kind := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck}[m.MessageType()]
		if !known || kind == 0 {
			return
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.ParseIP(address)), dhcpv4.WithServerIP(own),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(own)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(own), dhcpv4.WithDNS(own),
			dhcpv4.WithLeaseTime(uint32(time.Hour/time.Second)))
		if err != nil {
			return
		}
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
		if c := m.ClientIPAddr; c != nil && !c.IsUnspecified() {
			to.IP = c // it has the address, and renews it
		}
		_, _ = conn.WriteTo(r.ToBytes(), to)
	})
	if err != nil {
		l.t.Fatalf("dhcp: %v", err)
	}
	go s.Serve() //nolint:errcheck // until it is closed
	l.t.Cleanup(func() { _ = s.Close() })
}
