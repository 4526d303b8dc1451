package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Patience is long enough for a switch that learns its ports slowly and for a DHCP server that wakes up with the machine.
const Patience = 2 * time.Minute

// goodFile keeps the config that worked last, in StateDir. It may hold secrets.
const goodFile = "last-good.yaml"

// Memory remembers a config for a Manager that may not believe what lies in StateDir.
type Memory interface {
	Last() (*machine.Network, error) // nil for none
	Keep(machine.Network) error
}

// Apply gives a running Manager another config. It is proven as the first one is.
func (m *Manager) Apply(cfg machine.Network) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Config = cfg
	if m.apply == nil {
		return // Run begins with it
	}
	select {
	case <-m.apply: // one that nobody has taken yet
	default:
	}
	m.apply <- cfg
}

// Note says why the network is not as the config says; "" when it is.
func (m *Manager) Note() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.note
}

func (m *Manager) setNote(note string) {
	m.mu.Lock()
	m.note = note
	m.mu.Unlock()
	m.wake()
}

// prove waits until the active config works, and remembers it. It returns the config to go on with, if it is another: the last
// good one, when the wanted one does not work in time; the wanted one, when that does not work either; or a new one.
func (m *Manager) prove(ctx context.Context) (machine.Network, bool) {
	m.mu.Lock()
	active, wanted := m.active, m.wanted
	m.mu.Unlock()
	isWanted := reflect.DeepEqual(active, wanted)
	good, err := m.lastGood()
	if err != nil {
		m.Log("the network config that worked last: %v", err)
	}
	var late <-chan time.Time
	switch {
	case m.Patience <= 0, isWanted && (good == nil || reflect.DeepEqual(*good, active)), isWanted && m.Note() != "":
		// There is nothing else, or the other one was tried.
	default:
		t := time.NewTimer(m.Patience)
		defer t.Stop()
		late = t.C
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	why := errors.New("not looked at yet")
	for {
		changed := m.Changed()
		if why != nil {
			if why = m.works(); why == nil {
				look.Stop()
				late = nil
				if isWanted {
					m.setNote("")
					m.keepGood(active)
				}
			}
		}
		select {
		case <-ctx.Done():
			return machine.Network{}, false
		case next := <-m.apply:
			m.mu.Lock()
			m.wanted, m.note = next, ""
			m.mu.Unlock()
			if reflect.DeepEqual(next, active) {
				return m.prove(ctx)
			}
			return next, true
		case <-late:
			if isWanted {
				m.setNote(fmt.Sprintf("the network config did not work in %v (%v); the one that worked last is in use", m.Patience, why))
				m.Log("network: %s", m.Note())
				return *good, true
			}
			m.setNote("neither the network config nor the one that worked last reaches a router; the former is in use")
			m.Log("network: %s", m.Note())
			return wanted, true
		case <-changed:
		case <-look.C:
		}
	}
}

// works says why the network does not work: no address, or no router answers.
func (m *Manager) works() error {
	list, err := m.Addresses()
	if err != nil {
		return err
	}
	off := m.unconnected()
	if len(list) == 0 {
		for _, link := range slices.Sorted(maps.Keys(off)) {
			return off[link]
		}
		return errors.New("no address")
	}
	routers, err := m.routers()
	if err != nil {
		return err
	}
	if routers = slices.DeleteFunc(routers, func(g gateway) bool { return off[g.link] != nil }); len(routers) == 0 {
		return m.misses()
	}
	var silent []string
	for _, r := range routers {
		if r.answers() {
			return nil
		}
		silent = append(silent, r.addr.String())
	}
	return fmt.Errorf("no answer of router %s", strings.Join(silent, ", "))
}

// misses says whether a router should be there; a network of its own need not have one.
func (m *Manager) misses() error {
	for _, i := range m.current().Interfaces {
		if i.Gateway != "" {
			return fmt.Errorf("no way to gateway %s", i.Gateway)
		}
	}
	return nil
}

type gateway struct {
	link int
	addr netip.Addr
}

// routers lists where the default routes of our links lead.
func (m *Manager) routers() (out []gateway, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || m.served[r.LinkIndex] == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			out = append(out, gateway{r.LinkIndex, a.Unmap()})
		}
	}
	return out, nil
}

// answers asks the kernel whether the router is there. What it sends makes the kernel look for the router's hardware address;
// the router need not do anything with it, and a ping that is filtered would say less.
func (r gateway) answers() bool {
	family := unix.AF_INET
	if r.addr.Is6() {
		family = unix.AF_INET6
	}
	list, err := netlink.NeighList(r.link, family)
	if err == nil {
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == r.addr && n.State&(netlink.NUD_REACHABLE|netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
				return true
			}
		}
	}
	to := r.addr
	if to.IsLinkLocalUnicast() && to.Is6() {
		l, err := netlink.LinkByIndex(r.link)
		if err != nil {
			return false
		}
		to = to.WithZone(l.Attrs().Name)
	}
	const discard = 9
	if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard))); err == nil {
		_, _ = c.Write([]byte{0}) // the next look sees what came of it
		_ = c.Close()
	}
	return false
}

// lastGood gives the config that worked last; nil for none.
func (m *Manager) lastGood() (*machine.Network, error) {
	if m.Good != nil {
		return m.Good.Last()
	}
	if m.StateDir == "" {
		return nil, nil
	}
	name := filepath.Join(m.StateDir, goodFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return machine.DecodeNetwork(name, data)
}

func (m *Manager) keepGood(cfg machine.Network) {
	if m.StateDir == "" && m.Good == nil {
		return
	}
	if old, err := m.lastGood(); err == nil && old != nil && reflect.DeepEqual(*old, cfg) {
		return
	}
	var err error
	if m.Good != nil {
		err = m.Good.Keep(cfg)
	} else {
		err = m.writeGood(cfg)
	}
	if err != nil {
		m.Log("remembering the network config: %v", err)
	}
}

func (m *Manager) writeGood(cfg machine.Network) error {
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.StateDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(m.StateDir, goodFile), data, 0o600)
}

// undo takes back what the active config did, for another one to begin on bare links. Nothing runs meanwhile.
func (m *Manager) undo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for index, s := range m.served {
		name := s.link.Attrs().Name
		if s.cfg.Made() {
			continue
		}
		var errs []error
		addrs, err := netlink.AddrList(s.link, netlink.FAMILY_V4) // IPv6 addresses go when the link is down
		errs = append(errs, err)
		for _, a := range addrs {
			errs = append(errs, netlink.AddrDel(s.link, &a))
		}
		if l, err := netlink.LinkByIndex(index); err == nil && l.Attrs().MasterIndex != 0 {
			errs = append(errs, netlink.LinkSetNoMaster(l))
		}
		errs = append(errs, netlink.LinkSetDown(s.link))
		if before := s.link.Attrs().MTU; s.cfg.MTU != 0 || m.leases[name] != nil && m.leases[name].mtu != 0 {
			errs = append(errs, netlink.LinkSetMTU(s.link, before))
		}
		if err := errors.Join(errs...); err != nil {
			m.Log("%s: taking back its config: %v", name, err)
		}
	}
	for _, i := range m.active.Interfaces {
		if !i.Made() {
			continue
		}
		if l, err := netlink.LinkByName(i.Name); err == nil {
			if err := netlink.LinkDel(l); err != nil {
				m.Log("%s: taking it away: %v", i.Name, err)
			}
		}
	}
	m.served, m.leases, m.heard = map[int]*served{}, map[string]*lease{}, map[int]heard{}
}
