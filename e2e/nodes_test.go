package e2e

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/e2e/nodes"
)

var inSpaces = flag.Bool("nodes", false, "run several nodes in namespaces of this host; needs root and programs in -out")

// newWire is where the tests of several nodes begin.
func newWire(t *testing.T) *nodes.Network {
	t.Helper()
	if !*inSpaces {
		t.Skip("runs several skerryd on this host as root: add -nodes (or run make test)")
	}
	return nodes.New(t, filepath.Dir(built(t, "amd64/usr/bin/skerryd")))
}

// The wire carries a server: Ready, killed, back, and off again with everything it ran.
func TestNodesServer(t *testing.T) {
	w := newWire(t)
	s := w.Node("s1")
	s.Start("server")
	t.Logf("Ready %v after the first start", s.Ready())
	s.ReadyInAPI(s)
	s.Kill()
	s.Start("server")
	t.Logf("Ready %v after a kill", s.Ready())
	s.PullThePlug()
	s.PowerOn()
	s.Start("server")
	t.Logf("Ready %v after the plug was pulled", s.Ready())
	s.Stop()
}
