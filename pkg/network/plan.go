// Package network brings up a machine's links and addresses: loopback, what the node config says of each interface, and
// where it says nothing, DHCP on every wired one. It makes the VLANs, bonds and bridges that the config names, and runs
// wpa_supplicant for cards that join a wireless network; such a card asks DHCP once it is in one. IPv6 router advertisements are
// the kernel's work, on every interface brought up here; name servers in them are read here.
//
// It goes on in the background: cards that appear later, cables plugged in later and DHCP servers that answer later are all
// served when they come.
//
// A config that reaches no router in time gives way to the one that worked last, which is kept; see Manager.Patience.
package network

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Link is a network interface of the machine.
type Link struct {
	Index  int
	Name   string
	MAC    string // small letters
	Path   string // of its device below /sys/devices; "" for none
	Driver string // of its device
	Wired  bool   // a card with a cable: not a bridge, tunnel or veth, and not WiFi
	WiFi   bool   // a card with a radio
}

// setup gives what to do with a link, and false for one that is not ours to touch.
func setup(cfg machine.Network, l Link) (machine.Interface, bool) {
	for _, i := range cfg.Interfaces {
		if picks(i, l) {
			return i, true
		}
	}
	if _, ours := masterOf(cfg, l); ours {
		return machine.Interface{Name: l.Name}, true
	}
	if len(cfg.Interfaces) == 0 && l.Wired {
		return machine.Interface{Name: l.Name, DHCP4: true}, true
	}
	return machine.Interface{}, false
}

func picks(i machine.Interface, l Link) bool {
	switch {
	case i.Name != "":
		return i.Name == l.Name
	case !l.Wired && !l.WiFi: // a bridge has the address of one of its cards
		return false
	case i.MAC != "":
		return sameMAC(i.MAC, l.MAC)
	case i.Path != "":
		return onPath(i.Path, l.Path)
	}
	return i.Driver == l.Driver
}

// isCalled says whether a link is the one that a VLAN or a master names.
func isCalled(name string, l Link) bool { return name == l.Name || l.Wired && sameMAC(name, l.MAC) }

func sameMAC(a, b string) bool {
	return a != "" && strings.EqualFold(strings.ReplaceAll(a, "-", ":"), strings.ReplaceAll(b, "-", ":"))
}

// onPath says whether the parts of pattern stand one behind the other in the path of a device.
func onPath(pattern, device string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(device, "/")
	for at := 0; at+len(want) <= len(have); at++ {
		if ok, err := path.Match(pattern, strings.Join(have[at:at+len(want)], "/")); ok && err == nil {
			return true
		}
	}
	return false
}

// masterOf gives the bond or bridge that a link belongs to.
func masterOf(cfg machine.Network, l Link) (machine.Interface, bool) {
	for _, i := range cfg.Interfaces {
		for _, name := range i.Members() {
			if isCalled(name, l) {
				return i, true
			}
		}
	}
	return machine.Interface{}, false
}

// maxNameservers is how many resolvers read.
const maxNameservers = 3

// resolvConf is the content of /etc/resolv.conf. The config's servers come before those that DHCP named.
func resolvConf(configured []string, learned []netip.Addr, search []string) string {
	var b strings.Builder
	b.WriteString("# written by Skerry: network.nameservers of the node config, then what DHCP and routers say\n")
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	servers := slices.Clone(configured)
	for _, a := range learned {
		if !slices.Contains(servers, a.String()) {
			servers = append(servers, a.String())
		}
	}
	for i, s := range servers {
		if i == maxNameservers {
			fmt.Fprintf(&b, "# more than %d are not read: %s\n", maxNameservers, strings.Join(servers[i:], " "))
			break
		}
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// Hosts is the content of /etc/hosts. The machine's own name leads to itself even before it has an address.
func Hosts(hostname string) string {
	return "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + hostname + "\n"
}
