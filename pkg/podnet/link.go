package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// underlay finds the device towards the other nodes, and the addresses on it that count: iface and what is on it, or the one
// that has the first of the addresses.
func underlay(iface string, addresses []netip.Addr) (*device, []netip.Addr, error) {
	if iface != "" {
		link, err := netlinksafe.LinkByName(iface)
		if err != nil {
			return nil, nil, fmt.Errorf("flannel-iface: %s: %w", iface, err)
		}
		have, err := addressesOf(link)
		if err != nil {
			return nil, nil, err
		}
		have = firstOfEach(have)
		if len(have) == 0 {
			return nil, nil, fmt.Errorf("flannel-iface: %s has no address that other nodes could reach", iface)
		}
		if len(addresses) > 0 && have[0].Is6() != addresses[0].Is6() {
			slices.Reverse(have) // the tunnel's family is the node's
		}
		return newDevice(link), have, nil
	}
	addresses = firstOfEach(addresses)
	if len(addresses) == 0 {
		return nil, nil, errors.New("pod network: this node has no address")
	}
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("links: %w", err)
	}
	for _, link := range links {
		have, err := addressesOf(link)
		if err != nil {
			return nil, nil, err
		}
		if slices.Contains(have, addresses[0]) {
			return newDevice(link), addresses, nil
		}
	}
	return nil, nil, fmt.Errorf("pod network: node address %s is on no interface of this machine", addresses[0])
}

// Local says whether the first of the addresses is this machine's.
func Local(addresses []netip.Addr) bool {
	_, _, err := underlay("", addresses)
	return err == nil
}

func newDevice(link netlink.Link) *device {
	a := link.Attrs()
	return &device{index: a.Index, name: a.Name, mtu: a.MTU}
}

func addressesOf(link netlink.Link) ([]netip.Addr, error) {
	list, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("%s: addresses: %w", link.Attrs().Name, err)
	}
	var out []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.IsGlobalUnicast() {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// firstOfEach keeps the first address of each family.
func firstOfEach(addresses []netip.Addr) (out []netip.Addr) {
	for _, a := range addresses {
		if !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is6() == a.Is6() }) {
			out = append(out, a)
		}
	}
	return out
}

// findLink gives nil when there is none of the name.
func findLink(name string) (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return link, nil
}

// raise gives a tunnel its size and switches it on. A tunnel needs no addresses of its own making, and listens to no router.
func raise(link netlink.Link, mtu int) (*device, error) {
	a := link.Attrs()
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"addr_gen_mode", "1"}, {"accept_ra", "0"}} {
		if err := sysctl("ipv6/conf/"+a.Name+"/"+s[0], s[1]); err != nil && !errors.Is(err, syscall.ENOENT) { // no IPv6 in this kernel
			return nil, err
		}
	}
	if a.MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("%s: MTU %d: %w", a.Name, mtu, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("%s: up: %w", a.Name, err)
		}
	}
	return &device{index: a.Index, name: a.Name, mtu: mtu}, nil
}

// addressDevice puts the node's gateway address of each pod network on the tunnel, and takes others off.
func addressDevice(dev *device, own []netip.Prefix) error {
	link, err := netlinksafe.LinkByName(dev.name)
	if err != nil {
		return fmt.Errorf("%s: %w", dev.name, err)
	}
	have, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("%s: addresses: %w", dev.name, err)
	}
	var faults []error
	for _, s := range own {
		want := ipNet(netip.PrefixFrom(gateway(s), gateway(s).BitLen()))
		if i := slices.IndexFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() }); i >= 0 {
			have = slices.Delete(have, i, i+1)
			continue
		}
		// No detection of duplicates: every pod's link has the address too, and waiting a second would hold traffic up.
		a := &netlink.Addr{IPNet: want}
		if gateway(s).Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			faults = append(faults, fmt.Errorf("%s: address %s: %w", dev.name, want, err))
		}
	}
	for _, a := range have {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			faults = append(faults, fmt.Errorf("%s: removing address %s: %w", dev.name, a.IPNet, err))
		}
	}
	return errors.Join(faults...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if a = a.Unmap(); a.Is4() && size == 128 {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits), true
}

// removeOtherDevices takes away what another back end has left.
func (n *Network) removeOtherDevices() error {
	var faults []error
	for backend, name := range map[Backend]string{VXLAN: vxlanName, WireGuard: wireguardName} {
		if n.cfg.Backend != backend {
			faults = append(faults, removeLink(name))
		}
	}
	return errors.Join(faults...)
}

func removeLink(name string) error {
	link, err := findLink(name)
	if link == nil || err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("%s: removing: %w", name, err)
	}
	return nil
}

// Remove takes everything of this package off the machine: the tunnels with what hangs on them, and the routes.
func Remove() error {
	return errors.Join(removeLink(vxlanName), removeLink(wireguardName), syncRoutes(nil))
}
