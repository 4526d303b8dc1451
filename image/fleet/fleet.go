// Package fleet is many machines that are to be one cluster: a file that says what they share and who they are, the secrets
// made for them before any of them exists, their images, and the record of which card is which machine.
//
// The whole file:
//
//	apiVersion: skerry/v1alpha1
//	kind: Fleet
//	name: home
//	keys: out/keys                           # the folder with release.pub, the key that the releases must be signed with
//	releases:                                # folders, by architecture or by board; relative to this file, as keys is; or oci://HOST/NAME:TAG
//	  amd64: out/release
//	  rpi4: out/release-pi
//	cluster:
//	  server: https://192.0.2.10:6443        # whom agents join; default: the first server's address
//	  cluster-cidr: 10.42.0.0/16             # these four as skerryd's flags, the same for all servers
//	  service-cidr: 10.43.0.0/16
//	  cluster-domain: cluster.local
//	  flannel-backend: vxlan
//	gateway: 192.0.2.1                       # of the nodes with an address
//	interface: eth0                          # that gets the address of a node without a mac
//	wifi: {ssid: home, passphrase: "…", country: DE} # what nodes join; keys as in a node config, on the node's mac or interface, or wlan0
//	config:                                  # what each node config says as well; any key of one but those made here
//	  network: {nameservers: [192.0.2.1]}
//	  ntp: {servers: [192.0.2.1]}
//	  update: {source: https://updates.example.org/skerry, policy: auto}
//	  server: {tls-san: [k8s.example.org]}   # servers' alone
//	  agent: {kubelet-arg: [max-pods=50]}    # agents' alone
//	secrets:                                 # encrypted at rest; without it they are files that only their owner may read
//	  recipients: [age1…]                    # or passphrase: true
//	nodes:
//	  - name: north-1                        # the host name and the node's name
//	    board: x86-uefi
//	    role: server                         # or agent; an odd number of servers
//	    serial: "10000000c0ffee00"           # by which a card that fits every machine finds out which it is in, or by mac
//	    mac: "02:00:00:00:00:01"             # this is also the card that gets the address
//	    address: 192.0.2.10/24               # none: DHCP, or what config says
//	    wifi: {}                             # another network than the one above, or as here none: a node with a cable
//	    labels: [zone=north]
//	    taints: [dedicated=gpu:NoSchedule]
//	    config: {network: {}}                # over the config that is for all
package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// The values that the first two keys of a fleet's file must have.
const (
	APIVersion = "skerry/v1alpha1"
	Kind       = "Fleet"
)

// MaxNodes bounds a fleet; the file's size does too.
const MaxNodes = 5000

// Fleet is a fleet's file. Decode makes it; nobody but Fetch changes it afterwards.
type Fleet struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Name       string            `yaml:"name"`
	Keys       string            `yaml:"keys"`
	Releases   map[string]string `yaml:"releases"`
	Cluster    Cluster           `yaml:"cluster"`
	Gateway    string            `yaml:"gateway"`
	Interface  string            `yaml:"interface"`
	WiFi       Section           `yaml:"wifi"`
	Config     Section           `yaml:"config"`
	Secrets    Secrets           `yaml:"secrets"`
	Nodes      []Node            `yaml:"nodes"`

	file   string
	doc    *strictyaml.Doc
	boards map[string]*boards.Board // by id, each read once
}

// Cluster is what all nodes must agree on.
type Cluster struct {
	Server         string `yaml:"server"`
	ClusterCIDR    string `yaml:"cluster-cidr"`
	ServiceCIDR    string `yaml:"service-cidr"`
	ClusterDomain  string `yaml:"cluster-domain"`
	FlannelBackend string `yaml:"flannel-backend"`
}

// Secrets says how the fleet's secrets are kept.
type Secrets struct {
	Recipients []string `yaml:"recipients"` // of age, age1…
	Passphrase bool     `yaml:"passphrase"`
}

// Sealed says whether they are encrypted.
func (s Secrets) Sealed() bool { return s.Passphrase || len(s.Recipients) > 0 }

// Node is one machine.
type Node struct {
	Name      string       `yaml:"name"`
	Board     string       `yaml:"board"`
	Role      machine.Role `yaml:"role"`
	Serial    string       `yaml:"serial"`
	MAC       string       `yaml:"mac"`
	Address   string       `yaml:"address"` // with its prefix length
	Gateway   string       `yaml:"gateway"`
	Interface string       `yaml:"interface"`
	WiFi      Section      `yaml:"wifi"`
	Size      size.Bytes   `yaml:"size"` // of the image; 0 is the least its board needs
	Labels    []string     `yaml:"labels"`
	Taints    []string     `yaml:"taints"`
	Config    Section      `yaml:"config"`
}

