package fleet

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"text/template"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Sketch is what a new fleet's file begins with.
type Sketch struct {
	Name    string
	Boards  []Batch // the servers are the first of them
	Servers int
	Address netip.Prefix // of the first server; the others follow it
	Gateway netip.Addr
}

// Batch is a number of machines of one kind.
type Batch struct {
	Board string
	N     int
}

//go:embed new.yaml.tmpl
var sketch string

var sketched = template.Must(template.New("fleet.yaml").Parse(sketch))

// New writes a commented file for the sketch. What it gives is free of faults.
func New(s Sketch) ([]byte, error) {
	type node struct {
		Name    string
		Board   string
		Role    machine.Role
		Address string
	}
	data := struct {
		Sketch
		Releases map[string]string
		Server   string
		Nodes    []node
		Gateway  string
	}{Sketch: s, Releases: map[string]string{}, Server: s.Address.Addr().String(), Gateway: s.Gateway.String()}
	at := s.Address.Addr()
	var kinds []string // of the machines, in turn
	for _, batch := range s.Boards {
		b, err := boards.Load(batch.Board)
		if err != nil {
			return nil, err
		}
		data.Releases[b.Arch] = ReleaseDir(b.Arch)
		kinds = append(kinds, slices.Repeat([]string{b.ID}, batch.N)...)
	}
	for i, board := range kinds {
		n := node{Name: fmt.Sprintf("server-%d", i+1), Board: board, Role: machine.RoleServer}
		if i >= s.Servers {
			n = node{Name: fmt.Sprintf("agent-%d", i-s.Servers+1), Board: board, Role: machine.RoleAgent}
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
	_, err := Decode("fleet.yaml", out.Bytes())
	return out.Bytes(), err
}

// ReleaseDir is where make puts the release of an architecture.
func ReleaseDir(arch string) string {
	if arch == "amd64" {
		return "out/release"
	}
	return "out/release-" + arch
}
