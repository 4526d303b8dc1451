package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/pkg/datastore/databases"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
)

// Three servers share an etcd, and an agent joined through the first. That one is killed, then another is cut off: the API goes on at
// the others, the agent with it, and both come back. A deleted node's member goes with it.
func TestNodesEtcd(t *testing.T) {
	w := newWire(t)
	s1 := w.Node("s1")
	s1.Start("server", "--cluster-init")
	s1.Ready()
	s2, s3 := w.Node("s2"), w.Node("s3")
	servers := []*nodes.Node{s1, s2, s3}
	s2.Start("server", "--server", s3.URL()+","+s1.URL(), "--token", s1.Token()) // the third is not on yet
	s2.Ready()
	s3.Start("server", "--server", s1.URL(), "--token", s1.Token())
	s3.Ready()
	s1.ReadyInAPI(servers...)
	put := func(at *nodes.Node, name string) {
		t.Helper()
		at.Eventually("a write at "+at.Name, func() (bool, string) {
			out, err := at.Try("", "create", "configmap", name, "--from-literal=k=v")
			return err == nil || strings.Contains(out+fmt.Sprint(err), "already exists"), out
		})
	}
	put(s3, "all-there")
	a := w.Node("a1")
	a.Start("agent", "--server", s1.URL(), "--token", s1.Token())
	a.Ready()
	s1.ReadyInAPI(a)
	a.Eventually("the agent knows all servers", func() (bool, string) {
		var known string
		for _, name := range []string{"join.json", "servers.json"} { // those it was told when it joined, and others that came
			b, _ := os.ReadFile(filepath.Join(a.DataDir(), "agent", name))
			known += string(b)
		}
		return !slices.ContainsFunc(servers, func(s *nodes.Node) bool { return !strings.Contains(known, s.IP.String()+":6443") }), ""
	})
	lives := holds(s2, a)
	pids := []int{s2.PID(), s3.PID(), a.PID()}

	s1.PullThePlug()
	put(s2, "first-killed")
	put(s3, "first-killed-too")
	lives("with the server gone that the agent joined through")
	s2.Eventually("the agent reports to another server", renewed(s2, "a1"))
	// What is elected is elected elsewhere: a Deployment gets its pods.
	s2.Apply(deployment)
	s2.Becomes("1", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	for i, n := range []*nodes.Node{s2, s3, a} {
		if n.PID() != pids[i] || !n.Running() || strings.Contains(n.Log(), "everything is started anew") {
			t.Errorf("%s did not live through it\n%s", n.Name, n.Tail(3000))
		}
	}
	b := w.Node("a2")
	b.Start("agent", "--server", s1.URL()+","+s3.URL(), "--token", s3.Token())
	t.Logf("another agent Ready %v after its first start, through the third server", b.Ready())
	s2.ReadyInAPI(b)
	b.Stop()
	s2.Kubectl("delete", "node", b.Name)
	a.Stop()
	a.Start("agent", "--server", s1.URL()) // which is not there, and no token
	t.Logf("the agent Ready %v after a start without the server it joined through", a.Ready())
	s1.PowerOn()
	s1.Start("server", "--cluster-init")
	s1.Ready()
	s2.ReadyInAPI(s1, s2, s3, a)
	s1.Becomes("first-killed", "get", "configmap", "first-killed", "-o", "jsonpath={.metadata.name}")

	s3.Partition(s1, s2)
	put(s1, "third-cut-off")
	s3.Heal()
	s3.Becomes("third-cut-off", "get", "configmap", "third-cut-off", "-o", "jsonpath={.metadata.name}")

	if code, out := s2.Skerryd("snapshot", "save", "--data-dir", s2.DataDir()); code != 0 || !strings.Contains(out, "on-demand-s2-") {
		t.Errorf("snapshot: %d %s", code, out)
	}
	s3.Stop()
	s1.Kubectl("delete", "node", "s3")
	member := etcd.New(etcd.Config{Dir: filepath.Join(s1.DataDir(), "server/db")})
	s1.Eventually("two members", func() (bool, string) {
		names, err := member.Members(t.Context())
		return len(names) == 2 && !slices.Contains(names, "s3"), fmt.Sprint(names, err)
	})

	// After a failure of the power, the servers are not all back at once: the first waits for the second.
	s1.PullThePlug()
	s2.PullThePlug()
	s1.PowerOn()
	s1.Start("server", "--cluster-init")
	says(s1, "etcd: waiting for the other servers")
	if !s1.Running() {
		t.Fatalf("s1 has ended\n%s", s1.Tail(3000))
	}
	s2.PowerOn()
	s2.Start("server", "--server", s1.URL())
	t.Logf("Ready %v after the second was back", s2.Ready())
	s1.Ready()
	s1.ReadyInAPI(s1, s2)
}

const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"default"},"spec":{"replicas":1,
"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"terminationGracePeriodSeconds":0,
"containers":[{"name":"c","image":"skerry.local/pause:1","imagePullPolicy":"Never"}]}}}}`

// Three servers and an agent are far apart and lose packets: they form a cluster, every write is seen everywhere, and nothing is started
// anew. For the agent it gets worse still.
func TestNodesBadWire(t *testing.T) {
	w := newWire(t)
	s1, s2, s3, a := w.Node("s1"), w.Node("s2"), w.Node("s3"), w.Node("a1")
	servers := []*nodes.Node{s1, s2, s3}
	for _, n := range append(servers, a) {
		n.Lag(15*time.Millisecond, 10*time.Millisecond, 1) // up to 100 ms there and back, and 4 % of round trips
	}
	s1.Start("server", "--cluster-init")
	s1.Ready()
	for _, n := range []*nodes.Node{s2, s3} {
		n.Start("server", "--server", s1.URL(), "--token", s1.Token())
		n.Ready()
	}
	a.Start("agent", "--server", s1.URL(), "--token", s1.Token())
	a.Ready()
	s1.ReadyInAPI(s1, s2, s3, a)
	lives := holds(s2, a)
	for i := range 30 {
		name, at := fmt.Sprintf("n%d", i), servers[i%3]
		at.Eventually("a write at "+at.Name, func() (bool, string) {
			out, err := at.Try("", "create", "configmap", name)
			return err == nil || strings.Contains(out+fmt.Sprint(err), "already exists"), out
		})
		servers[(i+1)%3].Becomes(name, "get", "configmap", name, "-o", "jsonpath={.metadata.name}")
	}
	a.Lag(250*time.Millisecond, 100*time.Millisecond, 5)
	lives("at the end of a very bad wire")
	s3.Eventually("the agent's lease is renewed", renewed(s3, "a1"))
	s3.Apply(holderOn(s3))
	s3.Becomes("true", "get", "pod", "on-s3", "-o", "jsonpath={.status.containerStatuses[0].ready}")
	s1.ReadyInAPI(s1, s2, s3, a)
	for _, n := range append(servers, a) {
		if !n.Running() || strings.Contains(n.Log(), "everything is started anew") {
			t.Errorf("%s did not live through it\n%s", n.Name, n.Tail(3000))
		}
	}
}

// Two of three servers are lost for good. The last is told to go on alone, and others join anew: machines in the old ones' places,
// one of them with its old data.
func TestNodesClusterReset(t *testing.T) {
	w := newWire(t)
	s1, s2, s3 := w.Node("s1"), w.Node("s2"), w.Node("s3")
	s1.Start("server", "--cluster-init")
	s1.Ready()
	join := []string{"--server", s1.URL(), "--token", s1.Token()}
	s2.Start("server", join...)
	s2.Ready()
	s3.Start("server", join...)
	s3.Ready()
	s1.ReadyInAPI(s1, s2, s3)
	lives := holds(s1, s1)
	s1.Kubectl("create", "configmap", "kept", "--from-literal=k=v")
	s2.PullThePlug()
	s3.PullThePlug()
	s1.Eventually("nothing is stored any more", func() (bool, string) {
		out, err := s1.Try("", "create", "configmap", "lost", "--from-literal=k=v", "--request-timeout=5s")
		return err != nil && !strings.Contains(err.Error(), "already exists"), out
	})
	s1.Kill()
	code, out := s1.Skerryd("server", "--cluster-reset", "--data-dir", s1.DataDir(), "--node-name", "s1")
	if code != 0 || !strings.Contains(out, "all other servers are forgotten") {
		t.Fatalf("--cluster-reset: %d %s", code, out)
	}
	s1.Start("server")
	t.Logf("Ready %v after the reset", s1.Ready())
	s1.Becomes("kept", "get", "configmap", "kept", "-o", "jsonpath={.metadata.name}")
	lives("after the reset")
	if code, out := s1.Skerryd("server", "--cluster-reset", "--data-dir", s1.DataDir(), "--node-name", "s1"); code == 0 || !strings.Contains(out, "another skerryd uses this folder") {
		t.Errorf("--cluster-reset beside a server that runs: %d %s", code, out)
	}

	// s2 comes with its old data, and is told; then it joins.
	s2.PowerOn()
	s2.Start("server", join...)
	if code := s2.Exited(); code == 0 || !strings.Contains(s2.Log(), "removed from the cluster; it joins again when it starts with --server") {
		t.Errorf("a server of before the reset: %d\n%s", code, s2.Tail(3000))
	}
	s2.Start("server", join...)
	s2.Ready()
	// s3 is another machine now.
	if code, out := s1.Skerryd("node", "remove", "s3", "--data-dir", s1.DataDir()); code != 0 {
		t.Fatalf("remove: %d %s", code, out)
	}
	s3.PowerOn()
	s3.Reflash()
	s3.Start("server", join...)
	s3.Ready()
	s1.ReadyInAPI(s1, s2, s3)
	s1.Kill()
	s2.Eventually("the others go on without the first", func() (bool, string) {
		out, err := s2.Try("", "create", "configmap", "again", "--from-literal=k=v")
		return err == nil || strings.Contains(err.Error(), "already exists"), fmt.Sprint(out, err)
	})
}

// Two servers and an agent on one PostgreSQL, or one MariaDB. The first server waits for its database; it is lost and the cluster goes on,
// workloads with it; the database is killed, which ends nobody, and everything is as it was when it comes back; a snapshot brings back
// what was.
func TestNodesDatabases(t *testing.T) {
	for kind, newOne := range databases.Kinds {
		t.Run(kind, func(t *testing.T) {
			w := newWire(t)
			db := newOne(t, databases.Place{Address: nodes.Gateway.String(), Command: w.Command})
			s1, s2, a := w.Node("s1"), w.Node("s2"), w.Node("a1")
			s1.Start("server", "--datastore-endpoint", db.URL)
			says(s1, nodes.Gateway.String())
			db.Start()
			s1.Ready()
			join := []string{"--token", s1.Token(), "--datastore-endpoint", db.URL}
			if kind == "postgresql" { // with the other, database and token are enough, as with K3s
				join = append(join, "--server", s1.URL())
			}
			s2.Start("server", join...)
			s2.Ready()
			a.Start("agent", "--server", s1.URL(), "--token", s1.Token())
			a.Ready()
			s1.ReadyInAPI(s1, s2, a)
			s1.Apply(deployment)
			s1.Becomes("1", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
			s2.Kubectl("create", "secret", "generic", "seen", "--from-literal=k=from-s2")
			s1.Becomes("ZnJvbS1zMg==", "get", "secret", "seen", "-o", "jsonpath={.data.k}") // one key encrypts for both
			code, out := s2.Skerryd("snapshot", "save", "--data-dir", s2.DataDir(), "--json")
			var saved struct{ Name string }
			if err := json.Unmarshal([]byte(out), &saved); code != 0 || err != nil {
				t.Fatalf("save: %d %s", code, out)
			}
			s2.Kubectl("create", "configmap", "after")

			s1.PullThePlug()
			lives := holds(s2, a)
			s2.Eventually("the agent's lease is renewed through the other server", renewed(s2, "a1"))
			s2.Eventually("a change is carried out", func() (bool, string) {
				out, err := s2.Try("", "scale", "deployment", "web", "--replicas=2")
				return err == nil, fmt.Sprint(out, err)
			})
			s2.Becomes("2", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")

			pids := []int{s2.PID(), a.PID()}
			db.Kill()
			s2.Eventually("the API says so", func() (bool, string) {
				out, err := s2.Try("", "create", "configmap", "while-down", "--request-timeout=5s")
				return err != nil, out
			})
			db.Start()
			s2.Eventually("it goes on", func() (bool, string) {
				out, err := s2.Try("", "create", "configmap", "back")
				return err == nil || strings.Contains(fmt.Sprint(err), "already exists"), fmt.Sprint(out, err)
			})
			if s2.PID() != pids[0] || a.PID() != pids[1] || !s2.Running() || !a.Running() {
				t.Errorf("skerryd did not live through it\n%s", s2.Tail(3000))
			}
			lives("with its database back")

			s2.Stop()
			if code, out := s2.Skerryd("snapshot", "restore", "--data-dir", s2.DataDir(), saved.Name); code != 0 || !strings.Contains(out, "restored") {
				t.Fatalf("restore: %d %s", code, out)
			}
			s2.Start("server", "--datastore-endpoint", db.URL)
			s2.Ready()
			s2.Becomes("ZnJvbS1zMg==", "get", "secret", "seen", "-o", "jsonpath={.data.k}")
			if out, err := s2.Try("", "get", "configmap", "after", "-o", "name"); err == nil {
				t.Errorf("what was written after the snapshot is there: %s", out)
			}
			s2.ReadyInAPI(s2, a)
		})
	}
}

// renewed says whether a node's lease is renewed, beginning now.
func renewed(at *nodes.Node, node string) func() (bool, string) {
	lease := func() string {
		out, _ := at.Try("", "-n", "kube-node-lease", "get", "lease", node, "-o", "jsonpath={.spec.renewTime}")
		return out
	}
	before := lease()
	return func() (bool, string) { now := lease(); return now != "" && now != before, now }
}

// A server loses what it was elected for, and has it again: the scheduler goes on in the same process, for the controller manager
// everything is started anew in order, and nothing that runs notices.
func TestNodesElection(t *testing.T) {
	w := newWire(t)
	s := w.Node("s1")
	s.Start("server", "--cluster-init")
	s.Ready()
	lives := holds(s, s)
	steal := func(lease string) {
		t.Helper()
		s.Eventually("the lease "+lease+" is another's", func() (bool, string) {
			out, err := s.Try("", "-n", "kube-system", "patch", "lease", lease, "--type=merge", "-p",
				fmt.Sprintf(`{"spec":{"holderIdentity":"s9","leaseDurationSeconds":40,"renewTime":%q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")))
			return err == nil, fmt.Sprint(out, err)
		})
		s.Eventually("it is noticed", func() (bool, string) {
			return strings.Contains(s.Log(), "lease lost; another server may do this now") && strings.Contains(s.Log(), "lease="+lease), ""
		})
	}
	steal("skerry-scheduler")
	s.Becomes("s1", "-n", "kube-system", "get", "lease", "skerry-scheduler", "-o", "jsonpath={.spec.holderIdentity}")
	s.Apply(deployment)
	s.Becomes("1", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	if strings.Contains(s.Log(), "started anew") {
		t.Errorf("everything was started anew for the scheduler\n%s", s.Tail(3000))
	}
	steal("skerry-controller-manager")
	says(s, "this server lost its lease and has it again")
	s.Eventually("the controllers work", func() (bool, string) {
		out, err := s.Try("", "scale", "deployment", "web", "--replicas=2")
		return err == nil, fmt.Sprint(out, err)
	})
	s.Becomes("2", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	lives("after two elections")
	s.Stop()
}

// A snapshot taken from a running server brings the cluster back as it was; the commands need no settings but the folder.
func TestNativeSnapshot(t *testing.T) {
	e := newEngine(t)
	e.start()
	c := e.cluster()
	if _, err := c.try(t.Context(), "", "create", "configmap", "before", "--from-literal=k=v"); err != nil {
		t.Fatal(err)
	}
	code, out := e.once("snapshot", "save", "--data-dir", e.data(), "--json")
	var saved struct{ Name, Place string }
	if err := json.Unmarshal([]byte(out), &saved); code != 0 || err != nil {
		t.Fatalf("save: %d %s", code, out)
	}
	if _, err := c.try(t.Context(), "", "create", "configmap", "after", "--from-literal=k=v"); err != nil {
		t.Fatal(err)
	}
	if code, out := e.once("snapshot", "restore", "--data-dir", e.data(), saved.Name); code != 1 || !strings.Contains(out, "--at-next-start") {
		t.Errorf("restore under a running server: %d %s", code, out)
	}
	e.stop()
	if code, out := e.once("etcd-snapshot", "restore", "--data-dir", e.data(), saved.Name); code != 0 || !strings.Contains(out, "restored") {
		t.Fatalf("restore: %d %s", code, out)
	}
	e.start()
	c.eventually(time.Minute, contains("before"), "get", "configmap", "before", "-o", "name")
	if out, err := c.try(t.Context(), "", "get", "configmap", "after", "-o", "name"); err == nil {
		t.Errorf("what was written after the snapshot is there: %s", out)
	}
	e.stop()

	// The file is damaged: the server repairs itself, says so, and keeps the damaged file.
	file := filepath.Join(e.data(), "server/db/state.db")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[8192 : len(data)-4096])
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	e.start()
	c.eventually(time.Minute, contains("DatastoreRestored"), "get", "events", "-o", "jsonpath={.items[*].reason}")
	c.eventually(time.Minute, contains("before"), "get", "configmap", "before", "-o", "name")
	if kept, _ := filepath.Glob(file + ".before-*"); len(kept) != 2 {
		t.Errorf("kept: %v", kept)
	}
}
