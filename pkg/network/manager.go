package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

// Manager keeps the network up.
type Manager struct {
	Config     machine.Network
	Hostname   string                        // told to DHCP servers
	ResolvConf string                        // file to keep; "" for none
	StateDir   string                        // remembers addresses and the config that worked last; "" for nowhere
	Good       Memory                        // of the config that worked last, in place of a file in StateDir; nil for that
	Patience   time.Duration                 // for a config to reach a router before the last good one is used; 0: for ever
	Log        func(format string, a ...any) // one line for the operator

	// What WiFi needs.
	Reaper *process.Reaper // starts wpa_supplicant
	RunDir string          // for its configuration, which holds keys, and its sockets; made when needed
	Logs   *process.Logs   // for its log; nil for none

	wg      sync.WaitGroup
	mu      sync.Mutex
	served  map[int]*served   // by link index
	leases  map[string]*lease // by interface name
	heard   map[int]heard     // what routers say, by link index
	changed chan struct{}     // closed and made anew whenever addresses may have changed

	active machine.Network      // in force
	wanted machine.Network      // what the person wants
	note   string               // why active is not wanted
	apply  chan machine.Network // a new config for a running Manager
	said   map[string]bool      // what was said of links that cannot be made, so that it is said once
	radios map[string]radio     // of wireless cards, by interface name

	supplicant struct { // of tests, on hosts without a radio
		path, driver string
		conf         func(w *machine.WiFi, ctrl string) []byte
	}
}

type served struct {
	link    netlink.Link
	cfg     machine.Interface
	stop    context.CancelFunc
	carrier bool
	again   chan struct{}
}

// Run brings everything up and keeps it so until ctx ends. Addresses stay: a machine that shuts down talks to the last.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.apply == nil {
		m.apply, m.wanted, m.active = make(chan machine.Network, 1), m.Config, m.Config
	}
	m.served, m.leases, m.heard, m.said, m.radios = map[int]*served{}, map[string]*lease{}, map[int]heard{}, map[string]bool{}, map[string]radio{}
	m.mu.Unlock()
	for {
		next, err := m.period(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		m.undo()
		m.mu.Lock()
		m.active = next
		m.mu.Unlock()
	}
}

// period runs one config, until ctx ends or another one is to take its place.
func (m *Manager) period(ctx context.Context) (next machine.Network, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer m.wg.Wait()
	defer cancel()
	m.wg.Go(func() {
		if n, ok := m.prove(ctx); ok {
			next = n
			cancel()
		}
	})
	err = m.keep(ctx)
	cancel()
	m.wg.Wait()
	return next, err
}

// keep brings up the active config and follows what happens to links.
func (m *Manager) keep(ctx context.Context) error {
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	var lost sync.Once
	end := make(chan error, 1)
	fail := func(err error) { lost.Do(func() { end <- err }) }
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: fail})
	if err == nil {
		err = netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: fail})
	}
	if err != nil {
		return fmt.Errorf("listening for network links: %w", err)
	}
	m.wg.Go(func() {
		if err := m.hearRouters(ctx); err != nil {
			m.Log("name servers that routers advertise are not heard: %v", err)
		}
	})
	m.wg.Go(func() { m.missRadios(ctx) })
	err = m.start(ctx)
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case err = <-end:
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the end, not a fault
			}
			err = fmt.Errorf("listening for network links: %w", err)
		case u, ok := <-links:
			if ok {
				m.link(ctx, u)
			}
		case _, ok := <-addrs:
			if ok {
				m.wake()
			}
		}
	}
	return err
}

func (m *Manager) start(ctx context.Context) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bringing up loopback: %w", err)
	}
	if err := m.writeResolvConf(); err != nil {
		return err
	}
	m.makeLinks()
	list, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network links: %w", err)
	}
	for _, l := range list {
		m.serve(ctx, l)
	}
	for _, i := range m.current().Interfaces {
		if !slices.ContainsFunc(list, func(l netlink.Link) bool { return picks(i, linkOf(l)) }) {
			m.Log("interface %s of the node config is not there; it is brought up when it comes", i.Called())
		}
	}
	return nil
}

