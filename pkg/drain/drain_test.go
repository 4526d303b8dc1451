package drain_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skerry-os/skerry/pkg/drain"
)

func pod(name, owner string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: "n"}}
	if owner != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: "x", Controller: &yes}}
	}
	if change != nil {
		change(p)
	}
	return p
}

// cluster is one whose evictions do as they are told, but for the pods of a budget.
func cluster(budget string, objects ...runtime.Object) *fake.Clientset {
	c := fake.NewClientset(objects...)
	c.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		e, ok := a.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction)
		if !ok {
			return false, nil, nil
		}
		if budget != "" && strings.HasPrefix(e.Name, budget) {
			err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 10)
			err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: policyv1.DisruptionBudgetCause, Message: "The disruption budget db needs 1 healthy pods and has 1 currently"}}
			return true, nil, err
		}
		return true, nil, c.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), e.Namespace, e.Name)
	})
	return c
}

func node(cordoned bool, by string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Unschedulable: cordoned}}
	if by != "" {
		n.Annotations = map[string]string{drain.Annotation: by}
	}
	return n
}

// What would be made again elsewhere goes; what would not stays.
func TestDrain(t *testing.T) {
	c := cluster("", node(false, ""),
		pod("web", "ReplicaSet", nil), pod("db-0", "StatefulSet", nil), pod("agent", "DaemonSet", nil), pod("bare", "", nil),
		pod("static", "Node", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }),
		pod("done", "Job", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
	d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: time.Minute, Pulse: time.Millisecond}
	r, err := d.Drain(t.Context())
	if err != nil || len(r.Stuck) != 0 || strings.Join(r.Evicted, " ") != "default/db-0 default/web" {
		t.Errorf("%v, %v", r, err)
	}
	left, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(left.Items) != 4 {
		t.Errorf("left are %d pods, %v", len(left.Items), err)
	}
	if got, _ := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); !got.Spec.Unschedulable {
		t.Error("the node is not cordoned")
	}
	if did, err := d.Uncordon(t.Context()); !did || err != nil {
		t.Errorf("uncordon: %v, %v", did, err)
	}
	got, err := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil || got.Spec.Unschedulable || len(got.Annotations) != 0 {
		t.Errorf("afterwards %+v, %v", got, err)
	}
}

// A budget that never yields is told, and the policy says what becomes of it.
func TestABudgetThatNeverYields(t *testing.T) {
	for policy, left := range map[drain.Policy]int{drain.Skip: 1, drain.Force: 0, drain.Stop: 1, "": 1} {
		c := cluster("db", node(false, ""), pod("web", "ReplicaSet", nil), pod("db", "ReplicaSet", nil))
		var said []string
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: 20 * time.Millisecond, Pulse: time.Millisecond, Policy: policy, Say: func(s string) { said = append(said, s) }}
		r, err := d.Drain(t.Context())
		if errors.Is(err, drain.ErrStuck) != (policy == drain.Stop) || (err != nil) != (policy == drain.Stop) {
			t.Errorf("%q: %v", policy, err)
		}
		if len(r.Stuck) != 1 || r.Stuck[0].Pod != "default/db" || !strings.Contains(r.Stuck[0].Why, "The disruption budget db needs 1 healthy pods and has 1") {
			t.Errorf("%q: %v", policy, r)
		}
		if !strings.Contains(strings.Join(said, "\n"), "pod default/db is still there after 20ms: Cannot evict") {
			t.Errorf("%q: said %q", policy, said)
		}
		pods, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(pods.Items) != left {
			t.Errorf("%q: %d pods are left, %v", policy, len(pods.Items), err)
		}
	}
}

// Only who cordoned a node gives it back.
func TestCordonsAreOwned(t *testing.T) {
	for name, tt := range map[string]struct {
		node *corev1.Node
		did  bool
	}{
		"ours":     {node(true, "update"), true},
		"a plan's": {node(true, "plan/north"), false},
		"a hand's": {node(true, ""), false},
		"free":     {node(false, ""), false},
	} {
		c := cluster("", tt.node)
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update"}
		before := tt.node.Spec.Unschedulable
		if before {
			if err := d.Cordon(t.Context()); err != nil {
				t.Error(err)
			}
		}
		did, err := d.Uncordon(t.Context())
		got, _ := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if did != tt.did || err != nil || got.Spec.Unschedulable != (before && !tt.did) {
			t.Errorf("%s: %v, %v, %+v", name, did, err, got.Spec)
		}
	}
}
