package machine

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// Network says how the machine talks to others.
type Network struct {
	Interfaces  []Interface `yaml:"interfaces" default:"DHCP and router advertisements on every wired one" help:"the network interfaces to use; others stay down"`
	Nameservers []string    `yaml:"nameservers" help:"addresses of name servers, asked before those that DHCP and routers name"`
	Proxy       Proxy       `yaml:"proxy" help:"the way out to the web, for image pulls, Helm charts and snapshots on S3"`
	Search      []string    `yaml:"search" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$" help:"domains in which short names are looked up"`
}

// Proxy is the way out to the web. It fills in the engine's http-proxy, https-proxy and no-proxy.
type Proxy struct {
	HTTP  string `yaml:"http" help:"proxy for http, as http://HOST:PORT"`
	HTTPS string `yaml:"https" help:"proxy for https, as http://HOST:PORT"`
	No    string `yaml:"no" help:"names, addresses and networks to reach directly, with commas between; this machine, the cluster and its nodes always are"`
}

// Interface is a network card, picked by one of Name, MAC, Path and Driver, or one that the machine makes: a VLAN, bond or
// bridge, which has a Name. IPv6 router advertisements are always heard.
type Interface struct {
	Name      string   `yaml:"name" pattern:"^[A-Za-z0-9._-]{1,15}$" help:"the interface's name, as in eth0; a VLAN, bond or bridge gets it"`
	MAC       string   `yaml:"mac" pattern:"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$" help:"the card's hardware address, instead of a name"`
	Path      string   `yaml:"path" help:"where the card is plugged in, instead of a name: part of its path below /sys/devices, as in 0000:02:00.0; * stands for any text without a slash"`
	Driver    string   `yaml:"driver" pattern:"^[A-Za-z0-9_-]+$" help:"the card's driver, instead of a name, as in igb; all cards of it are meant"`
	DHCP4     bool     `yaml:"dhcp4" help:"ask DHCP for an IPv4 address"`
	Addresses []string `yaml:"addresses" help:"static addresses, IPv4 or IPv6, each with its prefix length, as in 192.0.2.5/24"`
	Gateway   string   `yaml:"gateway" help:"address of the router that leads everywhere else; an IPv4 and an IPv6 one with a comma between"`
	Routes    []Route  `yaml:"routes" help:"more ways out of this interface"`
	MTU       int      `yaml:"mtu" min:"1280" max:"65535" default:"what the driver or DHCP says" help:"bytes that a packet may have"`
	VLAN      *VLAN    `yaml:"vlan" help:"makes the interface: a VLAN of another one"`
	Bond      *Bond    `yaml:"bond" help:"makes the interface: several cards as one"`
	Bridge    *Bridge  `yaml:"bridge" help:"makes the interface: a switch in this machine"`
	WiFi      *WiFi    `yaml:"wifi" help:"the wireless network that the card joins, or several; the release must hold wpa_supplicant and the card's driver"`
}

// Route leads to one network.
type Route struct {
	To     string `yaml:"to" help:"network to reach, as in 10.0.0.0/8; 0.0.0.0/0 and ::/0 are everywhere"`
	Via    string `yaml:"via" default:"the interface's own link" help:"address of the router that leads there"`
	Metric int    `yaml:"metric" min:"1" max:"2147483647" default:"100 and the interface's number" help:"of several routes to one network the one with the least counts"`
}

// VLAN is a tagged network of another interface.
type VLAN struct {
	ID int    `yaml:"id" min:"1" max:"4094" help:"the VLAN's number"`
	On string `yaml:"on" help:"the interface that carries it, by name or hardware address"`
}

// Bond makes one interface of several.
type Bond struct {
	Members []string `yaml:"members" help:"interfaces in it, by name or hardware address"`
	Mode    string   `yaml:"mode" enum:"active-backup,balance-rr,balance-xor,broadcast,802.3ad,balance-tlb,balance-alb" default:"active-backup" help:"how its members share the work; 802.3ad needs a switch that is told too"`
}

// Bridge makes a switch of several interfaces.
type Bridge struct {
	Members []string `yaml:"members" help:"interfaces in it, by name or hardware address"`
	STP     bool     `yaml:"stp" help:"speak the spanning tree protocol"`
}

// BondModes are what Bond.Mode may be; the first is the default.
var BondModes = []string{"active-backup", "balance-rr", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

// Made says whether the machine makes the interface, rather than finding it.
func (i *Interface) Made() bool { return i.VLAN != nil || i.Bond != nil || i.Bridge != nil }

// Members names the interfaces that have this one as their master.
func (i *Interface) Members() []string {
	switch {
	case i.Bond != nil:
		return i.Bond.Members
	case i.Bridge != nil:
		return i.Bridge.Members
	}
	return nil
}

// Gateways lists the addresses in Gateway, which has no problems.
func (i *Interface) Gateways() (out []netip.Addr) {
	if i.Gateway == "" {
		return nil
	}
	each(i.Gateway, func(text string) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	})
	return out
}

