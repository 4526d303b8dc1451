package e2e

import (
	"context"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/pkg/drain"
)

// movable is one pod of the image that every release has. budget makes it one that may not go.
func movable(name, node string, budget bool) string {
	text := `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web","namespace":"default"},"data":{"Corefile":".:5353 {\n errors\n}\n"}},
{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"NAME","namespace":"default"},"spec":{"selector":{"matchLabels":{"app":"NAME"}},"template":{"metadata":{"labels":{"app":"NAME"}},
"spec":{"terminationGracePeriodSeconds":0,"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":100,"preference":{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["NODE"]}]}}]}},
"containers":[{"name":"c","image":"skerry.local/addons:1","imagePullPolicy":"Never","args":["coredns","-conf","/etc/coredns/Corefile"],
"volumeMounts":[{"name":"conf","mountPath":"/etc/coredns"}]}],"volumes":[{"name":"conf","configMap":{"name":"web"}}]}}}}`
	if budget {
		text += `,{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"name":"NAME","namespace":"default"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"app":"NAME"}}}}`
	}
	return strings.NewReplacer("NAME", name, "NODE", node).Replace(text + "]}")
}

// kubelet is a client with the credentials of a node's kubelet, on that node.
func kubelet(t *testing.T, n *nodes.Node) kubernetes.Interface {
	t.Helper()
	var file string
	err := filepath.WalkDir(n.DataDir(), func(name string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(name) == "kubelet.kubeconfig" {
			file = name
			return fs.SkipAll
		}
		return nil //nolint:nilerr // pods' folders come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	config.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = n.OnNode(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A node drains itself with what its kubelet may: what can go goes to the other node, what a budget holds is told and stays,
// and the node is given back by whom it was taken.
func TestNodesDrain(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	s.Start("server")
	s.Ready()
	a.Start("agent", "--server", s.URL(), "--token", s.Token())
	a.Ready()
	s.ReadyInAPI(s, a)
	s.Apply(movable("web", "a1", false))
	s.Apply(movable("db", "a1", true))
	for _, name := range []string{"web", "db"} {
		s.Becomes("1", "get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}")
		s.Becomes("a1", "get", "pods", "-l", "app="+name, "-o", "jsonpath={.items[*].spec.nodeName}")
	}
	s.Becomes("0", "get", "pdb", "db", "-o", "jsonpath={.status.disruptionsAllowed}")
	d := &drain.Drainer{Client: kubelet(t, a), Node: "a1", Owner: "update", Deadline: 20 * time.Second, Say: func(text string) { t.Log(text) }}
	r, err := d.Drain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held := false
	for _, p := range r.Stuck {
		held = held || strings.HasPrefix(p.Pod, "default/db-") && strings.Contains(p.Why, "disruption budget")
	}
	if !held {
		t.Errorf("the budget is not told: %v", r)
	}
	s.Becomes("s1", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}")
	s.Becomes("1", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	s.Becomes("true update", "get", "node", "a1", "-o", `jsonpath={.spec.unschedulable} {.metadata.annotations.skerry\.io/cordoned-by}`)
	if did, err := d.Uncordon(t.Context()); !did || err != nil {
		t.Errorf("uncordon: %v, %v", did, err)
	}
	s.Becomes("", "get", "node", "a1", "-o", `jsonpath={.spec.unschedulable}`)
	s.Kubectl("cordon", "a1")
	if did, err := d.Uncordon(t.Context()); did || err != nil {
		t.Errorf("what a person cordoned was given back: %v, %v", did, err)
	}
}
