package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/e2e/nodes"
)

// holds runs a pod on the node and returns a question: is it the same container still, and does the API reach into it?
func holds(s, n *nodes.Node) func(when string) {
	s.Eventually("the service account is there", func() (bool, string) {
		out, err := s.Try("", "get", "serviceaccount", "default", "-o", "name")
		return err == nil, out
	})
	s.Apply(holderOn(n))
	s.Becomes("true", "get", "pod", "on-"+n.Name, "-o", "jsonpath={.status.containerStatuses[0].ready}")
	first := s.Kubectl("get", "pod", "on-"+n.Name, "-o", podIdentity)
	return func(when string) {
		s.Eventually("the pod on "+n.Name+" lives on, "+when, func() (bool, string) {
			out, err := s.Try("", "get", "pod", "on-"+n.Name, "-o", podIdentity)
			return err == nil && out == first, fmt.Sprint(out, err)
		})
		s.Eventually("exec on "+n.Name+", "+when, func() (bool, string) {
			out, err := s.Try("", "exec", "on-"+n.Name, "--", "/skerry-addons", "coredns", "-version")
			return err == nil && strings.Contains(out, "CoreDNS"), fmt.Sprint(out, err)
		})
	}
}

// event waits for one with the reason.
func event(s *nodes.Node, reason string) {
	s.Eventually("an event "+reason, func() (bool, string) {
		out, err := s.Try("", "get", "events", "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		return err == nil && strings.Contains("\n"+out, "\n"+reason+": "), fmt.Sprint(out, err)
	})
}

// The cluster's authorities are replaced: a server and an agent that run follow, an agent that is off when it is back, pods live on.
func TestNodesRotateCA(t *testing.T) {
	w := newWire(t)
	s, a, off := w.Node("s1"), w.Node("a1"), w.Node("a2")
	s.Start("server")
	s.Ready()
	old := s.Token()
	join := []string{"--server", s.URL()}
	a.Start("agent", append(join, "--token", old)...)
	off.Start("agent", append(join, "--token", old)...)
	a.Ready()
	off.Ready()
	s.ReadyInAPI(s, a, off)
	lives := []func(string){holds(s, s), holds(s, a)}
	off.Stop()

	rotate := func(want int, says string, flags ...string) {
		t.Helper()
		code, out := s.Skerryd(append([]string{"certificate", "rotate-ca", "--data-dir", s.DataDir()}, flags...)...)
		if code != want || !strings.Contains(out, says) {
			t.Fatalf("rotate-ca %v: %d %s", flags, code, out)
		}
	}
	status := func(says string) {
		t.Helper()
		s.Eventually("the rotation is as far as "+says, func() (bool, string) {
			_, out := s.Skerryd("certificate", "rotate-ca", "--status", "--data-dir", s.DataDir())
			return strings.Contains(out, says), out
		})
	}
	rotate(1, "no rotation is under way", "--finish")
	rotate(0, "new authorities are made")
	rotate(1, "is not finished")
	says(s, "the cluster's authorities have changed")
	says(a, "the cluster's authorities have changed")
	status("not yet followed: a2")
	rotate(1, "a2: still with certificates of the old authority", "--finish")
	for _, live := range lives {
		live("after the rotation")
	}
	event(s, "AuthoritiesRotated")
	if s.Token() == old {
		t.Error("new tokens name the old authority")
	}
	late := w.Node("a3")
	late.Start("agent", append(join, "--token", old)...)
	t.Logf("an agent with a token of the old authority Ready after %v", late.Ready())

	off.Start("agent", join...) // without a token
	t.Logf("Ready %v after it was off during the rotation", off.Ready())
	s.ReadyInAPI(s, a, off, late)
	status("all nodes have followed")
	rotate(0, "forgotten", "--finish")
	one := func(n *nodes.Node) {
		n.Eventually("one authority is left", func() (bool, string) {
			ca, err := os.ReadFile(filepath.Join(n.DataDir(), "agent/server-ca.crt"))
			return err == nil && strings.Count(string(ca), "BEGIN") == 1, fmt.Sprint(err)
		})
	}
	for _, n := range []*nodes.Node{s, a, off, late} {
		one(n)
	}
	for _, live := range lives {
		live("after the end of the rotation")
	}
	s.ReadyInAPI(s, a, off, late)
	status("no rotation is under way")
	last := w.Node("a4")
	if code, out := last.Skerryd("agent", "--data-dir", last.DataDir(), "--node-name", last.Name, "--server", s.URL(), "--token", old); code == 0 || !strings.Contains(out, "has had a new CA since") {
		t.Errorf("a token of the old authority: %d %s", code, out)
	}
	last.Start("agent", append(join, "--token", s.Token())...)
	last.Ready()
	for _, n := range []*nodes.Node{s, a, off, late} {
		n.Stop()
	}
}

// Somebody deletes the Node of a server and of an agent that run: each says so, registers again, and keeps its pods.
func TestNodesDeleted(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	s.Start("server")
	s.Ready()
	a.Start("agent", "--server", s.URL(), "--token", s.Token())
	a.Ready()
	s.ReadyInAPI(s, a)
	for _, n := range []*nodes.Node{a, s} {
		uid := s.Kubectl("get", "node", n.Name, "-o", "jsonpath={.metadata.uid}")
		s.Kubectl("delete", "node", n.Name, "--wait=false")
		says(n, "somebody deleted node "+n.Name)
		s.Eventually("it is back", func() (bool, string) {
			now, err := s.Try("", "get", "node", n.Name, "-o", "jsonpath={.metadata.uid}")
			return err == nil && now != "" && now != uid, fmt.Sprint(now, err)
		})
		event(s, "NodeDeleted")
		s.ReadyInAPI(n)
		if !n.Running() {
			t.Errorf("%s: skerryd has ended", n.Name)
		}
	}
	holds(s, s)("with a Node of its own again")
	holds(s, a)("with a Node of its own again")

	// The settings that all nodes share change at the server: the agent follows.
	s.Stop()
	s.Start("server", "--disable", "ingress", "--disable", "local-storage")
	s.Ready()
	says(a, "the cluster's settings have changed")
	s.ReadyInAPI(s, a)

	// A node that was removed for good does not come back by itself, and what it holds opens nothing.
	opens := func(use string) error {
		_, err := s.Try("", "--kubeconfig", filepath.Join(a.DataDir(), "agent", use+".kubeconfig"), "--server", s.URL(), "get", "services")
		return err
	}
	for _, use := range []string{"kubelet", "kube-proxy"} {
		if err := opens(use); err != nil {
			t.Errorf("the certificate of %s before the removal: %v", use, err)
		}
	}
	if code, out := s.Skerryd("node", "remove", "a1", "--data-dir", s.DataDir()); code != 0 {
		t.Fatalf("remove: %d %s", code, out)
	}
	if code := a.Exited(); code == 0 || !strings.Contains(a.Log(), "node a1 was removed from the cluster") {
		t.Errorf("a removed node: %d\n%s", code, a.Tail(2000))
	}
	for _, use := range []string{"kubelet", "kube-proxy"} {
		if err := opens(use); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
			t.Errorf("the certificate of %s after the removal: %v", use, err)
		}
	}
	s.Stop()
}

