// Package network brings up a machine's links and addresses: loopback, what the node config says of each interface, and
// where it says nothing, DHCP on every wired one. IPv6 router advertisements are the kernel's work, on every interface
// brought up here; name servers in them are not read, so a network of IPv6 alone needs them in the node config.
//
// It goes on in the background: cards that appear later, cables plugged in later and DHCP servers that answer later are all
// served when they come.
package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/machine"
)

// Link is a network interface of the machine.
type Link struct {
	Index int
	Name  string
	MAC   string // small letters
	Wired bool   // a card with a cable: not a bridge, tunnel or veth, and not Wi-Fi
}

// setup gives what to do with a link, and false for one that is not ours to touch.
func setup(cfg machine.Network, l Link) (machine.Interface, bool) {
	for _, i := range cfg.Interfaces {
		if i.Name == l.Name || (i.MAC != "" && strings.EqualFold(i.MAC, l.MAC) && l.Wired) {
			return i, true
		}
	}
	if len(cfg.Interfaces) == 0 && l.Wired {
		return machine.Interface{Name: l.Name, DHCP4: true}, true
	}
	return machine.Interface{}, false
}

// describe names the interface of a config as a person wrote it.
func describe(i machine.Interface) string {
	if i.Name != "" {
		return i.Name
	}
	return i.MAC
}

// maxNameservers is how many resolvers read.
const maxNameservers = 3

// resolvConf is the content of /etc/resolv.conf. The config's servers come before those that DHCP named.
func resolvConf(configured []string, learned []netip.Addr, search []string) string {
	var b strings.Builder
	b.WriteString("# written by Skerry: network.nameservers of the node config, then what DHCP says\n")
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
