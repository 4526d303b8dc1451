package updates

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// network says by which ways the machine reaches others: default routes, and the networks in which it has an address. Those of
// pods do not count, nor an address of its own in no network, which may be one that moves between machines.
func network(sys, proc fs.FS, addresses map[string][]netip.Prefix) []string {
	var out []string
	for link, prefixes := range addresses {
		if !wired(sys, link, 0) {
			continue
		}
		for _, p := range prefixes {
			if p.Addr().IsGlobalUnicast() && p.Bits() < p.Addr().BitLen() {
				out = append(out, fmt.Sprintf("an address in %v", p.Masked()))
			}
		}
	}
	for family, file := range map[string]string{"IPv4": "net/route", "IPv6": "net/ipv6_route"} {
		if hasDefault(proc, file) {
			out = append(out, "a default route for "+family)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// wired says whether a link is a device, or is built on one: a bond, a bridge, a VLAN.
func wired(sys fs.FS, link string, depth int) bool {
	entries, err := fs.ReadDir(sys, "class/net/"+link)
	if err != nil || depth > 4 {
		return false
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		lower, ok := strings.CutPrefix(e.Name(), "lower_")
		return e.Name() == "device" || ok && wired(sys, lower, depth+1)
	})
}

// hasDefault reads the kernel's table of routes.
func hasDefault(proc fs.FS, name string) bool {
	f, err := proc.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		c := strings.Fields(lines.Text())
		switch {
		case strings.HasSuffix(name, "ipv6_route"): // destination, its length, source, its length, next hop, ..., link
			if len(c) == 10 && c[1] == "00" && strings.Trim(c[0], "0") == "" && c[9] != "lo" {
				return true
			}
		case len(c) > 7 && c[1] == "00000000" && c[7] == "00000000": // link, destination, ..., mask
			return true
		}
	}
	return false
}

// addresses are those of the machine's links.
func addresses() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	links, err := net.Interfaces()
	if err != nil {
		return out
	}
	for _, l := range links {
		all, err := l.Addrs()
		if err != nil {
			continue
		}
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out[l.Name] = append(out[l.Name], p)
			}
		}
	}
	return out
}