// What a person gets wrong is one line that says what to do. Where waiting may help, skerryd waits; nothing is lost meanwhile.
func TestNodesBadInput(t *testing.T) {
	w := newWire(t)
	s, n := w.Node("s1"), w.Node("n1")
	refused := func(n *nodes.Node, code int, want []string, args ...string) {
		t.Helper()
		got, out := n.Skerryd(args...)
		_, last, found := strings.Cut("\n"+out, "\nskerryd: ")
		if got != code || !found || strings.Contains(strings.TrimSpace(last), "\n") {
			t.Errorf("%v: ended with %d: %s", args, got, out)
		}
		for _, part := range want {
			if !strings.Contains(last, part) {
				t.Errorf("%v: says %q, which lacks %q", args, last, part)
			}
		}
	}

	file := filepath.Join(n.DataDir(), "server/db/state.db")
	damaged := []byte("SQLite format 3\x00 and then something else")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(n, 1, []string{"state.db", "is damaged", "skerryd snapshot restore"}, "server", "--data-dir", n.DataDir())
	if now, err := os.ReadFile(file); err != nil || string(now) != string(damaged) {
		t.Errorf("the damaged file: %q %v", now, err)
	}
	refused(n, 2, []string{"--datastore-endpoint", "postgres://"}, "server", "--datastore-endpoint", "oracle://db.example", "--data-dir", n.DataDir())
	refused(n, 2, []string{`"corends" is not a component`, "coredns"}, "server", "--disable", "corends", "--data-dir", n.DataDir())
	n.Reflash()

	n.Start("server", "--datastore-endpoint", "postgres://user:s3cret@"+nodes.Gateway.String()+":5432/cluster")
	says(n, "waiting for the datastore: it cannot be reached")
	n.Interrupt()
	if strings.Contains(n.Log(), "s3cret") {
		t.Error("the log shows the datastore's password")
	}
	n.Reflash()

	n.Start("agent", "--server", s.URL(), "--token", "a-token-of-my-own")
	says(n, "joining is tried again until it works")
	n.Interrupt()
	s.Start("server")
	s.Ready()
	manifest := filepath.Join(s.DataDir(), "server/manifests/mine.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Eventually("an event of the manifest", func() (bool, string) {
		out, err := s.Try("", "get", "events", "-A", "-o", "jsonpath={.items[*].message}")
		return err == nil && strings.Contains(out, "mine.yaml"), fmt.Sprint(out, err)
	})
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, namespace: default}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Becomes("mine", "get", "configmap", "mine", "-o", "jsonpath={.metadata.name}")
	refused(s, 1, []string{`"corends" is not a component`}, "disable", "corends", "--kubeconfig", s.Kubeconfig())

	other := w.Node("s2")
	other.Start("server")
	other.Ready()
	refused(n, 1, []string{"belongs to another cluster than the token"}, "agent", "--node-name", "n1", "--data-dir", n.DataDir(), "--server", s.URL(), "--token", other.Token())
	refused(n, 1, []string{"the token is not this cluster's", "skerryd token create"}, "agent", "--node-name", "n1", "--data-dir", n.DataDir(), "--server", s.URL(), "--token", "a-token-of-somebody")
	event(s, "JoinRefused")
	other.Stop()
	s.Stop()
}