// DecodeNetwork reads a file that holds a Network alone.
func DecodeNetwork(name string, data []byte) (*Network, error) {
	var n Network
	doc, err := strictyaml.Decode(name, data, &n)
	if err != nil {
		return nil, err
	}
	var p problems
	n.problems(&p)
	return &n, placed(doc, p.list)
}

var ifname = regexp.MustCompile(`^[A-Za-z0-9._-]{1,15}$`)

// isMAC says whether a text is the address of a card.
func isMAC(text string) bool {
	hw, err := net.ParseMAC(text)
	return err == nil && len(hw) == 6
}

func (n *Network) problems(p *problems) {
	seen := map[string]bool{}
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		at := func(path ...any) []any { return append([]any{"interfaces", i}, path...) }
		f.nameProblems(p, at, seen)
		if f.MTU != 0 && (f.MTU < 1280 || f.MTU > 65535) {
			p.addf(at("mtu"), "%d is not an MTU; write 1280 to 65535", f.MTU)
		}
		f.wifiProblems(p, at)
		f.addressProblems(p, at)
		f.routeProblems(p, at)
	}
	n.masterProblems(p)
	p.below("proxy", func(p *problems) {
		p.proxy("http", n.Proxy.HTTP)
		p.proxy("https", n.Proxy.HTTPS)
	})
	for i, s := range n.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			p.addf([]any{"nameservers", i}, "%q is not an IP address", s)
		}
	}
	for i, s := range n.Search {
		if !domain.MatchString(s) {
			p.addf([]any{"search", i}, "%q is not a domain, as in lab.example.org", s)
		}
	}
}

func (f *Interface) nameProblems(p *problems, at func(...any) []any, seen map[string]bool) {
	var by []string
	for _, w := range []struct{ key, value string }{{"name", f.Name}, {"mac", f.MAC}, {"path", f.Path}, {"driver", f.Driver}} {
		if w.value != "" {
			by = append(by, w.key)
		}
	}
	id := strings.Join([]string{f.Name, strings.ToLower(f.MAC), f.Path, f.Driver}, " ")
	switch {
	case len(by) == 0:
		p.add("name it by name, mac, path or driver", at()...)
	case len(by) > 1:
		p.addf(at(by[1]), "has both %s and %s; one of them picks the interface", by[0], by[1])
	case seen[id]:
		p.addf(at(), "%s is here twice", strings.TrimSpace(id))
	}
	seen[id] = true
	if f.Name != "" && (!ifname.MatchString(f.Name) || f.Name == "." || f.Name == "..") {
		p.addf(at("name"), "%q is not the name of an interface, as in eth0", f.Name)
	}
	if f.MAC != "" && !isMAC(f.MAC) {
		p.addf(at("mac"), "%q is not a hardware address, as in 52:54:00:12:34:56", f.MAC)
	}
	if _, err := path.Match(f.Path, ""); err != nil || f.Path != strings.Trim(f.Path, "/") {
		p.addf(at("path"), "%q is not part of a device's path, as in 0000:02:00.0", f.Path)
	}
	if f.Driver != "" && !driverName.MatchString(f.Driver) {
		p.addf(at("driver"), "%q is not the name of a driver, as in igb", f.Driver)
	}
	made := 0
	for _, is := range []bool{f.VLAN != nil, f.Bond != nil, f.Bridge != nil} {
		if is {
			made++
		}
	}
	if made > 1 {
		p.add("is more than one of vlan, bond and bridge; write an interface for each", at()...)
	}
	if made == 1 && f.Name == "" {
		p.add("needs a name: the machine makes this interface", at()...)
	}
	f.madeProblems(p, at)
}

var driverName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (f *Interface) madeProblems(p *problems, at func(...any) []any) {
	if v := f.VLAN; v != nil {
		if v.ID < 1 || v.ID > 4094 {
			p.addf(at("vlan", "id"), "%d is not a VLAN; write 1 to 4094", v.ID)
		}
		if !ifname.MatchString(v.On) && !isMAC(v.On) {
			p.addf(at("vlan", "on"), "%q is neither an interface's name nor a hardware address", v.On)
		}
	}
	key, members := "bridge", f.Members()
	if f.Bond != nil {
		key = "bond"
		if f.Bond.Mode != "" && !slices.Contains(BondModes, f.Bond.Mode) {
			p.addf(at("bond", "mode"), "%q is not a mode; known are %s", f.Bond.Mode, strings.Join(BondModes, ", "))
		}
		if len(members) == 0 {
			p.add("has no members; a bond without any never works", at("bond")...)
		}
	}
	for j, m := range members {
		switch {
		case !ifname.MatchString(m) && !isMAC(m):
			p.addf(at(key, "members", j), "%q is neither an interface's name nor a hardware address", m)
		case m == f.Name:
			p.addf(at(key, "members", j), "%s cannot be in itself", m)
		}
	}
}

