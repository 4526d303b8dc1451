package netboot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"github.com/skerry-os/skerry/image/netboot/protocol"
)

// bootServerPort is where firmware asks a boot server beside the DHCP server (PXE 2.1, section 2.2.3).
const bootServerPort = 4011

// useFileName is the vendor option (43) of PXE 2.1 that makes firmware take the file named here, without a menu or another
// question: discovery control, bit 3.
var useFileName = []byte{6, 1, 8, 255}

// dhcp answers requests: for boot files, and with a pool for addresses too.
type dhcp struct {
	iface string
	self  netip.Prefix
	pool  *pool // nil: another server gives the addresses
	// boot gives the boot file's name for a client, "" to be silent: its firmware then goes on to the next entry of its list.
	boot func(Client) string
	log  func(format string, a ...any)
	warn func(of, text string)

	mu      sync.Mutex
	foreign map[string]bool // other DHCP servers that were seen
}

// answer decides about one packet. port is where it came in. nil is no answer.
func (d *dhcp) answer(m *dhcpv4.DHCPv4, port int) *dhcpv4.DHCPv4 {
	c, ok := readClient(m)
	if !ok {
		return nil
	}
	self := net.IP(d.self.Addr().AsSlice())
	if id := m.ServerIdentifier(); port == dhcpv4.ServerPort && id != nil && !id.Equal(self) && !id.IsUnspecified() {
		d.sawOther(id.String())
		if d.pool != nil {
			d.pool.release(c.MAC) // it took the other's offer
		}
		return nil
	}
	file := ""
	if c.By != NoBoot {
		file = d.boot(c)
	}
	switch {
	case d.pool == nil && file == "":
		return nil
	case port == bootServerPort:
		// A question to the boot server, after the address is had.
		if m.MessageType() != dhcpv4.MessageTypeRequest && m.MessageType() != dhcpv4.MessageTypeInform || file == "" {
			return nil
		}
		return d.reply(m, dhcpv4.MessageTypeAck, c, file)
	case c.By == Installer:
		// It has an address, and looks for the server only.
		if m.MessageType() != dhcpv4.MessageTypeDiscover || file == "" {
			return nil
		}
		return d.reply(m, dhcpv4.MessageTypeOffer, c, file)
	case d.pool == nil:
		if m.MessageType() != dhcpv4.MessageTypeDiscover {
			return nil
		}
		return d.reply(m, dhcpv4.MessageTypeOffer, c, file)
	}
	return d.lease(m, c, file)
}

// lease answers as the network's DHCP server.
func (d *dhcp) lease(m *dhcpv4.DHCPv4, c Client, file string) *dhcpv4.DHCPv4 {
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		addr, err := d.pool.offer(c.MAC)
		if err != nil {
			d.log("dhcp: %s: %v", c.MAC, err)
			return nil
		}
		return d.reply(m, dhcpv4.MessageTypeOffer, c, file, d.pool.terms(addr)...)
	case dhcpv4.MessageTypeRequest:
		want := m.RequestedIPAddress()
		if want == nil || want.IsUnspecified() {
			want = m.ClientIPAddr
		}
		addr, _ := netip.AddrFromSlice(want.To4())
		known, err := d.pool.take(c.MAC, addr)
		if err != nil {
			if !known && m.ServerIdentifier() == nil {
				return nil // somebody else's lease, from before we were here
			}
			d.log("dhcp: %s asks for %v: %v", c.MAC, addr, err)
			return d.reply(m, dhcpv4.MessageTypeNak, c, "")
		}
		return d.reply(m, dhcpv4.MessageTypeAck, c, file, d.pool.terms(addr)...)
	case dhcpv4.MessageTypeInform:
		return d.reply(m, dhcpv4.MessageTypeAck, c, file, d.pool.options()...)
	case dhcpv4.MessageTypeRelease:
		d.pool.release(c.MAC)
	case dhcpv4.MessageTypeDecline:
		if addr, ok := netip.AddrFromSlice(m.RequestedIPAddress().To4()); ok {
			d.log("dhcp: %s says that %v is in use already; it is not given out for an hour", c.MAC, addr)
			d.pool.avoid(addr)
		}
	}
	return nil
}

func (d *dhcp) reply(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, c Client, file string, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	self := net.IP(d.self.Addr().AsSlice())
	mods := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self))}
	if file != "" {
		mods = append(mods, dhcpv4.WithServerIP(self), dhcpv4.WithOption(dhcpv4.OptBootFileName(file)), dhcpv4.WithOptionCopied(m, dhcpv4.OptionClientMachineIdentifier))
		switch c.By {
		case HTTP:
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("HTTPClient")))
		case Installer:
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(protocol.Class)))
		default:
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")), dhcpv4.WithOption(dhcpv4.OptTFTPServerName(self.String())),
				dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, useFileName)))
		}
	}
	r, err := dhcpv4.NewReplyFromRequest(m, append(mods, more...)...)
	if err != nil { // a modifier's, and ours have none
		return nil
	}
	if file != "" && len(file) < 128 {
		r.BootFileName = file // old firmware reads only the header
	}
	return r
}

