package netboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Fleet knows machines and what is to become of them.
type Fleet interface {
	// Find gives the node of a machine, by the hardware address it asked by, or by its serial number or SMBIOS UUID where
	// those are known ("" where not). ok is false for a machine nobody has named.
	Find(mac, serial, uuid string) (n Node, ok bool, err error)
}

// Node is what a machine is to be.
type Node struct {
	Name   string            // for people
	Board  string            // "": the one that the installer was made for
	File   string            // of the config, for messages
	Config []byte            // the node config
	Beside map[string][]byte // what else stands on its config partition
}

// Folder is the plainest fleet: a folder of node configs named after machines, as 52-54-00-12-34-56.yaml (or with colons),
// SERIAL.yaml or UUID.yaml. It is read at each question: what is put there holds from then on.
type Folder string

// Check reads all configs and joins their faults.
func (f Folder) Check() error {
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".yaml" {
			_, err := machine.Load(filepath.Join(string(f), e.Name()))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Find looks for the file.
func (f Folder) Find(mac, serial, uuid string) (Node, bool, error) {
	for _, name := range []string{strings.ReplaceAll(mac, ":", "-"), mac, serial, uuid} {
		if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			continue
		}
		file := filepath.Join(string(f), name+".yaml")
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Node{}, false, err
		}
		c, err := machine.Decode(file, data)
		if err != nil {
			return Node{}, false, fmt.Errorf("%w (the machine waits until it is right)", err)
		}
		n := Node{Name: c.Hostname, File: file, Config: data}
		if n.Name == "" {
			n.Name = name
		}
		return n, true, nil
	}
	return Node{}, false, nil
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

// Find looks through the nodes.
func (f *Nodes) Find(mac, serial, _ string) (Node, bool, error) {
	for i := range f.fleet.Nodes {
		n := &f.fleet.Nodes[i]
		own, _ := NormalMAC(n.MAC)
		if own == "" || own != mac {
			if n.Serial == "" || n.Serial != serial {
				continue
			}
		}
		c, err := f.config(n)
		if err != nil {
			return Node{}, false, err
		}
		out := Node{Name: n.Name, Board: n.Board, File: n.Name + ".yaml", Config: c.Data, Beside: map[string][]byte{}}
		for _, b := range c.Beside {
			out.Beside[b.Name] = b.Data
		}
		return out, true, nil
	}
	return Node{}, false, nil
}

// Nobody is a fleet without machines: each is approved by hand.
type Nobody struct{}

// Find finds nothing.
func (Nobody) Find(string, string, string) (Node, bool, error) { return Node{}, false, nil }
