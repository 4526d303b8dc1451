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
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
)

// Three servers share an etcd. One is killed, then another is cut off: the API goes on at the others, and both come back. A
// deleted node's member goes with it.
func TestNodesEtcd(t *testing.T) {
	w := newWire(t)
	s1 := w.Node("s1")
	s1.Start("server", "--cluster-init")
	s1.Ready()
	servers := []*nodes.Node{s1}
	for _, name := range []string{"s2", "s3"} {
		s := w.Node(name)
		s.Start("server", "--server", s1.URL(), "--token", s1.Token())
		s.Ready()
		servers = append(servers, s)
	}
	s2, s3 := servers[1], servers[2]
	s1.ReadyInAPI(servers...)
	put := func(at *nodes.Node, name string) {
		t.Helper()
		at.Eventually("a write at "+at.Name, func() (bool, string) {
			out, err := at.Try("", "create", "configmap", name, "--from-literal=k=v")
			return err == nil || strings.Contains(out+fmt.Sprint(err), "already exists"), out
		})
	}
	put(s3, "all-there")

	s1.Kill()
	put(s2, "first-killed")
	put(s3, "first-killed-too")
	s1.Start("server", "--cluster-init")
	s1.Ready()
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
}

const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"default"},"spec":{"replicas":1,
"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"terminationGracePeriodSeconds":0,
"containers":[{"name":"c","image":"skerry.local/pause:1","imagePullPolicy":"Never"}]}}}}`

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
