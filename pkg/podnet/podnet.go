// Package podnet carries packets between pods of different nodes. Each node says how it can be reached (Announcement); from
// what the others say every node programs its kernel: a tunnel device, its neighbours, and a route for each other node's pod
// networks. Three back ends:
//
//	vxlan             one VXLAN device, addresses of the other ends set by hand: nothing is learned, nothing is flooded
//	wireguard-native  one WireGuard device, every other node a peer that may send from its pod networks alone
//	host-gw           no device: routes to the other nodes themselves, which must be in the same network segment
//
// Everything is a comparison of what the kernel has with what it should have, so that a start over a running network changes
// nothing, a change touches what it is about alone, and whatever is stale goes, whoever left it. What is ours is told by the
// names of the devices and by the routing protocol number of the routes.
//
// A device carries both IP families of pods, whatever the family of the network between the nodes. It has the gateway address
// of the node's pod networks, the one that pods see their own node under: a node's own processes reach pods everywhere from
// that address, and the answers come back the same way.
//
// The cluster's networks as a whole are unreachable by default. Without this route a packet to a pod of an unknown node would
// leave by the default route, in clear text even where WireGuard was asked for.
//
// The package knows nothing of Kubernetes.
package podnet

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
)

// Backend is how packets get from node to node.
type Backend string

// The back ends, under K3s's names.
const (
	VXLAN     Backend = "vxlan"
	HostGW    Backend = "host-gw"
	WireGuard Backend = "wireguard-native"
	None      Backend = "none" // somebody else's network
)

// Ports between nodes: UDP, the same as in other distributions, because firewalls know them.
const (
	VXLANPort     = 8472
	WireGuardPort = 51820
)

const (
	vxlanName     = "skerry-vx"
	wireguardName = "skerry-wg"
	vni           = 1

	// protocol marks our routes. See /etc/iproute2/rt_protos: 83 is nobody's.
	protocol = 83
)

// ErrUnsupported is in the error of a back end that this kernel lacks.
var ErrUnsupported = errors.New("the kernel lacks it")

// Config says which network this node is in and where it stands.
type Config struct {
	Backend  Backend
	Name     string         // of this node
	Cluster  []netip.Prefix // what all pods have their addresses from
	Iface    string         // the device towards the other nodes; "" is the one that has Addresses
	External []netip.Addr   // where the others reach this node, if not at Addresses
	KeyFile  string         // of WireGuard; made if missing
}

// Announcement is what a node tells the others.
type Announcement struct {
	Backend   Backend      `json:"backend"`
	Addresses []netip.Addr `json:"addresses"`           // at most one of each family, the tunnel's first
	MAC       string       `json:"mac,omitempty"`       // of the VXLAN device
	PublicKey string       `json:"publicKey,omitempty"` // of WireGuard
}

func (a Announcement) String() string {
	data, err := json.Marshal(a)
	if err != nil {
		return err.Error() // text and addresses can always be written
	}
	return string(data)
}

// ParseAnnouncement reads what String has written.
func ParseAnnouncement(text string) (Announcement, error) {
	var a Announcement
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return Announcement{}, err
	}
	if len(a.Addresses) == 0 {
		return Announcement{}, errors.New("has no address")
	}
	return a, nil
}

// Node is another node.
type Node struct {
	Name    string
	Subnets []netip.Prefix // its pods'
	Announcement
}

// Network is this node's part.
type Network struct {
	cfg  Config
	link *device // the tunnel, or what carries host-gw
}

// device is a link as far as it matters here.
type device struct {
	index int
	name  string
	mtu   int
}

// New checks the configuration; nothing is changed yet.
func New(cfg Config) (*Network, error) {
	switch cfg.Backend {
	case VXLAN, HostGW, WireGuard, None:
	default:
		return nil, fmt.Errorf("flannel-backend: %q is none of vxlan, host-gw, wireguard-native, none", cfg.Backend)
	}
	return &Network{cfg: cfg}, nil
}

// Prepare makes or mends this node's end, which is to be reached at addresses (the first of each family counts). It gives what
// the others must know, and the largest packet that pods may send.
func (n *Network) Prepare(addresses []netip.Addr) (Announcement, int, error) {
	under, addresses, err := underlay(n.cfg.Iface, addresses)
	if err != nil {
		return Announcement{}, 0, err
	}
	if err := n.forward(under); err != nil {
		return Announcement{}, 0, err
	}
	told := Announcement{Backend: n.cfg.Backend, Addresses: addresses}
	if len(n.cfg.External) > 0 {
		told.Addresses = n.cfg.External
	}
	if err := n.removeOtherDevices(); err != nil {
		return Announcement{}, 0, err
	}
	switch n.cfg.Backend {
	case VXLAN:
		mac := vtepMAC(n.cfg.Name)
		told.MAC = mac.String()
		n.link, err = ensureVXLAN(addresses[0], mac, under)
	case WireGuard:
		n.link, told.PublicKey, err = ensureWireGuard(n.cfg.KeyFile, told.Addresses[0], under)
	default:
		n.link = under
	}
	if err != nil {
		return Announcement{}, 0, err
	}
	return told, n.link.mtu, nil
}

