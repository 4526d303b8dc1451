package network

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/machine"
)

// lookEvery is how often a bond looks for its members' cables, in milliseconds.
const lookEvery = 100

// makeLinks makes those of the config's VLANs, bonds and bridges that are not there and can be made by now.
func (m *Manager) makeLinks() {
	cfg := m.current()
	list, err := netlink.LinkList()
	if err != nil {
		m.say("links", fmt.Errorf("listing network links: %w", err))
		return
	}
	find := func(ok func(Link) bool) netlink.Link {
		for _, l := range list {
			if ok(linkOf(l)) {
				return l
			}
		}
		return nil
	}
	for made := true; made; {
		made = false
		for _, i := range cfg.Interfaces {
			if !i.Made() || find(func(l Link) bool { return l.Name == i.Name }) != nil {
				continue
			}
			var on netlink.Link
			if i.VLAN != nil {
				if on = find(func(l Link) bool { return isCalled(i.VLAN.On, l) }); on == nil {
					continue // it comes with its card
				}
			}
			link, err := add(i, on)
			if err != nil {
				m.say(i.Name, fmt.Errorf("%s: making it: %w", i.Name, err))
				continue
			}
			list, made = append(list, link), true
		}
	}
}

// say tells of trouble once.
func (m *Manager) say(of string, err error) {
	m.mu.Lock()
	said := m.said[of]
	m.said[of] = true
	m.mu.Unlock()
	if !said {
		m.Log("%v", err)
	}
}

// add makes a link.
func add(i machine.Interface, on netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = i.Name
	var link netlink.Link
	switch {
	case i.VLAN != nil:
		attrs.ParentIndex = on.Attrs().Index
		link = &netlink.Vlan{LinkAttrs: attrs, VlanId: i.VLAN.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	case i.Bond != nil:
		mode := i.Bond.Mode
		if mode == "" {
			mode = machine.BondModes[0]
		}
		b := netlink.NewLinkBond(attrs)
		b.Mode, b.Miimon = netlink.StringToBondMode(mode), lookEvery
		link = b
	default:
		link = &netlink.Bridge{LinkAttrs: attrs}
	}
	if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	link, err := netlink.LinkByName(i.Name)
	if err == nil && i.Bridge != nil && i.Bridge.STP {
		err = setSTP(i.Name)
	}
	return link, err
}

// enslave puts a link into its master, a bond or bridge.
func enslave(l netlink.Link, master machine.Interface) error {
	to, err := netlink.LinkByName(master.Name)
	if err != nil {
		return err
	}
	if now, err := netlink.LinkByIndex(l.Attrs().Index); err == nil && now.Attrs().MasterIndex == to.Attrs().Index {
		return nil
	}
	if master.Bond != nil { // a bond takes none that is up
		if err := netlink.LinkSetDown(l); err != nil {
			return err
		}
	}
	return netlink.LinkSetMasterByIndex(l, to.Attrs().Index)
}

// setSTP turns a bridge's spanning tree on.
func setSTP(bridge string) error {
	return os.WriteFile("/sys/class/net/"+bridge+"/bridge/stp_state", []byte("1"), 0)
}
