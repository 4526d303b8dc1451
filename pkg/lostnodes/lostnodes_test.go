package lostnodes

import (
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
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