// Section is a part of a node config, kept as it is in the file.
type Section struct{ node *yaml.Node }

// UnmarshalYAML keeps the node.
func (s *Section) UnmarshalYAML(n *yaml.Node) error { s.node = n; return nil }

// any says whether the section says anything.
func (s Section) any() bool {
	return s.node != nil && s.node.Tag != "!!null" && (s.node.Kind != yaml.MappingNode || len(s.node.Content) > 0)
}

// Load reads and decodes a fleet's file.
func Load(name string) (*Fleet, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w; make one with: skerry fleet new", err)
	}
	if err != nil {
		return nil, err
	}
	return Decode(name, data)
}

// Decode reads a fleet's file. The error joins every fault of the file, each as "name:line:column: what is wrong", the faults of
// the node configs that would come of it among them. It reads no other file; see Check.
func Decode(name string, data []byte) (*Fleet, error) {
	f := &Fleet{file: name, boards: map[string]*boards.Board{}}
	var err error
	if f.doc, err = strictyaml.Decode(name, data, f); err != nil {
		return nil, err
	}
	c := &checker{f: f}
	c.head()
	c.nodes()
	if len(c.faults) == 0 {
		c.configs()
	}
	return f, c.err()
}

func (f *Fleet) board(id string) (*boards.Board, error) {
	if b, ok := f.boards[id]; ok {
		return b, nil
	}
	b, err := boards.Load(id)
	if err == nil {
		f.boards[id] = b
	}
	return b, err
}

// Dir is where the file is; the paths in it are relative to it.
func (f *Fleet) Dir() string { return filepath.Dir(f.file) }

// Path makes a path of the file's one that is good here.
func (f *Fleet) Path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.Dir(), name)
}

// Find gives a node by its name.
func (f *Fleet) Find(name string) (*Node, bool) {
	for i := range f.Nodes {
		if f.Nodes[i].Name == name {
			return &f.Nodes[i], true
		}
	}
	return nil, false
}

// Servers are the nodes of that role, in the file's order. The first begins the cluster.
func (f *Fleet) Servers() (out []*Node) {
	for i := range f.Nodes {
		if f.Nodes[i].Role == machine.RoleServer {
			out = append(out, &f.Nodes[i])
		}
	}
	return out
}

// First says whether n is the server that begins the cluster.
func (f *Fleet) First(n *Node) bool { s := f.Servers(); return len(s) > 0 && s[0] == n }

// checker collects faults.
type checker struct {
	f      *Fleet
	faults []error
}

func (c *checker) add(path []any, format string, a ...any) {
	c.faults = append(c.faults, c.f.doc.At(fmt.Sprintf(format, a...), path...))
}

// err joins the faults in the file's order, each once: what all nodes share is wrong in each of them.
func (c *checker) err() error {
	slices.SortStableFunc(c.faults, func(a, b error) int {
		var x, y strictyaml.Fault
		errors.As(a, &x)
		errors.As(b, &y)
		return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column), strings.Compare(a.Error(), b.Error()))
	})
	return errors.Join(slices.CompactFunc(c.faults, func(a, b error) bool { return a.Error() == b.Error() })...)
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *checker) head() {
	f := c.f
	if f.APIVersion != APIVersion {
		c.add([]any{"apiVersion"}, "apiVersion: is %q; this release reads %s", f.APIVersion, APIVersion)
	}
	if f.Kind != Kind {
		c.add([]any{"kind"}, "kind: is %q; write %s", f.Kind, Kind)
	}
	if !nameForm.MatchString(f.Name) {
		c.add([]any{"name"}, "name: %q is not a name for the fleet: small letters, digits and dashes", f.Name)
	}
	if f.Keys == "" {
		c.add([]any{"keys"}, "keys: is missing; name the folder with release.pub, such as out/keys")
	}
	if len(f.Releases) == 0 {
		c.add([]any{"releases"}, "releases: is missing; name a release's folder by architecture, as in amd64: out/release")
	}
	for key, dir := range f.Releases {
		if _, err := boards.Load(key); err != nil && !slices.Contains(release.Arches, key) {
			c.add([]any{"releases", key}, "releases: %q is neither an architecture (%s) nor a board", key, strings.Join(release.Arches, ", "))
		}
		if dir == "" {
			c.add([]any{"releases", key}, "releases.%s: is empty; name a release's folder", key)
		}
	}
	if f.Secrets.Passphrase && len(f.Secrets.Recipients) > 0 {
		c.add([]any{"secrets"}, "secrets: has both recipients and a passphrase; age takes one of them")
	}
	for i, r := range f.Secrets.Recipients {
		if err := checkRecipient(r); err != nil {
			c.add([]any{"secrets", "recipients", i}, "secrets.recipients: %v", err)
		}
	}
}