// The same with three servers that share an etcd, whose authorities are replaced too: they take turns, so that most of them are there
// at any time, and whoever comes in the middle belongs to it.
func TestNodesRotateCAOfServers(t *testing.T) {
	w := newWire(t)
	s1 := w.Node("s1")
	s1.Start("server", "--cluster-init")
	s1.Ready()
	servers := []*nodes.Node{s1}
	more := func(name string) *nodes.Node {
		s := w.Node(name)
		s.Start("server", "--server", s1.URL(), "--token", s1.Token())
		s.Ready()
		servers = append(servers, s)
		return s
	}
	more("s2")
	more("s3")
	s1.ReadyInAPI(servers...)
	works := func(when string) {
		t.Helper()
		for _, s := range servers {
			s.Eventually("a write, "+when, func() (bool, string) {
				out, err := s.Try("", "create", "configmap", strings.ReplaceAll(when, " ", "-")+"-"+s.Name, "--from-literal=k=v")
				return err == nil || strings.Contains(err.Error(), "already exists"), fmt.Sprint(out, err)
			})
		}
		s1.ReadyInAPI(servers...)
	}
	step := func(says string, flags ...string) {
		t.Helper()
		if code, out := s1.Skerryd(append([]string{"certificate", "rotate-ca", "--data-dir", s1.DataDir()}, flags...)...); code != 0 {
			t.Fatalf("rotate-ca %v: %d %s", flags, code, out)
		}
		servers[len(servers)-1].Eventually("the rotation is as far as "+says, func() (bool, string) {
			s := servers[len(servers)-1]
			_, out := s.Skerryd("certificate", "rotate-ca", "--status", "--data-dir", s.DataDir())
			return strings.Contains(out, says) && !strings.Contains(out, "its turn"), out
		})
	}
	step("all nodes have followed")
	works("after the rotation")
	for _, s := range servers {
		if strings.Count(s.Log(), "everything is started anew") != 1 || !s.Running() {
			t.Errorf("%s did not start anew once\n%s", s.Name, s.Tail(3000))
		}
	}
	more("s4")
	works("with one more")
	step("no rotation is under way", "--finish")
	for _, s := range servers {
		s.Eventually("one authority of etcd is left", func() (bool, string) {
			ca, err := os.ReadFile(filepath.Join(s.DataDir(), "server/tls/etcd-peer-ca.crt"))
			return err == nil && strings.Count(string(ca), "BEGIN") == 1, fmt.Sprint(err)
		})
	}
	works("after the end")
	s1.Kill()
	servers = servers[1:]
	servers[0].Eventually("the others go on", func() (bool, string) {
		out, err := servers[0].Try("", "create", "configmap", "without-the-first", "--from-literal=k=v")
		return err == nil || strings.Contains(err.Error(), "already exists"), fmt.Sprint(out, err)
	})
}
