package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
)

// holderOn is a pod of the image that every release has, on one node.
func holderOn(n *nodes.Node) string { return holder(n.Name) }

func holder(node string) string {
	return `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web","namespace":"default"},"data":{"Corefile":".:5353 {\n errors\n}\n"}},
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"on-` + node + `","namespace":"default"},"spec":{"nodeName":"` + node + `","terminationGracePeriodSeconds":0,
"containers":[{"name":"c","image":"skerry.local/addons:1","imagePullPolicy":"Never","args":["coredns","-conf","/etc/coredns/Corefile"],
"volumeMounts":[{"name":"conf","mountPath":"/etc/coredns"}]}],"volumes":[{"name":"conf","configMap":{"name":"web"}}]}}]}`
}

// says waits until a node's log holds a text.
func says(n *nodes.Node, text string) {
	n.Eventually("the log says "+text, func() (bool, string) { return strings.Contains(n.Log(), text), "" })
}

// One server, two agents: all Ready, and the API reaches into pods of each. Then everything that could strand an agent.
func TestNodesJoin(t *testing.T) {
	w := newWire(t)
	s, a, b := w.Node("s1"), w.Node("a1"), w.Node("a2")

	// An agent may be there before its server.
	a.Start("agent", "--server", s.URL(), "--token", "a-token-of-my-own")
	says(a, "joining is tried again until it works")
	s.Start("server", "--token", "a-token-of-my-own")
	t.Logf("server Ready after %v", s.Ready())
	t.Logf("agent with a bare token Ready after %v", a.Ready())
	b.Start("agent", "--server", s.URL(), "--token", s.Token())
	t.Logf("agent with a pinned token Ready after %v", b.Ready())
	s.ReadyInAPI(s, a, b)
	for _, n := range []*nodes.Node{a, b} {
		s.Eventually("the service account is there", func() (bool, string) {
			out, err := s.Try("", "get", "serviceaccount", "default", "-o", "name")
			return err == nil, out
		})
		s.Apply(holderOn(n))
	}
	for _, n := range []*nodes.Node{a, b} {
		s.Becomes("true", "get", "pod", "on-"+n.Name, "-o", "jsonpath={.status.containerStatuses[0].ready}")
		s.Eventually("logs of "+n.Name, func() (bool, string) {
			out, err := s.Try("", "logs", "on-"+n.Name)
			return err == nil && out != "", out
		})
		s.Eventually("exec on "+n.Name, func() (bool, string) {
			out, err := s.Try("", "exec", "on-"+n.Name, "--", "/skerry-addons", "coredns", "-version")
			if err != nil {
				return false, err.Error()
			}
			return strings.Contains(out, "CoreDNS"), out
		})
	}

	t.Run("a token is rotated while a node is off", func(t *testing.T) {
		b.Stop()
		if code, out := s.Skerryd("token", "rotate", "--data-dir", s.DataDir(), "--overlap", "0s"); code != 0 {
			t.Fatalf("rotate: %d %s", code, out)
		}
		b.Start("agent", "--server", s.URL(), "--token", "a-token-of-my-own") // what its settings say is no token any more
		t.Logf("Ready %v after its token was rotated away", b.Ready())
	})
	t.Run("wrong tokens", func(t *testing.T) {
		n := w.Node("a3")
		other := "K10" + strings.Repeat("0", 64) + "::server:a-token-of-my-own"
		for token, want := range map[string]string{
			"a-token-of-my-own":    "the token is not this cluster's",
			other:                  "belongs to another cluster than the token",
			s.Token()[:70]:         "cut or mistyped",
			"K10" + s.Token()[10:]: "cut or mistyped",
		} {
			code, out := n.Skerryd("agent", "--data-dir", n.DataDir(), "--node-name", n.Name, "--server", s.URL(), "--token", token)
			if code == 0 || !strings.Contains(out, want) {
				t.Errorf("token %.20s…: %d %s", token, code, out)
			}
		}
		create := func(flags ...string) string {
			t.Helper()
			code, out := s.Skerryd(append([]string{"token", "create", "--data-dir", s.DataDir()}, flags...)...)
			if code != 0 {
				t.Fatalf("token create: %d %s", code, out)
			}
			return strings.TrimSpace(out)
		}
		short := create("--ttl", "1s")
		n.Eventually("the token expires", func() (bool, string) {
			_, out := s.Skerryd("token", "list", "--data-dir", s.DataDir())
			return strings.Contains(out, "ended"), out
		})
		if code, out := n.Skerryd("agent", "--data-dir", n.DataDir(), "--node-name", n.Name, "--server", s.URL(), "--token", short); code == 0 || !strings.Contains(out, "expired on") {
			t.Errorf("an expired token: %d %s", code, out)
		}
		once := create("--single-use", "--description", "for a3")
		n.Start("agent", "--server", s.URL(), "--token", once)
		n.Ready()
		m := w.Node("a4")
		code, out := m.Skerryd("agent", "--data-dir", m.DataDir(), "--node-name", m.Name, "--server", s.URL(), "--token", once)
		if code == 0 || !strings.Contains(out, "another has used it") {
			t.Errorf("a single-use token, a second time: %d %s", code, out)
		}
		n.Stop()
	})
	t.Run("a name belongs to one machine", func(t *testing.T) {
		token := s.Token()
		d := w.Node("d1")
		d.Start("agent", "--server", s.URL(), "--token", token, "--node-name", a.Name)
		says(d, "the node name a1 belongs to machine")
		says(d, "which is alive")
		s.ReadyInAPI(a)
		d.Interrupt()

		b.Reflash()
		b.Start("agent", "--server", s.URL(), "--token", token)
		says(b, "run skerryd node approve a2")
		if code, out := s.Skerryd("node", "approve", "a2", "--data-dir", s.DataDir()); code != 0 {
			t.Fatalf("approve: %d %s", code, out)
		}
		t.Logf("Ready %v after it was flashed", b.Ready())
		s.ReadyInAPI(b)
	})
	for _, n := range []*nodes.Node{a, b} {
		if info, err := os.Stat(filepath.Join(n.DataDir(), "agent", "join.json")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: join.json: %v %v", n.Name, info, err)
		}
		n.Stop()
	}
	s.Stop()
}

