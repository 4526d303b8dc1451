package fleet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// keys of a node config that the fleet writes and nobody else.
var reserved = []string{"apiVersion", "kind", "role", "hostname", "cluster"}

// placeholder stands for a token until there is one.
var placeholder = "K10" + strings.Repeat("0", 64) + "::aaaaaa." + strings.Repeat("a", 16)

// configs tries the node config of every node; its faults are at their places in the fleet's file.
func (c *checker) configs() {
	f := c.f
	for _, s := range append([]Section{f.Config}, sections(f.Nodes)...) {
		if s.node != nil && s.node.Kind != yaml.MappingNode {
			c.faults = append(c.faults, at(f.file, s.node, "config: wants keys and values here"))
			continue
		}
		pairs(s.node, func(k, _ *yaml.Node) {
			if slices.Contains(reserved, k.Value) {
				c.faults = append(c.faults, at(f.file, k, "config.%s: is made from the fleet's own keys; leave it out", k.Value))
			}
		})
	}
	if len(c.faults) > 0 {
		return
	}
	if _, err := f.Server(); err != nil {
		c.faults = append(c.faults, err)
		return
	}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		_, err := machine.DecodeNode(f.file, f.config(n, placeholder, f.First(n)))
		c.faults = append(c.faults, split(err)...)
		if f.rejoins(n) {
			if len(f.others(n)) == 0 {
				c.add([]any{"nodes", i}, "%s: the other servers have no address: a new card for this one could not find the cluster that they keep, and would begin another; give them addresses, or write cluster.server with a name that leads to all", n.Name)
			}
			_, err := machine.DecodeNode(f.file, f.config(n, placeholder, false))
			c.faults = append(c.faults, split(err)...)
		}
	}
}

func sections(nodes []Node) (out []Section) {
	for _, n := range nodes {
		out = append(out, n.Config)
	}
	return out
}

func at(file string, n *yaml.Node, format string, a ...any) error {
	return strictyaml.Fault{Name: file, Line: n.Line, Column: n.Column, Msg: fmt.Sprintf(format, a...)}
}

// split takes joined errors apart.
func split(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		return joined.Unwrap()
	}
	return []error{err}
}

// Server is the URL under which the cluster is joined: the one the file gives, or the first server's.
func (f *Fleet) Server() (string, error) {
	servers := f.Servers()
	if f.Cluster.Server != "" || len(servers) == 0 {
		return f.Cluster.Server, nil
	}
	own := f.url(servers[0])
	if own == "" && len(f.Nodes) > 1 {
		return "", f.doc.At(fmt.Sprintf("cluster.server: is missing, and %s has no address that it could be made of: give it one, or write https://HOST:6443 with a name that will lead there", servers[0].Name),
			"cluster")
	}
	return own, nil
}

// through is the setting server of a node that joins: what the file says for agents, or all servers but itself that have an address of
// their own, the first one first; any that runs will do.
func (f *Fleet) through(n *Node) string {
	if n.Role == machine.RoleAgent && f.Cluster.Server != "" {
		return f.Cluster.Server
	}
	var urls []string
	for _, s := range f.Servers() {
		if u := f.url(s); u != "" && s.Name != n.Name {
			urls = append(urls, u)
		}
	}
	if f.Cluster.Server != "" && (len(urls) == 0 || f.url(f.Servers()[0]) == "") {
		urls = append([]string{f.Cluster.Server}, urls...)
	}
	return strings.Join(urls, ",")
}

// url is the server's, by its own address.
func (f *Fleet) url(n *Node) string {
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil {
		return ""
	}
	port := 6443
	for _, s := range []Section{f.Config, n.Config} {
		if v := value(s.node, "server", "https-listen-port"); v != nil {
			if p, err := strconv.Atoi(v.Value); err == nil {
				port = p
			}
		}
	}
	return "https://" + net.JoinHostPort(prefix.Addr().String(), strconv.Itoa(port))
}

// rejoins says whether n is a first server that others can outlive: a card for it that is written once more must not begin a second
// cluster. Servers whose data is in a database elsewhere find the cluster there.
func (f *Fleet) rejoins(n *Node) bool {
	return f.First(n) && len(f.Servers()) > 1 && !f.external()
}

// external says whether the servers keep their data in a database elsewhere.
func (f *Fleet) external() bool { return value(f.Config.node, "server", "datastore-endpoint") != nil }

