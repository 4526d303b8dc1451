package fleet

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"text/template"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Sketch is what a new fleet's file begins with.
type Sketch struct {
	Name    string
	Board   string
	Servers int
	Agents  int
	Address netip.Prefix // of the first server; the others follow it
	Gateway netip.Addr
}

//go:embed new.yaml.tmpl
var sketch string

var sketched = template.Must(template.New("fleet.yaml").Parse(sketch))

// New writes a commented file for the sketch. What it gives is free of faults.
func New(s Sketch) ([]byte, error) {
	b, err := boards.Load(s.Board)
	if err != nil {
		return nil, err
	}
	type node struct {
		Name    string
		Role    machine.Role
		Address string
	}
	data := struct {
		Sketch
		Arch    string
		Server  string
		Nodes   []node
		Gateway string
	}{Sketch: s, Arch: b.Arch, Server: s.Address.Addr().String(), Gateway: s.Gateway.String()}
	at := s.Address.Addr()
	for i := range s.Servers + s.Agents {
		n := node{Name: fmt.Sprintf("server-%d", i+1), Role: machine.RoleServer}
		if i >= s.Servers {
			n = node{Name: fmt.Sprintf("agent-%d", i-s.Servers+1), Role: machine.RoleAgent}
		} else {
			if !s.Address.Contains(at) {
				return nil, fmt.Errorf("%s: has no room for %d servers' addresses", s.Address, s.Servers)
			}
			n.Address = netip.PrefixFrom(at, s.Address.Bits()).String()
			at = at.Next()
		}
		data.Nodes = append(data.Nodes, n)
	}
	var out bytes.Buffer
	if err := sketched.Execute(&out, data); err != nil {
		return nil, err
	}
	_, err = Decode("fleet.yaml", out.Bytes())
	return out.Bytes(), err
}