// Certificates that live for minutes, and a server whose address changes: what runs goes on, without a restart for the first,
// and after one by itself for the second.
func TestNodesRenewAndMove(t *testing.T) {
	w := newWire(t)
	s, a, off := w.Node("s1"), w.Node("a1"), w.Node("a2")
	server := func() { s.Start("server", "--certificate-lifetime", "3m", "--tls-san", "api.test") }
	join := []string{"--server", s.URL()}
	server()
	s.Ready()
	a.Start("agent", append(join, "--token", s.Token())...)
	off.Start("agent", append(join, "--token", s.Token())...)
	a.Ready()
	off.Ready()
	off.Stop()
	first, err := os.ReadFile(filepath.Join(a.DataDir(), "agent", "join.json"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, n := range []*nodes.Node{s, a} {
		if code, out := n.Skerryd("certificate", "check", "--data-dir", n.DataDir()); code != 0 || !strings.Contains(out, "system:node:"+n.Name) {
			t.Errorf("certificate check on %s: %d %s", n.Name, code, out)
		}
	}
	s.Within(nodes.Patience, "the certificates of the start have ended", func() (bool, string) { return time.Since(began) > 200*time.Second, "" })
	now, err := os.ReadFile(filepath.Join(a.DataDir(), "agent", "join.json"))
	if err != nil || string(now) == string(first) || !a.Running() || !s.Running() {
		t.Fatalf("after the certificates' life: renewed %v, running %v %v, %v", string(now) != string(first), a.Running(), s.Running(), err)
	}
	if code, out := off.Skerryd("certificate", "check", "--data-dir", off.DataDir()); code == 0 || !strings.Contains(out, "ended on") {
		t.Errorf("certificate check of a node that was off: %d %s", code, out)
	}
	// A node that says something new with its certificate, and an administrator who does.
	lease := s.Kubectl("-n", "kube-node-lease", "get", "lease", "a1", "-o", "jsonpath={.spec.renewTime}")
	s.Eventually("a1's kubelet reports with a renewed certificate", func() (bool, string) {
		out, err := s.Try("", "-n", "kube-node-lease", "get", "lease", "a1", "-o", "jsonpath={.spec.renewTime}")
		return err == nil && out != lease, out
	})
	off.Start("agent", join...) // without a token
	t.Logf("Ready %v after its certificates had ended", off.Ready())
	s.ReadyInAPI(s, a, off)
}

// The address of the only server changes while it runs. One agent was given a name that leads to it, another the address that it
// had: that one looks around.
func TestNodesServerMoves(t *testing.T) {
	w := newWire(t)
	s, a, byIP := w.Node("s1"), w.Node("a1"), w.Node("a2")
	hosts := filepath.Join(a.Dir, "hosts")
	lead := func() {
		t.Helper()
		if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"+s.IP.String()+" api.test\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lead()
	if out, err := a.Command(t.Context(), "mount", "--bind", hosts, "/etc/hosts").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Start("server")
	s.Ready()
	a.Start("agent", "--server", "https://api.test:6443", "--token", s.Token())
	a.Ready()
	byIP.Start("agent", "--server", s.URL(), "--token", s.Token())
	byIP.Ready()
	s.SetIP(netip.MustParseAddr("10.98.0.99"))
	lead()
	says(s, "this machine's address has changed; starting again")
	s.Becomes("10.98.0.99", "get", "node", "s1", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	s.Becomes("10.98.0.99", "get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
	says(a, "10.98.0.99:6443")
	says(byIP, "10.98.0.99:6443")
	s.ReadyInAPI(s, a, byIP)
}