// masterProblems finds members that have two masters or an address, and interfaces that are made of each other.
func (n *Network) masterProblems(p *problems) {
	master := map[string]string{}
	on := map[string][]string{} // what an interface is made of
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		key := "bridge"
		if f.Bond != nil {
			key = "bond"
		}
		on[f.Name] = append(on[f.Name], f.Members()...)
		if f.VLAN != nil {
			on[f.Name] = append(on[f.Name], f.VLAN.On)
		}
		for j, m := range f.Members() {
			if other, ok := master[strings.ToLower(m)]; ok {
				p.addf([]any{"interfaces", i, key, "members", j}, "%s is in %s already", m, other)
			}
			master[strings.ToLower(m)] = f.Called()
		}
	}
	for i := range n.Interfaces {
		f := &n.Interfaces[i]
		for _, name := range []string{f.Name, strings.ToLower(f.MAC)} {
			m := master[strings.ToLower(name)]
			if name != "" && m != "" && (f.DHCP4 || len(f.Addresses) > 0) {
				p.addf([]any{"interfaces", i}, "is in %s, which is what has addresses; give them to %s", m, m)
			}
			if name != "" && m != "" && f.WiFi != nil {
				p.addf([]any{"interfaces", i, "wifi"}, "is of a card in %s; access points take frames of the card's own address alone", m)
			}
		}
		if f.Made() && reaches(on, f.Name, f.Name, map[string]bool{}) {
			p.addf([]any{"interfaces", i}, "%s is made of itself", f.Name)
		}
	}
}

// reaches says whether a way leads from one interface down to another.
func reaches(on map[string][]string, from, to string, seen map[string]bool) bool {
	for _, next := range on[from] {
		if next == to {
			return true
		}
		if !seen[next] {
			seen[next] = true
			if reaches(on, next, to, seen) {
				return true
			}
		}
	}
	return false
}

func (f *Interface) addressProblems(p *problems, at func(...any) []any) {
	if len(f.Addresses) == 0 && f.Gateway != "" {
		p.add("has no addresses to go with it", at("gateway")...)
		return
	}
	var nets []netip.Prefix
	for j, a := range f.Addresses {
		prefix, err := netip.ParsePrefix(a)
		switch {
		case err != nil:
			p.addf(at("addresses", j), "%q is not an address with its prefix length, as in 192.0.2.5/24", a)
		case prefix.Addr().Is4() && prefix.Bits() < 31 && prefix.Masked().Addr() == prefix.Addr():
			p.addf(at("addresses", j), "%s is a network; write the machine's own address", a)
		case prefix.Addr().IsUnspecified() || prefix.Addr().IsMulticast() || prefix.Addr().Is4In6():
			p.addf(at("addresses", j), "%s is not an address that a machine can have", a)
		default:
			nets = append(nets, prefix)
		}
	}
	if f.Gateway == "" || len(nets) < len(f.Addresses) {
		return
	}
	seen := map[bool]bool{}
	each(f.Gateway, func(text string) {
		gw, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			p.addf(at("gateway"), "%q is not an IP address", text)
		case seen[gw.Is6()]:
			p.addf(at("gateway"), "%s is the second of its family; write it as a route with a metric", text)
		case !slices.ContainsFunc(nets, func(n netip.Prefix) bool { return reachable(gw, n) }):
			p.addf(at("gateway"), "%s cannot be reached from %s", text, strings.Join(f.Addresses, ", "))
		}
		seen[err == nil && gw.Is6()] = true
	})
}

func reachable(gw netip.Addr, from netip.Prefix) bool {
	return from.Contains(gw.WithZone("")) || gw.IsLinkLocalUnicast() && gw.Is6() && from.Addr().Is6()
}

func (f *Interface) routeProblems(p *problems, at func(...any) []any) {
	for j, r := range f.Routes {
		to, err := netip.ParsePrefix(r.To)
		switch {
		case err != nil:
			p.addf(at("routes", j, "to"), "%q is not a network, as in 10.0.0.0/8", r.To)
		case to != to.Masked():
			p.addf(at("routes", j, "to"), "%s has bits set behind its length; write %s", r.To, to.Masked())
		}
		if r.Metric < 0 {
			p.addf(at("routes", j, "metric"), "%d is not a metric; write 1 or more", r.Metric)
		}
		if r.Via == "" {
			continue
		}
		via, verr := netip.ParseAddr(r.Via)
		switch {
		case verr != nil:
			p.addf(at("routes", j, "via"), "%q is not an IP address", r.Via)
		case err == nil && via.Is6() != to.Addr().Is6():
			p.addf(at("routes", j, "via"), "%s leads to %s, which is of the other IP family", r.Via, r.To)
		}
	}
}

// Called says which interface is meant, as a person wrote it.
func (i *Interface) Called() string {
	switch {
	case i.Name != "":
		return i.Name
	case i.MAC != "":
		return i.MAC
	case i.Path != "":
		return "at " + i.Path
	}
	return fmt.Sprintf("of driver %s", i.Driver)
}