// Apply makes the kernel fit: this node's pods are in own, the others are as told. It does all it can; the error names
// every node that cannot be reached and why.
func (n *Network) Apply(own []netip.Prefix, others []Node) error {
	if n.link == nil {
		return errors.New("pod network: not prepared")
	}
	others, faults := n.usable(own, others)
	switch n.cfg.Backend {
	case None:
		return nil
	case VXLAN:
		faults = append(faults, addressDevice(n.link, own), syncNeighbours(n.link, vxlanNeighbours(others)))
	case WireGuard:
		faults = append(faults, addressDevice(n.link, own), syncPeers(n.link, others))
	}
	want, err := n.routes(own, others)
	return errors.Join(append(faults, err, syncRoutes(want))...)
}

// usable leaves out what would do harm: nodes of another back end, and pod networks that are ours or outside the cluster's.
func (n *Network) usable(own []netip.Prefix, others []Node) (good []Node, faults []error) {
	taken := slices.Clone(own)
	// The order decides who keeps a network that two claim, so it must not change from one call to the next.
	others = slices.SortedFunc(slices.Values(others), func(a, b Node) int { return compare(a.Name, b.Name) })
	for _, o := range others {
		if err := o.fits(n.cfg, taken); err != nil {
			faults = append(faults, fmt.Errorf("node %s: %w", o.Name, err))
			continue
		}
		taken = append(taken, o.Subnets...)
		good = append(good, o)
	}
	return good, faults
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (o *Node) fits(cfg Config, taken []netip.Prefix) error {
	if o.Backend != cfg.Backend {
		return fmt.Errorf("its pod network is %s, this node's is %s; give all servers the same --flannel-backend, and let an agent that joined under another join anew", o.Backend, cfg.Backend)
	}
	for _, s := range o.Subnets {
		if !slices.ContainsFunc(cfg.Cluster, func(c netip.Prefix) bool { return c.Bits() <= s.Bits() && c.Contains(s.Addr()) }) {
			return fmt.Errorf("its pod network %s is outside cluster-cidr", s)
		}
		if i := slices.IndexFunc(taken, s.Overlaps); i >= 0 {
			return fmt.Errorf("its pod network %s overlaps %s of another node; delete the newer of the two nodes", s, taken[i])
		}
	}
	switch cfg.Backend {
	case VXLAN:
		if _, err := net.ParseMAC(o.MAC); err != nil {
			return fmt.Errorf("its VXLAN address: %w", err)
		}
	case WireGuard:
		if _, err := parseKey(o.PublicKey); err != nil {
			return fmt.Errorf("its WireGuard key: %w", err)
		}
	}
	return nil
}

// address is the first of the family.
func (a Announcement) address(v6 bool) (netip.Addr, bool) {
	for _, addr := range a.Addresses {
		if addr.Is6() == v6 {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// vtepMAC follows from the name, so that a node that was switched off comes back as what the others remember.
func vtepMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("skerry vxlan " + name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&0xfe | 0x02 // one machine's, given by hand
	return mac
}

// gateway is the address that a node has in one of its pod networks: the first, as host-local has it.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// forward lets the kernel pass packets on.
func (n *Network) forward(under *device) error {
	for _, c := range n.cfg.Cluster {
		if c.Addr().Is4() {
			if err := sysctl("ipv4/ip_forward", "1"); err != nil {
				return err
			}
			continue
		}
		// A router ignores other routers' advertisements, and the node would lose its default route, unless told otherwise.
		if have, err := os.ReadFile(sysctlFile("ipv6/conf/" + under.name + "/accept_ra")); err == nil && string(have) == "1\n" {
			if err := sysctl("ipv6/conf/"+under.name+"/accept_ra", "2"); err != nil {
				return err
			}
		}
		if err := sysctl("ipv6/conf/all/forwarding", "1"); err != nil {
			return err
		}
	}
	return nil
}

func sysctlFile(name string) string { return "/proc/sys/net/" + name }

// sysctl writes only what differs: the folder may be read-only and right.
func sysctl(name, value string) error {
	if have, err := os.ReadFile(sysctlFile(name)); err == nil && string(have) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(sysctlFile(name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting net/%s to %s: %w", name, value, err)
	}
	return nil
}
