package netboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Range is what this server gives out when it is the network's DHCP server.
type Range struct {
	From, To netip.Addr
	Router   netip.Addr   // not valid: none is told
	DNS      []netip.Addr // none: none is told
	Lease    time.Duration
}

// ParseRange reads 10.0.0.100-10.0.0.200.
func ParseRange(text string) (r Range, err error) {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		return r, fmt.Errorf("%q is not a range; write it as 10.0.0.100-10.0.0.200", text)
	}
	if r.From, err = netip.ParseAddr(strings.TrimSpace(from)); err == nil {
		r.To, err = netip.ParseAddr(strings.TrimSpace(to))
	}
	switch {
	case err != nil:
		return r, err
	case !r.From.Is4() || !r.To.Is4() || r.To.Less(r.From):
		return r, fmt.Errorf("%q is not a range of IPv4 addresses, the lower one first", text)
	}
	return r, nil
}

// check says why the range does not go with the interface's address.
func (r Range) check(self netip.Prefix) error {
	if !self.Contains(r.From) || !self.Contains(r.To) {
		return fmt.Errorf("range %v-%v: is not within %v, the network of the interface", r.From, r.To, self.Masked())
	}
	if r.Router.IsValid() && !self.Contains(r.Router) {
		return fmt.Errorf("router %v: is not within %v, the network of the interface", r.Router, self.Masked())
	}
	return nil
}

// Times of leases: a machine that is offered an address has a minute to take it.
const (
	defaultLease = time.Hour
	offerFor     = time.Minute
	avoidFor     = time.Hour
)

type held struct {
	MAC   string    `json:"mac"` // "" for an address that somebody else uses
	Until time.Time `json:"until"`
	Taken bool      `json:"taken"`
}

// pool is the addresses of a range and who has them. They are kept in a file, so that a machine finds its own after a restart
// of the server.
type pool struct {
	Range
	self netip.Prefix
	file string // "" for none
	now  func() time.Time

	mu   sync.Mutex
	used map[netip.Addr]held
}

func openPool(r Range, self netip.Prefix, file string) (*pool, error) {
	if err := r.check(self); err != nil {
		return nil, err
	}
	if r.Lease == 0 {
		r.Lease = defaultLease
	}
	p := &pool{Range: r, self: self, file: file, now: time.Now, used: map[netip.Addr]held{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.used)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it to forget who had which address", file, err)
	}
	return p, nil
}

// save keeps the leases that were taken. Offers need no memory.
func (p *pool) save() error {
	if p.file == "" {
		return nil
	}
	keep := map[netip.Addr]held{}
	for a, h := range p.used {
		if h.Taken {
			keep[a] = h
		}
	}
	data, err := json.Marshal(keep)
	if err != nil {
		return err
	}
	return atomicfile.Write(p.file, data, 0o600)
}

// offer picks an address for a machine: its own of before, else a free one, else the one whose time ended longest ago.
func (p *pool) offer(mac string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	var best, fresh, oldest netip.Addr
	for a := p.From; a.Compare(p.To) <= 0 && !best.IsValid(); a = a.Next() {
		h, used := p.used[a]
		switch {
		case a == p.self.Addr() || a == p.self.Masked().Addr() || a == broadcast(p.self) || a == p.Router:
		case used && h.MAC == mac:
			best = a
		case !used && !fresh.IsValid():
			fresh = a
		case used && h.Until.Before(now) && (!oldest.IsValid() || h.Until.Before(p.used[oldest].Until)):
			oldest = a
		}
	}
	for _, a := range []netip.Addr{fresh, oldest} {
		if !best.IsValid() {
			best = a
		}
	}
	if !best.IsValid() {
		return best, fmt.Errorf("all addresses of %v-%v are given out; make the range larger", p.From, p.To)
	}
	h := p.used[best]
	if h.MAC != mac || !h.Taken || h.Until.Before(now) {
		p.used[best] = held{MAC: mac, Until: now.Add(offerFor), Taken: h.MAC == mac && h.Taken}
	}
	return best, nil
}

// broadcast is the last address of a network, which is everybody's.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// take gives the machine the address it asks for. known says whether the machine has another, or the address another machine:
// whether a refusal is ours to make.
func (p *pool) take(mac string, addr netip.Addr) (known bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, used := p.used[addr]
	switch {
	case !addr.IsValid() || addr.Less(p.From) || p.To.Less(addr) || addr == p.self.Addr():
		return true, errors.New("is not one of ours")
	case used && h.MAC != mac && p.now().Before(h.Until):
		return true, errors.New("another machine has it")
	case !used:
		return false, errors.New("was not offered")
	}
	p.used[addr] = held{MAC: mac, Until: p.now().Add(p.Lease), Taken: true}
	return true, p.save()
}

// release lets an address go; the machine gets the same one next time, if it can.
func (p *pool) release(mac string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, h := range p.used {
		if h.MAC == mac {
			h.Until = p.now()
			p.used[a] = h
		}
	}
}

// avoid keeps an address that somebody else uses out of the way.
func (p *pool) avoid(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[addr] = held{Until: p.now().Add(avoidFor)}
}

// terms are what goes with an address.
func (p *pool) terms(addr netip.Addr) []dhcpv4.Modifier {
	return append(p.options(), dhcpv4.WithYourIP(addr.AsSlice()), dhcpv4.WithLeaseTime(uint32(p.Lease/time.Second)))
}

func (p *pool) options() []dhcpv4.Modifier {
	out := []dhcpv4.Modifier{dhcpv4.WithNetmask(net.CIDRMask(p.self.Bits(), 32))}
	if p.Router.IsValid() {
		out = append(out, dhcpv4.WithRouter(p.Router.AsSlice()))
	}
	var dns []net.IP
	for _, a := range p.DNS {
		dns = append(dns, a.AsSlice())
	}
	if len(dns) > 0 {
		out = append(out, dhcpv4.WithDNS(dns...))
	}
	return out
}