// others are the URLs under which the first server finds those that know whether there is a cluster already.
func (f *Fleet) others(first *Node) (urls []string) {
	if !f.rejoins(first) {
		return nil
	}
	for _, n := range f.Servers()[1:] {
		if u := f.url(n); u != "" {
			urls = append(urls, u)
		}
	}
	if u := f.Cluster.Server; u != "" && u != f.url(first) && !slices.Contains(urls, u) {
		urls = append(urls, u)
	}
	return urls
}

// NodeConfig is the node config of n as a file, with the token that it joins with; "" for the first server, which has the
// cluster's own.
func (f *Fleet) NodeConfig(n *Node, token string) ([]byte, error) {
	return f.configFile(n, token, f.First(n))
}

func (f *Fleet) configFile(n *Node, token string, begins bool) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s of fleet %s\n", n.Name, f.Name)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(plain(f.config(n, token, begins))); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// config puts a node config together, of one that begins the cluster or joins it. What is made here stands at the place of the key
// that it was made from.
func (f *Fleet) config(n *Node, token string, begins bool) *yaml.Node {
	place := f.doc.Node("nodes", slices.IndexFunc(f.Nodes, func(o Node) bool { return o.Name == n.Name }))
	from := func(key string) *yaml.Node {
		if v := value(place, key); v != nil {
			return v
		}
		return place
	}
	root := merge(f.Config.node, n.Config.node)
	for _, role := range []machine.Role{machine.RoleServer, machine.RoleAgent} {
		if value(n.Config.node, string(role)) == nil && role != n.Role {
			remove(root, string(role)) // what is for the other role is for other nodes
		}
	}
	head := &yaml.Node{Kind: yaml.MappingNode, Line: place.Line, Column: place.Column}
	set(head, place, text("skerry/v1alpha1", place), "apiVersion")
	set(head, place, text(machine.Kind, place), "kind")
	set(head, place, text(string(n.Role), from("role")), "role")
	set(head, place, text(n.Name, from("name")), "hostname")
	server, _ := f.Server()
	if !begins && token != "" {
		set(head, place, text(token, place), "cluster", "token")
	}
	if n.Role == machine.RoleAgent {
		at := from("name")
		if v := f.doc.Node("cluster", "server"); v != nil {
			at = v
		}
		set(head, place, text(f.through(n), at), "cluster", "server")
	}
	root.Content = append(head.Content, root.Content...)
	root.Line, root.Column = place.Line, place.Column
	role := string(n.Role)
	if n.Role == machine.RoleServer {
		f.serverConfig(root, n, begins, server, place)
	}
	for key, name := range map[string]string{"labels": "node-label", "taints": "node-taint"} {
		if list := value(place, key); list != nil && len(list.Content) > 0 {
			set(root, place, extend(value(root, role, name), list), role, name)
		}
	}
	if wifi := f.wifi(n); n.Address != "" || wifi != nil {
		set(root, place, f.iface(n, place, wifi), "network", "interfaces")
	}
	return root
}

func (f *Fleet) serverConfig(root *yaml.Node, n *Node, begins bool, server string, place *yaml.Node) {
	cluster := f.doc.Node("cluster")
	for _, key := range []string{"cluster-cidr", "service-cidr", "cluster-domain", "flannel-backend"} {
		if v := value(cluster, key); v != nil {
			set(root, place, v, "server", key)
		}
	}
	servers := f.Servers()
	external := value(root, "server", "datastore-endpoint") != nil
	switch {
	case len(servers) == 1 || external && begins:
	case begins:
		set(root, place, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true", Line: place.Line, Column: place.Column}, "server", "cluster-init")
	default:
		set(root, place, text(f.through(n), place), "cluster", "server")
	}
	// The name that others call the API by belongs into its certificate, unless it is the node's own address.
	if u, err := url.Parse(server); err == nil && u.Hostname() != "" {
		own, _ := netip.ParsePrefix(n.Address)
		if u.Hostname() != own.Addr().String() {
			list := &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{text(u.Hostname(), place)}}
			set(root, place, extend(value(root, "server", "tls-san"), list), "server", "tls-san")
		}
	}
}

// wifi is what a node joins: its own, or the fleet's unless it says what its interfaces are; nil for none. The country is the
// fleet's unless the node says another.
func (f *Fleet) wifi(n *Node) *yaml.Node {
	switch {
	case n.WiFi.any():
		own := merge(n.WiFi.node, nil)
		if n.WiFi.node.Kind != yaml.MappingNode {
			own = n.WiFi.node // a fault that the decoder names
		}
		if c := value(f.WiFi.node, "country"); c != nil && value(own, "country") == nil {
			set(own, own, c, "country")
		}
		return own
	case n.WiFi.node != nil, !f.WiFi.any(), value(n.Config.node, "network", "interfaces") != nil:
		return nil
	}
	return f.WiFi.node
}