// current is the config in force.
func (m *Manager) current() machine.Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.apply == nil {
		return m.Config
	}
	return m.active
}

// link follows a change of a link.
func (m *Manager) link(ctx context.Context, u netlink.LinkUpdate) {
	if u.Header.Type == unix.RTM_DELLINK {
		m.mu.Lock()
		if s := m.served[u.Attrs().Index]; s != nil {
			s.stop()
			delete(m.served, u.Attrs().Index)
		}
		delete(m.heard, u.Attrs().Index)
		m.mu.Unlock()
		return
	}
	m.makeLinks() // one may have waited for this
	m.serve(ctx, u.Link)
}

// serve starts to look after a link, or hears of its cable.
func (m *Manager) serve(ctx context.Context, l netlink.Link) {
	a := l.Attrs()
	carrier := a.RawFlags&unix.IFF_LOWER_UP != 0
	m.mu.Lock()
	s := m.served[a.Index]
	if s != nil {
		if carrier && !s.carrier && s.cfg.WiFi == nil { // a radio has a carrier before it has a key
			s.ask()
		}
		s.carrier = carrier
		m.mu.Unlock()
		return
	}
	cfg, ours := setup(m.active, linkOf(l))
	if !ours {
		m.mu.Unlock()
		return
	}
	ctx, stop := context.WithCancel(ctx)
	// A card's coming up is not yet news: the first exchange asks anyway. A bond or bridge has nobody to ask before.
	s = &served{link: l, cfg: cfg, stop: stop, carrier: !cfg.Made() || carrier, again: make(chan struct{}, 1)}
	master, member := masterOf(m.active, linkOf(l))
	m.served[a.Index] = s
	if cfg.WiFi != nil { // before it has addresses
		m.radios[a.Name] = radio{link: a.Index}
	}
	m.mu.Unlock()

	m.wg.Go(func() {
		defer stop()
		if member {
			if err := enslave(l, master); err != nil {
				m.Log("%s: into %s: %v", a.Name, master.Name, err)
			}
		}
		if err := m.configure(l, cfg); err != nil {
			m.Log("%s: %v", a.Name, err)
		}
		m.wake()
		d := &dhcp{iface: a.Name, hostname: m.Hostname, again: s.again, back: "the cable was plugged in", log: m.Log, ask: m.remembered(a.Name)}
		d.use = func(got *lease) error { return m.use(l, cfg, got) }
		switch {
		case cfg.WiFi != nil:
			d.back = "back in a wireless network"
			first := true
			m.joinWiFi(ctx, l, cfg, func() {
				if err := m.configure(l, cfg); err != nil { // again: the radio may have been blocked before
					m.Log("%s: %v", a.Name, err)
				}
				if first && cfg.DHCP4 {
					m.wg.Go(func() { d.run(ctx) })
				} else if !first {
					s.ask()
				}
				first = false
			})
		case cfg.DHCP4:
			if linkOf(l).WiFi {
				m.Log("%s: has a radio, and the node config no wifi for it: it joins no network", a.Name)
			}
			d.run(ctx)
		}
	})
}

// ask makes DHCP ask whether its answer still holds.
func (s *served) ask() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	out := Link{Index: a.Index, Name: a.Name, MAC: a.HardwareAddr.String(), Wired: wired("/sys", l), WiFi: wireless("/sys", l)}
	dir := filepath.Join("/sys/class/net", a.Name, "device")
	if p, err := filepath.EvalSymlinks(dir); err == nil {
		out.Path = strings.TrimPrefix(p, "/sys/devices/")
	}
	if p, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		out.Driver = filepath.Base(p)
	}
	return out
}

