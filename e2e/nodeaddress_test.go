package e2e

import "testing"

// A node whose address is another outside says so, is not taken for one that a cloud has yet to look at, and comes back after it was
// deleted, without kube-proxy too.
func TestNodesExternalAddress(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	flags := []string{"--node-external-ip", "203.0.113.5", "--disable-kube-proxy"}
	s.Start("server", append(flags, "--disable", "ingress,metrics-server,local-storage")...)
	s.Ready()
	a.Start("agent", "--server", s.URL(), "--token", s.Token(), "--node-external-ip", "203.0.113.6")
	a.Ready()
	s.ReadyInAPI(s, a)
	seen := func(name, external string) {
		t.Helper()
		s.Becomes(external, "get", "node", name, "-o", `jsonpath={.status.addresses[?(@.type=="ExternalIP")].address}`)
		s.Becomes("", "get", "node", name, "-o", "jsonpath={.spec.taints}")
		s.Becomes("True", "get", "node", name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	}
	seen("s1", "203.0.113.5")
	seen("a1", "203.0.113.6")
	for name, external := range map[string]string{"s1": "203.0.113.5", "a1": "203.0.113.6"} {
		uid := s.Kubectl("get", "node", name, "-o", "jsonpath={.metadata.uid}")
		s.Kubectl("delete", "node", name, "--wait=false")
		s.Eventually(name+" registers again", func() (bool, string) {
			now, err := s.Try("", "get", "node", name, "-o", "jsonpath={.metadata.uid}")
			return err == nil && now != uid && now != "", now
		})
		seen(name, external)
	}
}
