package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// lease is what a DHCP server gave.
type lease struct {
	addr    netip.Prefix
	routes  []route
	dns     []netip.Addr
	search  []string
	mtu     int
	expires time.Time
	renew   time.Time // T1: ask the same server
	rebind  time.Time // T2: ask any

	raw *nclient4.Lease
}

// route is one way out; no destination means everywhere.
type route struct {
	to  netip.Prefix
	via netip.Addr // not valid: on the link itself
}

// readLease takes what we use out of an answer. An answer that cannot be used is an error, not an address.
func readLease(raw *nclient4.Lease, now time.Time) (*lease, error) {
	ack := raw.ACK
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
		return nil, fmt.Errorf("the DHCP server offers address %v, which is none", ack.YourIPAddr)
	}
	bits, _ := ack.SubnetMask().Size()
	if len(ack.SubnetMask()) == 0 || bits == 0 {
		bits = 24 // a server that says nothing has a small network
	}
	span := max(ack.IPAddressLeaseTime(time.Hour), time.Minute)
	t1 := ack.IPAddressRenewalTime(span / 2)
	t2 := ack.IPAddressRebindingTime(span * 7 / 8)
	if t1 <= 0 || t1 >= t2 || t2 >= span {
		t1, t2 = span/2, span*7/8
	}
	l := &lease{
		addr: netip.PrefixFrom(addr, bits), raw: raw, search: domains(ack),
		expires: now.Add(span), renew: now.Add(t1), rebind: now.Add(t2),
	}
	for _, ip := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && !a.IsUnspecified() {
			l.dns = append(l.dns, a)
		}
	}
	if m, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && m >= 576 {
		l.mtu = int(m)
	}
	// RFC 3442: where there are classless routes, the router option does not count.
	for _, r := range ack.ClasslessStaticRoute() {
		if to, ok := prefixOf(r.Dest); ok {
			via, _ := netip.AddrFromSlice(r.Router.To4())
			if via.IsUnspecified() {
				via = netip.Addr{}
			}
			l.routes = append(l.routes, route{to, via})
		}
	}
	if len(l.routes) == 0 {
		for _, ip := range ack.Router() {
			if via, ok := netip.AddrFromSlice(ip.To4()); ok && !via.IsUnspecified() {
				l.routes = append(l.routes, route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), via})
				break
			}
		}
	}
	return l, nil
}

func domains(ack *dhcpv4.DHCPv4) []string {
	if s := ack.DomainSearch(); s != nil && len(s.Labels) > 0 {
		return s.Labels
	}
	if d := ack.DomainName(); d != "" {
		return []string{d}
	}
	return nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits), ok
}

// dhcp is the conversation with DHCP servers over one link. It ends with ctx.
type dhcp struct {
	iface    string
	hostname string
	ask      netip.Addr         // the address to ask for first, of an earlier lease; may be invalid
	again    <-chan struct{}    // the cable was plugged in: the network may be another
	back     string             // what that is, for the log
	use      func(*lease) error // puts a lease into force; nil takes the last one back
	log      func(format string, a ...any)
}

// Waits between tries when nobody answers, with some chance in them so that a hall of machines does not ask in step.
const (
	firstTry = 2 * time.Second
	mostTry  = time.Minute
)

func (d *dhcp) run(ctx context.Context) {
	var held *lease
	wait := firstTry
	for ctx.Err() == nil {
		got, err := d.exchange(ctx, held)
		var nak *nclient4.ErrNak
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if err := d.use(got); err != nil {
				d.log("%s: %v", d.iface, err)
			}
			if held == nil || held.addr != got.addr {
				d.log("%s: address %s by DHCP for %v", d.iface, got.addr, time.Until(got.expires).Round(time.Second))
			}
			held, d.ask, wait = got, got.addr.Addr(), firstTry
			select {
			case <-d.again: // plugged in before the answer came, so it is this network's
			default:
			}
			if d.sleep(ctx, time.Until(got.renew)) {
				d.log("%s: %s; asking whether %s is still right", d.iface, d.back, got.addr)
			}
			continue
		case errors.As(err, &nak), held != nil && !time.Now().Before(held.expires):
			if held != nil {
				d.log("%s: address %s is no longer ours: %v", d.iface, held.addr, err)
				if err := d.use(nil); err != nil {
					d.log("%s: %v", d.iface, err)
				}
			}
			held, d.ask, wait = nil, netip.Addr{}, firstTry
		case held == nil && wait == firstTry:
			d.log("%s: no DHCP server answers yet (%v); still asking", d.iface, err)
		}
		d.sleep(ctx, wait/2+rand.N(wait/2))
		wait = min(2*wait, mostTry)
	}
}

// sleep waits for the time, for the cable (true) or for the end.
func (d *dhcp) sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-d.again:
		return true
	}
	return false
}

// exchange asks for a lease, or for the held one to go on. The socket lives no longer than that: between two exchanges
// nothing is received, and a card that was pulled out and put back is a new one.
func (d *dhcp) exchange(ctx context.Context, held *lease) (*lease, error) {
	c, err := nclient4.New(d.iface, nclient4.WithTimeout(firstTry), nclient4.WithRetry(3))
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	mods := []dhcpv4.Modifier{dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList,
		dhcpv4.OptionInterfaceMTU, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue)}
	if d.hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(d.hostname)))
	}
	var raw *nclient4.Lease
	switch {
	case held == nil && d.ask.IsValid():
		discover := append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(d.ask.AsSlice())))
		var offer *dhcpv4.DHCPv4
		if offer, err = c.DiscoverOffer(ctx, discover...); err == nil {
			raw, err = c.RequestFromOffer(ctx, offer, mods...)
		}
	case held == nil:
		raw, err = c.Request(ctx, mods...)
	default:
		raw, err = c.Renew(ctx, held.raw, mods...)
		if err != nil && !time.Now().Before(held.rebind) {
			// Any server will do now; one that offers our address keeps it.
			raw, err = c.Request(ctx, mods...)
		}
	}
	if err != nil {
		return nil, err
	}
	return readLease(raw, time.Now())
}
