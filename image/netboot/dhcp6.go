package netboot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/net/ipv6"
)

// dhcp6 tells the firmware of machines that are to start from their disks that there is nothing for them by IPv6. Machines are started
// by IPv4; but firmware that has the network first asks by IPv6 before it goes on to the disk, and waits a minute for an answer by PXE
// and one more by HTTP boot. An offer without an address and without a boot file (RFC 8415, section 18.3.9) ends that within seconds,
// and takes nothing from anybody: firmware prefers any other offer that has a file.
type dhcp6 struct {
	iface  string
	id     dhcpv6.DUID
	onDisk func(mac, uuid string) bool // either may be ""
	log    func(format string, a ...any)
}

// listen opens the servers' port for the interface alone.
func (d *dhcp6) listen() (*net.UDPConn, error) {
	i, err := net.InterfaceByName(d.iface)
	if err != nil {
		return nil, err
	}
	d.id = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: i.HardwareAddr}
	conn, err := server6.NewIPv6UDPConn(d.iface, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort})
	if err != nil {
		return nil, err
	}
	if err := ipv6.NewPacketConn(conn).JoinGroup(i, &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// serve answers what comes in on conn until ctx ends.
func (d *dhcp6) serve(ctx context.Context, conn *net.UDPConn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("dhcp: IPv6: %w", err)
		}
		if r := d.answer(buf[:n], peer.Addr()); r != nil {
			if _, err := conn.WriteToUDPAddrPort(r.ToBytes(), peer); err != nil && ctx.Err() == nil {
				d.log("dhcp: IPv6: answering %v: %v", peer, err)
			}
		}
	}
}

// answer decides about one packet from a machine's link-local address. nil is no answer.
func (d *dhcp6) answer(packet []byte, from netip.Addr) *dhcpv6.Message {
	m, err := dhcpv6.MessageFromBytes(packet)
	if err != nil || m.MessageType != dhcpv6.MessageTypeSolicit || len(m.Options.ArchTypes()) == 0 { // firmware alone says its architecture
		return nil
	}
	mac, ok := macOf(from)
	id := ""
	switch duid := m.Options.ClientID().(type) {
	case *dhcpv6.DUIDLL:
		mac = duid.LinkLayerAddr.String()
	case *dhcpv6.DUIDLLT:
		mac = duid.LinkLayerAddr.String()
	case *dhcpv6.DUIDUUID:
		id = uuid(duid.UUID[:]) // as firmware says it by IPv4, too
	default:
		if !ok {
			return nil
		}
	}
	if !d.onDisk(mac, id) {
		return nil
	}
	r, err := dhcpv6.NewAdvertiseFromSolicit(m, dhcpv6.WithServerID(d.id))
	if err != nil {
		return nil
	}
	return r
}

// macOf reads the hardware address out of a link-local address that was made of it (RFC 4291, appendix A).
func macOf(a netip.Addr) (string, bool) {
	b := a.As16()
	if !a.IsLinkLocalUnicast() || !a.Is6() || b[11] != 0xff || b[12] != 0xfe {
		return "", false
	}
	return net.HardwareAddr{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}.String(), true
}

// onDisk reports whether a machine is to start from its disk. One that is known by none of its network cards is known by its UUID.
func (s *Server) onDisk(mac, uuid string) bool {
	if mac, ok := NormalMAC(mac); ok {
		if m, err := s.Get(mac); err == nil {
			return !m.Installed.IsZero()
		}
	}
	if uuid == "" {
		return false
	}
	list, err := s.List()
	if err != nil {
		return false
	}
	for _, m := range list {
		if m.UUID == uuid {
			return !m.Installed.IsZero()
		}
	}
	return false
}
