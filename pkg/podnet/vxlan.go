package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// overhead is what VXLAN puts around a packet: the outer IP header, UDP, VXLAN, the inner Ethernet header.
func vxlanOverhead(outer netip.Addr) int {
	if outer.Is6() {
		return 40 + 8 + 8 + 14
	}
	return 20 + 8 + 8 + 14
}

// ensureVXLAN gives the tunnel from local, the one that is there if it fits.
func ensureVXLAN(local netip.Addr, mac net.HardwareAddr, under *device) (*device, error) {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: vxlanName, HardwareAddr: mac, MTU: under.mtu - vxlanOverhead(local)},
		VxlanId:   vni,
		SrcAddr:   local.AsSlice(),
		Port:      VXLANPort,
	}
	have, err := findLink(vxlanName)
	if err != nil {
		return nil, err
	}
	if v, ok := have.(*netlink.Vxlan); have != nil && (!ok || v.VxlanId != want.VxlanId || v.Port != want.Port || v.Learning || !v.SrcAddr.Equal(want.SrcAddr)) {
		if err := removeLink(vxlanName); err != nil {
			return nil, err
		}
		have = nil
	}
	if have == nil {
		if err := netlink.LinkAdd(want); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil, fmt.Errorf("VXLAN: %w; load the module vxlan, or choose another --flannel-backend", ErrUnsupported)
			}
			return nil, fmt.Errorf("%s: making it: %w; is another VXLAN device on port %d?", vxlanName, err, VXLANPort)
		}
		if have, err = findLink(vxlanName); have == nil {
			return nil, fmt.Errorf("%s: went away: %w", vxlanName, err)
		}
	}
	if have.Attrs().HardwareAddr.String() != mac.String() {
		if err := netlink.LinkSetHardwareAddr(have, mac); err != nil {
			return nil, fmt.Errorf("%s: address %s: %w", vxlanName, mac, err)
		}
	}
	if err := avoidOffload(under.name, vxlanName); err != nil {
		return nil, err
	}
	return raise(have, want.MTU)
}

// Network cards that say they fill in the checksum inside a tunnel and then send packets with a wrong one, or none at all,
// as soon as the tunnel is not on the port they know. With them the kernel does it, at some cost per packet.
var brokenOffload = []string{"vmxnet3"}

func avoidOffload(under, tunnel string) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil // a kernel without ethtool's call has no offload either
	}
	defer tool.Close()
	driver, err := tool.DriverName(under)
	if err != nil || !slices.Contains(brokenOffload, driver) {
		return nil //nolint:nilerr // a device without a driver is none of those
	}
	return switchOffload(tool, tunnel, driver)
}

const checksumFeature = "tx-checksum-ip-generic"

func switchOffload(tool *ethtool.Ethtool, tunnel, driver string) error {
	if err := tool.Change(tunnel, map[string]bool{checksumFeature: false}); err != nil {
		return fmt.Errorf("%s: switching %s off, which %s gets wrong: %w", tunnel, checksumFeature, driver, err)
	}
	return nil
}

// neighbour is an entry of the device's tables: whose MAC an address has (on the inside), or where a MAC is (on the outside).
type neighbour struct {
	family  int // AF_INET, AF_INET6: inside; AF_BRIDGE: outside
	address netip.Addr
	mac     string
}

func vxlanNeighbours(others []Node) map[neighbour]bool {
	want := map[neighbour]bool{}
	for _, o := range others {
		mac := macText(o.MAC)
		want[neighbour{unix.AF_BRIDGE, o.Addresses[0], mac}] = true
		for _, s := range o.Subnets {
			family := unix.AF_INET
			if s.Addr().Is6() {
				family = unix.AF_INET6
			}
			want[neighbour{family, gateway(s), mac}] = true
		}
	}
	return want
}

// macText is the one way of writing a MAC that has been checked before.
func macText(text string) string {
	mac, err := net.ParseMAC(text)
	if err != nil {
		return text
	}
	return mac.String()
}

// syncNeighbours first removes, because a MAC that moved would be in two places.
func syncNeighbours(dev *device, want map[neighbour]bool) error {
	have, err := listNeighbours(dev)
	if err != nil {
		return err
	}
	var faults []error
	for n := range have {
		if !want[n] {
			if err := netlink.NeighDel(n.entry(dev)); err != nil && !errors.Is(err, unix.ENOENT) {
				faults = append(faults, fmt.Errorf("%s: removing %s at %s: %w", dev.name, n.mac, n.address, err))
			}
		}
	}
	for n := range want {
		if !have[n] {
			if err := netlink.NeighSet(n.entry(dev)); err != nil {
				faults = append(faults, fmt.Errorf("%s: %s at %s: %w", dev.name, n.mac, n.address, err))
			}
		}
	}
	return errors.Join(faults...)
}

// entry never has VLAN or state that would age.
func (n neighbour) entry(dev *device) *netlink.Neigh {
	mac, _ := net.ParseMAC(n.mac)
	e := &netlink.Neigh{LinkIndex: dev.index, Family: n.family, State: netlink.NUD_PERMANENT, IP: n.address.AsSlice(), HardwareAddr: mac}
	if n.family == unix.AF_BRIDGE {
		e.Flags, e.State = netlink.NTF_SELF, netlink.NUD_PERMANENT|netlink.NUD_NOARP
	} else {
		e.Type = unix.RTN_UNICAST
	}
	return e
}

func listNeighbours(dev *device) (map[neighbour]bool, error) {
	have := map[neighbour]bool{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		list, err := netlink.NeighList(dev.index, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("%s: neighbours: %w", dev.name, err)
		}
		for _, e := range list {
			addr, ok := netip.AddrFromSlice(e.IP)
			if !ok || e.HardwareAddr == nil || addr.IsMulticast() {
				continue
			}
			if family != unix.AF_BRIDGE && e.State&netlink.NUD_PERMANENT == 0 {
				continue // the kernel's own, and it forgets them
			}
			have[neighbour{family, addr.Unmap(), e.HardwareAddr.String()}] = true
		}
	}
	return have, nil
}