func (c *checker) nodes() {
	f := c.f
	if len(f.Nodes) == 0 {
		c.add([]any{"nodes"}, "nodes: there are none")
		return
	}
	if len(f.Nodes) > MaxNodes {
		c.add([]any{"nodes"}, "nodes: there are %d; a fleet has at most %d", len(f.Nodes), MaxNodes)
		return
	}
	seen := unique{c, map[string]string{}}
	servers := 0
	for i, n := range f.Nodes {
		at := func(key string) []any { return []any{"nodes", i, key} }
		who := cmp.Or(n.Name, fmt.Sprintf("node %d", i+1))
		if !nameForm.MatchString(n.Name) {
			c.add(at("name"), "%s: name %q is not a host name: small letters, digits and dashes, at most 63 characters", who, n.Name)
		} else {
			seen.check(at("name"), "name", n.Name, n.Name, who)
		}
		b, err := f.board(n.Board)
		switch {
		case n.Board == "":
			c.add([]any{"nodes", i}, "%s: has no board; `skerry board list` shows them", who)
		case err != nil:
			c.add(at("board"), "%s: %v", who, err)
		case f.Releases[b.ID] == "" && f.Releases[b.Arch] == "" && len(f.Releases) > 0:
			c.add(at("board"), "%s: there is no release for board %s; add one under releases as %s or %s", who, b.ID, b.Arch, b.ID)
		}
		switch n.Role {
		case machine.RoleServer:
			servers++
		case machine.RoleAgent:
		default:
			c.add(at("role"), "%s: role is %q; write server or agent", who, string(n.Role))
		}
		if n.Serial != "" {
			seen.check(at("serial"), "serial", strings.ToLower(n.Serial), n.Serial, who)
		}
		if hw, err := net.ParseMAC(n.MAC); n.MAC != "" && (err != nil || len(hw) != 6) {
			c.add(at("mac"), "%s: mac %q is not a hardware address, as in 02:00:00:00:00:01", who, n.MAC)
		} else if n.MAC != "" {
			seen.check(at("mac"), "mac", hw.String(), n.MAC, who)
		}
		c.address(i, n, who, seen)
		if n.WiFi.any() && (value(n.Config.node, "network", "interfaces") != nil || value(f.Config.node, "network", "interfaces") != nil) {
			c.add(at("wifi"), "%s: has wifi, and config.network.interfaces as well; write one of them", who)
		}
	}
	if f.WiFi.any() && value(f.Config.node, "network", "interfaces") != nil {
		c.add([]any{"wifi"}, "wifi: stands beside config.network.interfaces; write one of them")
	}
	switch {
	case servers == 0:
		c.add([]any{"nodes"}, "nodes: none is a server; a cluster needs one, or three that hold each other's data")
	case servers%2 == 0 && !f.external():
		c.add([]any{"nodes"}, "nodes: %d are servers; the cluster's store needs an odd number: with %d the loss of one is survived no better than with %d", servers, servers, servers-1)
	}
}

func (c *checker) address(i int, n Node, who string, seen unique) {
	at := func(key string) []any { return []any{"nodes", i, key} }
	if n.Address == "" {
		if n.Gateway != "" {
			c.add(at("gateway"), "%s: has a gateway and no address", who)
		}
		return
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil {
		c.add(at("address"), "%s: address %q is not one with its prefix length, as in 192.0.2.10/24", who, n.Address)
		return
	}
	seen.check(at("address"), "address", prefix.Addr().String(), prefix.Addr().String(), who)
	if value(n.Config.node, "network", "interfaces") != nil || value(c.f.Config.node, "network", "interfaces") != nil {
		c.add(at("address"), "%s: has an address, and config.network.interfaces as well; write one of them", who)
	}
}

// unique finds what two nodes have that only one may.
type unique struct {
	c    *checker
	seen map[string]string
}

func (u unique) check(path []any, what, key, shown, who string) {
	if other, dup := u.seen[what+" "+key]; dup {
		u.c.add(path, "%s: %s %s is %s's already", who, what, shown, other)
		return
	}
	u.seen[what+" "+key] = who
}