// iface is the list of one interface that an address or a wireless network means.
func (f *Fleet) iface(n *Node, place, wifi *yaml.Node) *yaml.Node {
	one := &yaml.Node{Kind: yaml.MappingNode, Line: place.Line, Column: place.Column}
	card := "eth0"
	if wifi != nil {
		card = "wlan0"
	}
	if n.MAC != "" {
		set(one, place, text(n.MAC, value(place, "mac")), "mac")
	} else {
		set(one, place, text(cmp.Or(n.Interface, f.Interface, card), place), "name")
	}
	if wifi != nil {
		set(one, place, wifi, "wifi")
	}
	address := value(place, "address")
	if n.Address == "" {
		set(one, place, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true", Line: place.Line, Column: place.Column}, "dhcp4")
		return &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{one}, Line: place.Line, Column: place.Column}
	}
	set(one, place, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{text(n.Address, address)}, Line: address.Line, Column: address.Column}, "addresses")
	if gw := cmp.Or(n.Gateway, f.Gateway); gw != "" {
		from := value(place, "gateway")
		if from == nil {
			from = address
		}
		set(one, place, text(gw, from), "gateway")
	}
	return &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{one}, Line: address.Line, Column: address.Column}
}

// What follows handles YAML mappings: keys and values in turn.

func text(s string, place *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Line: place.Line, Column: place.Column}
}

func pairs(n *yaml.Node, each func(k, v *yaml.Node)) {
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		each(n.Content[i], n.Content[i+1])
	}
}

// value is what path leads to, or nil.
func value(n *yaml.Node, path ...string) *yaml.Node {
	for _, p := range path {
		var next *yaml.Node
		pairs(n, func(k, v *yaml.Node) {
			if k.Value == p && next == nil {
				next = v
			}
		})
		if n = next; n == nil {
			return nil
		}
	}
	return n
}

// set puts v where path leads, and makes what is missing on the way.
func set(n, place, v *yaml.Node, path ...string) {
	for i, p := range path {
		last := i == len(path)-1
		at := -1
		for j := 0; j+1 < len(n.Content); j += 2 {
			if n.Content[j].Value == p {
				at = j + 1
			}
		}
		switch {
		case at < 0 && last:
			n.Content = append(n.Content, text(p, place), v)
		case at < 0:
			next := &yaml.Node{Kind: yaml.MappingNode, Line: place.Line, Column: place.Column}
			n.Content = append(n.Content, text(p, place), next)
			n = next
		case last:
			n.Content[at] = v
		default:
			if n.Content[at].Kind != yaml.MappingNode {
				return // a fault that the decoder names
			}
			n = n.Content[at]
		}
	}
}

func remove(n *yaml.Node, key string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			return
		}
	}
}

// extend is a list with more behind it.
func extend(list, more *yaml.Node) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode, Line: more.Line, Column: more.Column}
	if list != nil && list.Kind == yaml.SequenceNode {
		out.Content = append(out.Content, list.Content...)
	}
	out.Content = append(out.Content, more.Content...)
	return out
}

// merge is a new mapping: base with over in its place, key by key and as deep as both are mappings. A key that over has twice
// stays twice, for the decoder to name.
func merge(base, over *yaml.Node) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	if over != nil {
		out.Line, out.Column = over.Line, over.Column
	} else if base != nil {
		out.Line, out.Column = base.Line, base.Column
	}
	pairs(base, func(k, v *yaml.Node) {
		o := value(over, k.Value)
		switch {
		case o == nil && v.Kind == yaml.MappingNode:
			out.Content = append(out.Content, k, merge(v, nil))
		case o == nil:
			out.Content = append(out.Content, k, v)
		case v.Kind == yaml.MappingNode && o.Kind == yaml.MappingNode:
			out.Content = append(out.Content, k, merge(v, o))
		}
	})
	pairs(over, func(k, v *yaml.Node) {
		if b := value(base, k.Value); b != nil && b.Kind == yaml.MappingNode && v.Kind == yaml.MappingNode && v == value(over, k.Value) {
			return // merged above
		}
		if v.Kind == yaml.MappingNode {
			v = merge(v, nil)
		}
		out.Content = append(out.Content, k, v)
	})
	return out
}

// plain is a copy without comments and in the form of blocks, for the file on the card.
func plain(n *yaml.Node) *yaml.Node {
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style &^ (yaml.FlowStyle | yaml.TaggedStyle)}
	for _, c := range n.Content {
		out.Content = append(out.Content, plain(c))
	}
	return out
}
