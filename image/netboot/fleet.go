package netboot

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/token"
)

// Fleet knows machines and what is to become of them.
type Fleet interface {
	// Find gives the node that a machine is. ok is false for a machine nobody has named.
	Find(c Claim) (n Node, ok bool, err error)
	// BySaying tells whether a node is known by what its machine says of itself alone, so that an unknown machine has to be
	// started to learn whether it is that.
	BySaying() bool
}

// Claim is what is known of a machine that asks who it is. MAC is what its packets come from. All else it says itself, and
// whoever is on the network can say the same.
type Claim struct {
	MAC    string
	Cards  []string // addresses of all its cards
	Serial string   // "" when it has none
	UUID   string
	Early  bool // it has said nothing yet: it asks for a boot file
}

// Node is what a machine is to be.
type Node struct {
	Key    string            // tells it from the fleet's others
	Name   string            // for people
	Said   string            // by what the machine was found, if it only said so: "serial S-2"; "" if it asks by the node's MAC
	Board  string            // "": the one that the installer was made for
	File   string            // of the config, for messages
	Config []byte            // the node config
	Beside map[string][]byte // what else stands on its config partition
}

// Folder is the plainest fleet: a folder of node configs named after machines, as 52-54-00-12-34-56.yaml (or with colons),
// SERIAL.yaml or UUID.yaml. It is read at each question: what is put there holds from then on.
type Folder string

// names lists the files that are named after machines, without their ending.
func (f Folder) names() ([]string, error) {
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok && name != "" && !strings.HasPrefix(name, ".") {
			out = append(out, name)
		}
	}
	return out, nil
}

// Check reads all configs and joins their faults.
func (f Folder) Check() error {
	names, err := f.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		_, err := machine.Load(filepath.Join(string(f), name+".yaml"))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Advice lists what is worth a thought in the configs.
func (f Folder) Advice() (out []string) {
	names, _ := f.names()
	for _, name := range names {
		c, err := machine.Load(filepath.Join(string(f), name+".yaml"))
		if err != nil {
			continue // said when it is used
		}
		if text := advice(name+".yaml", c); text != "" {
			out = append(out, text)
		}
	}
	return out
}

// advice warns of a config whose token opens the cluster to whoever sees it, and not to its machine alone.
func advice(file string, c *machine.Config) string {
	t, err := token.Parse(c.Cluster.Token)
	if c.Cluster.Server == "" || err != nil || token.ID(t.Secret) != "" {
		return "" // no node that joins, or a token that was made for some
	}
	more := ""
	if c.Role == machine.RoleServer {
		more = " --server"
	}
	return fmt.Sprintf("%s: its token is the cluster's own, by which whoever sees it joins any machine, again and again; make one for this node: skerryd token create --node %s%s",
		file, cmp.Or(c.Hostname, "NAME"), more)
}

// BySaying looks for a name that is no MAC address.
func (f Folder) BySaying() bool {
	names, err := f.names()
	return err == nil && slices.ContainsFunc(names, func(name string) bool { _, mac := NormalMAC(name); return !mac })
}

// Find looks for the file: first one that is named after the MAC address that the machine asks by.
func (f Folder) Find(c Claim) (Node, bool, error) {
	names, err := f.names()
	if err != nil {
		return Node{}, false, err
	}
	best, said, rank := "", "", 4
	for _, name := range names {
		r, by := 4, ""
		if mac, ok := NormalMAC(name); ok {
			switch {
			case mac == c.MAC:
				r = 0
			case slices.Contains(c.Cards, mac):
				r, by = 1, "network card "+mac
			}
		} else if c.Serial != "" && name == c.Serial {
			r, by = 2, "serial "+name
		} else if c.UUID != "" && strings.EqualFold(name, c.UUID) {
			r, by = 3, "UUID "+name
		}
		if r < rank {
			best, said, rank = name, by, r
		}
	}
	if best == "" {
		return Node{}, false, nil
	}
	file := filepath.Join(string(f), best+".yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		return Node{}, false, err
	}
	config, err := machine.Decode(file, data)
	if err != nil {
		return Node{}, false, fmt.Errorf("%w (the machine waits until it is right)", err)
	}
	return Node{Key: best, Name: cmp.Or(config.Hostname, best), Said: said, File: file, Config: data}, true, nil
}

// Nodes is a fleet's file. Machines are found by their nodes' mac or serial.
type Nodes struct {
	fleet  *fleet.Fleet
	config func(*fleet.Node) (image.Config, error)
}

// OpenNodes opens a fleet's file; secrets that are missing are made.
func OpenNodes(f *fleet.Fleet, o fleet.Options) (*Nodes, error) {
	config, err := fleet.Configs(f, o)
	if err != nil {
		return nil, err
	}
	for i := range f.Nodes {
		if n := &f.Nodes[i]; n.MAC == "" && n.Serial == "" {
			return nil, fmt.Errorf("node %s: has neither mac nor serial; by one of them its machine is known", n.Name)
		}
	}
	return &Nodes{f, config}, nil
}

// BySaying looks for a node without a MAC address.
func (f *Nodes) BySaying() bool {
	return slices.ContainsFunc(f.fleet.Nodes, func(n fleet.Node) bool { return n.MAC == "" })
}

// Find looks through the nodes. One that has a mac and a serial is the machine that has both.
func (f *Nodes) Find(c Claim) (Node, bool, error) {
	var found *fleet.Node
	said, near := "", error(nil)
	for i := range f.fleet.Nodes {
		n := &f.fleet.Nodes[i]
		mac, _ := NormalMAC(n.MAC)
		asks, card := mac != "" && mac == c.MAC, mac != "" && slices.Contains(c.Cards, mac)
		serial := n.Serial != "" && strings.EqualFold(n.Serial, c.Serial)
		other := n.Serial != "" && !serial && (!c.Early || c.Serial != "")
		switch {
		case asks && !other:
			return f.node(n, "")
		case asks || card && other:
			near = fmt.Errorf("node %s: has this machine's mac, and another serial than the one it says, %q; put one of them right in the fleet's file", n.Name, c.Serial)
		case serial && mac != "" && !card:
			near = fmt.Errorf("node %s: has this machine's serial, and another mac than %s; put one of them right in the fleet's file", n.Name, c.MAC)
		case found == nil && card:
			found, said = n, "network card "+mac
		case found == nil && serial:
			found, said = n, "serial "+n.Serial
		}
	}
	if found == nil {
		return Node{}, false, near
	}
	return f.node(found, said)
}

func (f *Nodes) node(n *fleet.Node, said string) (Node, bool, error) {
	c, err := f.config(n)
	if err != nil {
		return Node{}, false, err
	}
	out := Node{Key: n.Name, Name: n.Name, Said: said, Board: n.Board, File: n.Name + ".yaml", Config: c.Data, Beside: map[string][]byte{}}
	for _, b := range c.Beside {
		out.Beside[b.Name] = b.Data
	}
	return out, true, nil
}

// Nobody is a fleet without machines: each is approved by hand.
type Nobody struct{}

// Find finds nothing.
func (Nobody) Find(Claim) (Node, bool, error) { return Node{}, false, nil }

// BySaying is false: there is nobody.
func (Nobody) BySaying() bool { return false }