// wired tells a card with a cable by what sysfs has for it: a device behind it, and no radio.
func wired(sys string, l netlink.Link) bool {
	if l.Type() != "device" || len(l.Attrs().HardwareAddr) != 6 {
		return false
	}
	dir := filepath.Join(sys, "class/net", l.Attrs().Name)
	if _, err := os.Stat(filepath.Join(dir, "device")); err != nil {
		return false
	}
	return !radioOf(sys, l)
}

// wireless tells a card with a radio by what sysfs has for it.
func wireless(sys string, l netlink.Link) bool {
	return l.Type() == "device" && len(l.Attrs().HardwareAddr) == 6 && radioOf(sys, l)
}

// radioOf looks at two places: the name of the card's radio may come a moment after the card.
func radioOf(sys string, l netlink.Link) bool {
	dir := filepath.Join(sys, "class/net", l.Attrs().Name)
	if _, err := os.Stat(filepath.Join(dir, "phy80211")); err == nil {
		return true
	}
	text, err := os.ReadFile(filepath.Join(dir, "uevent"))
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), "DEVTYPE=wlan")
}

// configure sets what does not need an answer from anybody.
func (m *Manager) configure(l netlink.Link, cfg machine.Interface) error {
	name := l.Attrs().Name
	var errs []error
	// 2: also when this machine forwards packets, as every Kubernetes node does.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", []byte("2"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if cfg.MTU != 0 {
		if err := netlink.LinkSetMTU(l, cfg.MTU); err != nil {
			errs = append(errs, fmt.Errorf("mtu %d: %w", cfg.MTU, err))
		}
	}
	if cfg.VLAN != nil { // it cannot be up without the one below it, which need not be in the config
		if on, err := netlink.LinkByIndex(l.Attrs().ParentIndex); err == nil {
			errs = append(errs, netlink.LinkSetUp(on))
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return errors.Join(append(errs, fmt.Errorf("bringing it up: %w", err))...)
	}
	for _, a := range cfg.Addresses {
		p, err := netip.ParsePrefix(a)
		if err == nil {
			err = netlink.AddrReplace(l, &netlink.Addr{IPNet: ipnet(p)})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
		}
	}
	for _, gw := range cfg.Gateways() {
		if err := netlink.RouteReplace(routeFor(l, route{to: everywhere(gw), via: gw}, unix.RTPROT_STATIC)); err != nil {
			errs = append(errs, fmt.Errorf("gateway %s: %w", gw, err))
		}
	}
	for _, r := range cfg.Routes {
		if err := addRoute(l, r); err != nil {
			errs = append(errs, fmt.Errorf("route to %s: %w", r.To, err))
		}
	}
	return errors.Join(errs...)
}

func addRoute(l netlink.Link, r machine.Route) error {
	to, err := netip.ParsePrefix(r.To)
	if err != nil {
		return err
	}
	var via netip.Addr
	if r.Via != "" {
		if via, err = netip.ParseAddr(r.Via); err != nil {
			return err
		}
	}
	out := routeFor(l, route{to, via}, unix.RTPROT_STATIC)
	if r.Metric != 0 {
		out.Priority = r.Metric
	}
	return netlink.RouteReplace(out)
}

