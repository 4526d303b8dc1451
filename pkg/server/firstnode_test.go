package server

import (
	"fmt"
	"testing"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
)

// The first node has what the controller manager would give it, and what kubelet would have said of it; whoever decides one of
// these things elsewhere is not interfered with.
func TestFirstNode(t *testing.T) {
	of := func(change func(*machine.Server)) *firstNode {
		s := machine.DefaultServer()
		s.NodeLabel, s.NodeTaint = []string{"zone=north"}, []string{"dedicated=db:NoSchedule"}
		change(&s)
		f := newFirstNode(Config{Settings: s, NodeName: "north-1", Files: &pki.Files{}}, datastore.SQLite)
		return &f
	}
	n := of(func(s *machine.Server) {
		s.ClusterCIDR = "10.42.0.0/16, fd00:42::/56"
		s.KubeletArg = []string{"max-pods=50", "provider-id=gone", "provider-id=aws:///eu-central-1b/i-0a1b"}
	}).node
	if n == nil || fmt.Sprintln(n.Spec.PodCIDR, n.Spec.PodCIDRs) != "10.42.0.0/24 [10.42.0.0/24 fd00:42::/64]\n" || n.Labels["zone"] != "north" || n.Spec.ProviderID != "aws:///eu-central-1b/i-0a1b" ||
		len(n.Spec.Taints) != 1 || n.Spec.Taints[0].ToString() != "dedicated=db:NoSchedule" {
		t.Errorf("node is %+v", n)
	}
	for name, change := range map[string]func(*machine.Server){
		"joins a server":         func(s *machine.Server) { s.Server = "https://192.0.2.1:6443" },
		"shared datastore":       func(s *machine.Server) { s.DatastoreEndpoint = "postgres://db/skerry" },
		"networks of other size": func(s *machine.Server) { s.KubeControllerManagerArg = []string{"node-cidr-mask-size=26"} },
		"too small":              func(s *machine.Server) { s.ClusterCIDR = "10.42.0.0/25" },
		"own taints":             func(s *machine.Server) { s.KubeletArg = []string{"register-with-taints=a=b:NoExecute"} },
		"another name":           func(s *machine.Server) { s.KubeletArg = []string{"hostname-override=other"} },
		"a cloud's controllers":  func(s *machine.Server) { s.KubeletArg = []string{"cloud-provider=external"} },
		"does not register":      func(s *machine.Server) { s.KubeletArg = []string{"register-node=false"} },
	} {
		if f := of(change); f.node != nil {
			t.Errorf("%s: node is %+v", name, f.node)
		}
	}
}