// mostOthers bounds what is kept of other servers: whoever makes up their addresses must not fill page and log.
const mostOthers = 16

// sawOther takes note of another DHCP server.
func (d *dhcp) sawOther(id string) {
	d.mu.Lock()
	first := !d.foreign[id] && len(d.foreign) < mostOthers
	if !first {
		d.mu.Unlock()
		return
	}
	if d.foreign == nil {
		d.foreign = map[string]bool{}
	}
	d.foreign[id] = true
	d.mu.Unlock()
	switch others := d.others(); {
	case d.pool != nil:
		d.warn("dhcp "+id, "a second DHCP server, "+id+", answers on "+d.iface+": machines may take its addresses and miss their boot file; turn it off there, or leave out --dhcp here")
	case len(others) > 1:
		d.warn("dhcp", manyDHCP(d.iface, others))
	}
}

// others lists the DHCP servers that were seen beside this one.
func (d *dhcp) others() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for id := range d.foreign {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// listen opens a port for the interface alone.
func (d *dhcp) listen(port int) (*net.UDPConn, error) {
	conn, err := server4.NewIPv4UDPConn(d.iface, &net.UDPAddr{IP: net.IPv4zero, Port: port})
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("dhcp: %w; run as root, or give the program the right: setcap cap_net_bind_service,cap_net_raw+ep skerry", err)
	case err != nil:
		return nil, fmt.Errorf("dhcp: %w; does another DHCP server run on this host?", err)
	}
	return conn, nil
}

// serve answers what comes in on conn until ctx ends.
func (d *dhcp) serve(ctx context.Context, conn *net.UDPConn, port int) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFromUDP(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("dhcp: %w", err)
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			continue // garbage is not worth a line each
		}
		if r := d.answer(m, port); r != nil {
			if _, err := conn.WriteToUDP(r.ToBytes(), whereTo(m, r, peer, port)); err != nil && ctx.Err() == nil {
				d.log("dhcp: answering %s: %v", m.ClientHWAddr, err)
			}
		}
	}
}

// whereTo is RFC 2131, section 4.1, but for one point: a client without an address gets a broadcast even if it did not ask for
// one, since a plain socket cannot send to an address that is not there yet.
func whereTo(m, r *dhcpv4.DHCPv4, peer *net.UDPAddr, port int) *net.UDPAddr {
	switch {
	case port == bootServerPort:
		return peer
	case m.GatewayIPAddr != nil && !m.GatewayIPAddr.IsUnspecified():
		return &net.UDPAddr{IP: m.GatewayIPAddr, Port: dhcpv4.ServerPort}
	case r.MessageType() != dhcpv4.MessageTypeNak && m.ClientIPAddr != nil && !m.ClientIPAddr.IsUnspecified():
		return &net.UDPAddr{IP: m.ClientIPAddr, Port: dhcpv4.ClientPort}
	}
	return &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
}

// probe asks who gives addresses on the interface and lists everybody but self who answers in time.
func probe(ctx context.Context, iface string, self netip.Addr, wait time.Duration) ([]string, error) {
	c, err := nclient4.New(iface, nclient4.WithTimeout(wait), nclient4.WithRetry(1))
	if err != nil {
		return nil, fmt.Errorf("%s: looking for DHCP servers: %w", iface, err)
	}
	defer c.Close() //nolint:errcheck // nothing is left to send
	m, err := dhcpv4.NewDiscovery(c.InterfaceAddr())
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var seen []string
	match := func(r *dhcpv4.DHCPv4) bool {
		mu.Lock()
		defer mu.Unlock()
		id := r.ServerIdentifier().String()
		if r.MessageType() == dhcpv4.MessageTypeOffer && id != self.String() && r.YourIPAddr != nil && !r.YourIPAddr.IsUnspecified() && !slices.Contains(seen, id) {
			seen = append(seen, id)
		}
		return false // wait for more
	}
	_, err = c.SendAndRead(ctx, nclient4.DefaultServers, m, match)
	if err != nil && !errors.Is(err, nclient4.ErrNoResponse) && ctx.Err() == nil {
		return nil, fmt.Errorf("%s: looking for DHCP servers: %w", iface, err)
	}
	mu.Lock()
	defer mu.Unlock()
	return seen, ctx.Err()
}
