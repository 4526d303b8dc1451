package lostnodes

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func node(name, provider string, ready corev1.ConditionStatus, labels ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}, Spec: corev1.NodeSpec{ProviderID: provider}}
	for _, l := range labels {
		n.Labels[l] = "true"
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	return n
}

// Only a node whose machine a cloud made, that is no server, not Ready and silent for long enough goes, and nothing counts
// that was before this process began to look.
func TestWhoIsRemoved(t *testing.T) {
	client := fake.NewClientset(
		node("gone", "aws:///a/i-1", corev1.ConditionUnknown),
		node("asleep", "aws:///a/i-2", corev1.ConditionUnknown),
		node("busy", "aws:///a/i-3", corev1.ConditionTrue),
		node("shelf", "", corev1.ConditionUnknown),
		node("server", "aws:///a/i-4", corev1.ConditionUnknown, "node-role.kubernetes.io/control-plane"),
	)
	long := metav1.NewMicroTime(time.Now().Add(-24 * time.Hour)) // clocks differ, or the server was off for a day
	renew := func(name string, at metav1.MicroTime) {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &at}}
		leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
		if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
			if _, err := leases.Create(t.Context(), l, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"gone", "asleep", "busy", "shelf", "server"} {
		renew(name, long)
	}
	clock := time.Now()
	var removed []string
	w := &watch{after: 10 * time.Minute, client: client, seen: map[string]seen{}, now: func() time.Time { return clock }}
	w.removed = func(n *corev1.Node, silent time.Duration) { removed = append(removed, n.Name+" "+silent.String()) }
	left := func() string {
		list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range list.Items {
			names = append(names, n.Name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	look := func(pass time.Duration) {
		t.Helper()
		clock = clock.Add(pass)
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look(0)
	look(9 * time.Minute)
	if got := left(); got != "asleep busy gone server shelf" {
		t.Errorf("too early: %s are left", got)
	}
	renew("asleep", metav1.NewMicroTime(long.Add(time.Minute))) // however old it says it is: it was heard of
	look(0)
	look(time.Minute)
	if got := left(); got != "asleep busy server shelf" || len(removed) != 1 || removed[0] != "gone 10m0s" {
		t.Errorf("%s are left; removed %q", got, removed)
	}
	look(9 * time.Minute)
	if got := left(); got != "busy server shelf" {
		t.Errorf("%s are left", got)
	}
}

// quiet is a cluster in which nothing is renewed, and a watch over it.
func quiet(t *testing.T, objects ...runtime.Object) (client *fake.Clientset, look func(pass time.Duration) error, removed *[]string) {
	t.Helper()
	client, removed = fake.NewClientset(objects...), new([]string)
	clock := time.Now()
	w := &watch{after: 10 * time.Minute, client: client, seen: map[string]seen{}, now: func() time.Time { return clock }}
	w.removed = func(n *corev1.Node, _ time.Duration) { *removed = append(*removed, n.Name) }
	return client, func(pass time.Duration) error { clock = clock.Add(pass); return w.look(t.Context()) }, removed
}

// However a node is marked as a server, and whatever else is true of it: only Ready says that it lives.
func TestMortal(t *testing.T) {
	with := func(n *corev1.Node, kind corev1.NodeConditionType) *corev1.Node {
		n.Status.Conditions = append([]corev1.NodeCondition{{Type: kind, Status: corev1.ConditionTrue}}, n.Status.Conditions...)
		return n
	}
	unheard := node("unheard", "aws:///a/i", "")
	unheard.Status.Conditions = nil
	for _, tt := range []struct {
		node   *corev1.Node
		mortal bool
	}{
		{node("unknown", "aws:///a/i", corev1.ConditionUnknown), true},
		{node("not ready", "aws:///a/i", corev1.ConditionFalse), true},
		{with(node("full", "aws:///a/i", corev1.ConditionUnknown), corev1.NodeDiskPressure), true},
		{unheard, true},
		{node("worker", "aws:///a/i", corev1.ConditionUnknown, "node-role.kubernetes.io/worker"), true},
		{with(node("busy", "aws:///a/i", corev1.ConditionTrue), corev1.NodeDiskPressure), false},
		{node("shelf", "", corev1.ConditionUnknown), false},
		{node("server", "aws:///a/i", corev1.ConditionUnknown, "node-role.kubernetes.io/control-plane"), false},
		{node("etcd", "aws:///a/i", corev1.ConditionUnknown, "node-role.kubernetes.io/etcd"), false},
		{node("master", "aws:///a/i", corev1.ConditionUnknown, "node-role.kubernetes.io/master"), false},
	} {
		if mortal(tt.node) != tt.mortal {
			t.Errorf("%s: mortal is %v", tt.node.Name, !tt.mortal)
		}
	}
}

// The node that was looked at goes and no other: who changed it, or was faster, is no fault, and all else is.
func TestOnlyTheNodeThatWasLookedAt(t *testing.T) {
	nodes := corev1.Resource("nodes")
	for name, tt := range map[string]struct {
		answer  error
		removed bool
		fault   bool
	}{
		"removed":  {nil, true, false},
		"conflict": {apierrors.NewConflict(nodes, "gone", errors.New("the UID is another")), false, false},
		"gone":     {apierrors.NewNotFound(nodes, "gone"), false, false},
		"refused":  {apierrors.NewForbidden(nodes, "gone", errors.New("no")), false, true},
	} {
		n := node("gone", "aws:///a/i-1", corev1.ConditionUnknown)
		n.UID, n.ResourceVersion = "u-1", "77"
		client, look, removed := quiet(t, n)
		asked := 0
		client.PrependReactor("delete", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
			asked++
			p := a.(clienttesting.DeleteActionImpl).DeleteOptions.Preconditions
			if p == nil || p.UID == nil || *p.UID != "u-1" || p.ResourceVersion == nil || *p.ResourceVersion != "77" {
				t.Errorf("%s: whatever has the name is removed: %v", name, p)
			}
			return true, nil, tt.answer
		})
		if err := look(0); err != nil || asked > 0 {
			t.Errorf("%s: %v, asked %d times", name, err, asked)
		}
		err := look(10 * time.Minute)
		if (err != nil) != tt.fault || asked != 1 || (len(*removed) == 1) != tt.removed {
			t.Errorf("%s: %v, asked %d times, told of %v", name, err, asked, *removed)
		}
	}
}

// While the API says nothing of nodes or leases, nobody is taken for lost.
func TestWhatCannotBeListedIsNotLost(t *testing.T) {
	for _, resource := range []string{"nodes", "leases"} {
		client, look, _ := quiet(t, node("gone", "aws:///a/i-1", corev1.ConditionUnknown))
		fails := true
		client.PrependReactor("list", resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			return fails, nil, apierrors.NewServiceUnavailable("the datastore is busy")
		})
		if err := look(0); err == nil {
			t.Errorf("%s: no error", resource)
		}
		fails = false
		if err := look(10 * time.Minute); err != nil {
			t.Error(err)
		}
		if _, err := client.CoreV1().Nodes().Get(t.Context(), "gone", metav1.GetOptions{}); err != nil {
			t.Errorf("%s: %v", resource, err)
		}
	}
}

// Who comes back under its name is counted anew, with or without a lease. Leases of others say nothing.
func TestWhoComesBackIsNew(t *testing.T) {
	lease := func(namespace string, at *metav1.MicroTime) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "gone", Namespace: namespace}, Spec: coordinationv1.LeaseSpec{RenewTime: at}}
	}
	now := metav1.NewMicroTime(time.Now())
	for name, leases := range map[string][]runtime.Object{
		"no lease":          nil,
		"never renewed":     {lease(corev1.NamespaceNodeLease, nil)},
		"another's is seen": {lease(metav1.NamespaceSystem, &now)},
	} {
		n := node("gone", "aws:///a/i-1", corev1.ConditionUnknown)
		client, look, removed := quiet(t, append(leases, n)...)
		nodes := client.CoreV1().Nodes()
		step := func(pass time.Duration, want int) {
			t.Helper()
			if len(leases) > 0 {
				if l := leases[0].(*coordinationv1.Lease); l.Namespace == metav1.NamespaceSystem {
					l = l.DeepCopy()
					at := metav1.NewMicroTime(l.Spec.RenewTime.Add(pass))
					l.Spec.RenewTime = &at
					leases[0] = l
					if _, err := client.CoordinationV1().Leases(l.Namespace).Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := look(pass); err != nil || len(*removed) != want {
				t.Errorf("%s: %v, removed %v", name, err, *removed)
			}
		}
		again := func() {
			if _, err := nodes.Create(t.Context(), n.DeepCopy(), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		step(0, 0)
		step(10*time.Minute, 1)
		again() // before the next look
		step(time.Minute, 1)
		step(10*time.Minute, 2)
		step(time.Minute, 2)
		again()
		step(0, 2)
		step(9*time.Minute, 2)
		if err := nodes.Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil { // by a person
			t.Fatal(err)
		}
		step(time.Minute, 2)
		again()
		step(time.Minute, 2)
		step(10*time.Minute, 3)
	}
}