// everywhere is the destination of a default route of the address's family.
func everywhere(a netip.Addr) netip.Prefix {
	if a.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Metrics keep the default routes of several links apart: what the config says comes before what DHCP says, then the first link
// wins.
const (
	metric     = 100
	dhcpMetric = 1000
)

func routeFor(l netlink.Link, r route, proto int) *netlink.Route {
	out := &netlink.Route{LinkIndex: l.Attrs().Index, Priority: metric + l.Attrs().Index, Protocol: netlink.RouteProtocol(proto)}
	if proto == unix.RTPROT_DHCP {
		out.Priority = dhcpMetric + l.Attrs().Index
	}
	if r.to.IsValid() {
		out.Dst = ipnet(r.to.Masked())
	}
	if r.via.IsValid() {
		out.Gw = r.via.AsSlice()
		out.SetFlag(netlink.FLAG_ONLINK) // the server says so, even if its own mask does not
	} else {
		out.Scope = netlink.SCOPE_LINK
	}
	return out
}

// use puts a lease into force in place of the link's last one; nil only takes the last one back.
func (m *Manager) use(l netlink.Link, cfg machine.Interface, got *lease) error {
	name := l.Attrs().Name
	m.mu.Lock()
	old := m.leases[name]
	m.leases[name] = got
	if got == nil {
		delete(m.leases, name)
	}
	m.mu.Unlock()
	// Name servers first: whoever waits for an address asks them next.
	errs := []error{m.writeResolvConf()}
	if old != nil && (got == nil || got.addr != old.addr) {
		// Its routes go with it.
		errs = append(errs, netlink.AddrDel(l, &netlink.Addr{IPNet: ipnet(old.addr)}))
	}
	if got != nil {
		life := int(time.Until(got.expires).Seconds())
		err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipnet(got.addr), ValidLft: life, PreferedLft: life})
		if err != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", got.addr, err))
		}
		if got.mtu != 0 && cfg.MTU == 0 {
			errs = append(errs, netlink.LinkSetMTU(l, got.mtu))
		}
		for _, r := range got.routes {
			if err := netlink.RouteReplace(routeFor(l, r, unix.RTPROT_DHCP)); err != nil {
				errs = append(errs, fmt.Errorf("route to %v by %v: %w", r.to, r.via, err))
			}
		}
		m.remember(name, got.addr.Addr())
	}
	m.wake()
	return errors.Join(errs...)
}

func (m *Manager) writeResolvConf() error {
	if m.ResolvConf == "" {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var dns []netip.Addr
	var search []string
	names := make([]string, 0, len(m.leases))
	for n := range m.leases {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		dns = append(dns, m.leases[n].dns...)
		search = append(search, m.leases[n].search...)
	}
	for _, h := range m.heard {
		dns = append(dns, h.servers...)
		search = append(search, h.search...)
	}
	search = append(slices.Clone(m.active.Search), search...)
	slices.SortStableFunc(dns, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return atomicfile.Write(m.ResolvConf, []byte(resolvConf(m.active.Nameservers, dns, unique(search))), 0o644)
}

// unique leaves out what came before.
func unique(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (m *Manager) remembered(name string) netip.Addr {
	if m.StateDir == "" {
		return netip.Addr{}
	}
	data, err := os.ReadFile(filepath.Join(m.StateDir, "dhcp-"+name))
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(strings.TrimSpace(string(data)))
	return a
}

func (m *Manager) remember(name string, a netip.Addr) {
	if m.StateDir == "" || m.remembered(name) == a {
		return
	}
	err := os.MkdirAll(m.StateDir, 0o755)
	if err == nil {
		err = atomicfile.Write(filepath.Join(m.StateDir, "dhcp-"+name), []byte(a.String()+"\n"), 0o644)
	}
	if err != nil {
		m.Log("%s: remembering its address: %v", name, err)
	}
}

func (m *Manager) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Changed gives a channel that is closed when addresses may have changed since this call.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

// Address is an address that others can reach this machine at.
type Address struct {
	Link string
	IP   netip.Addr
}

// Addresses lists the addresses of the links that are ours, IPv4 before IPv6. Pods' bridges are not; what a card has that is in no
// wireless network nobody can reach.
func (m *Manager) Addresses() ([]Address, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var out []Address
	cfg, off := m.current(), m.unconnected()
	for _, l := range list {
		if _, ours := setup(cfg, linkOf(l)); !ours || off[l.Attrs().Index] != nil {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); ok && ip.IsGlobalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				out = append(out, Address{l.Attrs().Name, ip})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Address) int { return a.IP.BitLen() - b.IP.BitLen() })
	return out, nil
}

// WaitAddress waits for the first address.
func (m *Manager) WaitAddress(ctx context.Context) error {
	for {
		changed := m.Changed()
		if list, err := m.Addresses(); err == nil && len(list) > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
