package drain_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
		n.ManagedFields = []metav1.ManagedFieldsEntry{{
			Manager: "skerry-drain", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:unschedulable":{}}}`),
		}}
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

// An annotation that outlived its cordon gives nobody a node: what a person did after it stays.
func TestACordonOfAPersonAfterOurs(t *testing.T) {
	for name, tt := range map[string]struct {
		cordons   []bool // what kubectl does, after our cordon
		did, stay bool   // cordoned afterwards
	}{
		"none":                    {nil, true, false},
		"uncordons":               {[]bool{false}, false, false},
		"uncordons and cordons":   {[]bool{false, true}, false, true},
		"cordons what is already": {[]bool{true}, true, false},
	} {
		c := fake.NewClientset(node(false, ""))
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update"}
		if err := d.Cordon(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, on := range tt.cordons {
			body := fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, on)
			if !on {
				body = []byte(`{"spec":{"unschedulable":null}}`) // as kubectl does
			}
			if _, err := c.CoreV1().Nodes().Patch(t.Context(), "n", types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: "kubectl-cordon"}); err != nil {
				t.Fatal(err)
			}
		}
		did, err := d.Uncordon(t.Context())
		got, gerr := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if did != tt.did || err != nil || gerr != nil || got.Spec.Unschedulable != tt.stay || got.Annotations[drain.Annotation] != "" {
			t.Errorf("%s: %v, %v; afterwards %+v, %v", name, did, err, got, gerr)
		}
		// The next update cordons and gives back as ever, where it may.
		if err := d.Cordon(t.Context()); err != nil {
			t.Error(err)
		}
		if did, err := d.Uncordon(t.Context()); did == tt.stay || err != nil {
			t.Errorf("%s: the next time: %v, %v", name, did, err)
		}
	}
}

// Each eviction is of the pod that was looked at. One that the API refuses does not keep the others, and only the policy says
// whether the node restarts with it.
func TestRefusedEvictions(t *testing.T) {
	pods := corev1.Resource("pods")
	for name, tt := range map[string]struct {
		refusal error
		stuck   string
		err     error
	}{
		"two budgets": {apierrors.NewInternalError(errors.New("This pod has more than one PodDisruptionBudget")), "more than one PodDisruptionBudget", drain.ErrStuck},
		"a webhook":   {apierrors.NewForbidden(pods, "db", errors.New("denied the request")), "denied the request", drain.ErrStuck},
		"another pod": {apierrors.NewConflict(pods, "db", errors.New("the UID is another")), "does not end", drain.ErrStuck},
		"gone":        {apierrors.NewNotFound(pods, "db"), "does not end", drain.ErrStuck}, // the list is older
		"no answer":   {errNoAnswer, "", errNoAnswer},
	} {
		c := cluster("", node(false, ""), pod("db", "ReplicaSet", nil), pod("web", "ReplicaSet", nil))
		c.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			e := a.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction)
			if e.DeleteOptions == nil || e.DeleteOptions.Preconditions == nil || *e.DeleteOptions.Preconditions.UID != types.UID(e.Name) {
				t.Errorf("%s: whatever is called %s is evicted", name, e.Name)
			}
			return e.Name == "db", nil, tt.refusal
		})
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: 5 * time.Millisecond, Pulse: time.Millisecond, Policy: drain.Stop}
		r, err := d.Drain(t.Context())
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", name, err)
		}
		if tt.stuck == "" {
			continue
		}
		if len(r.Stuck) != 1 || r.Stuck[0].Pod != "default/db" || !strings.Contains(r.Stuck[0].Why, tt.stuck) || !strings.Contains(strings.Join(r.Evicted, " "), "default/web") {
			t.Errorf("%s: %v", name, r)
		}
	}
}

var errNoAnswer = errors.New("connection refused")

// A pod that ends slowly is asked once and told of as what it is; one that ends already is not asked.
func TestPodsThatEndSlowly(t *testing.T) {
	now := metav1.Now()
	c := cluster("", node(false, ""), pod("slow", "ReplicaSet", nil),
		pod("ending", "ReplicaSet", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &now, []string{"x"} }),
		pod("failed", "Job", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
	asked := map[string]int{}
	c.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked[a.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction).Name]++
		return true, nil, nil
	})
	c.PrependReactor("list", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if f := a.(clienttesting.ListAction).GetListRestrictions().Fields.String(); f != "spec.nodeName=n" {
			t.Errorf("the pods of %q are drained", f)
		}
		return false, nil, nil
	})
	said := 0
	d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: 5 * time.Millisecond, Pulse: time.Millisecond, Policy: drain.Stop, Say: func(s string) {
		if strings.Contains(s, "is asked to go") {
			said++
		}
	}}
	r, err := d.Drain(t.Context())
	if !errors.Is(err, drain.ErrStuck) || strings.Join(r.Evicted, " ") != "default/slow" || said != 1 || asked["ending"]+asked["failed"] > 0 {
		t.Errorf("%v, %v; said %d times; asked %v", r, err, said, asked)
	}
	if len(r.Stuck) != 2 || r.Stuck[0] != (drain.Stuck{Pod: "default/ending", Why: "does not end"}) || r.Stuck[1] != (drain.Stuck{Pod: "default/slow", Why: "does not end"}) {
		t.Errorf("stuck are %v", r.Stuck)
	}
}

// Force deletes each pod that was looked at; one that cannot be deleted is told, and does not keep the others.
func TestForce(t *testing.T) {
	pods := corev1.Resource("pods")
	for name, tt := range map[string]struct {
		refusal error
		fault   bool
	}{
		"refused":     {apierrors.NewForbidden(pods, "db-0", errors.New("no")), true},
		"another pod": {apierrors.NewConflict(pods, "db-0", errors.New("the UID is another")), false},
		"gone":        {apierrors.NewNotFound(pods, "db-0"), false},
	} {
		c := cluster("db", node(false, ""), pod("db-0", "StatefulSet", nil), pod("db-1", "StatefulSet", nil))
		var deleted []string
		c.PrependReactor("delete", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			d := a.(clienttesting.DeleteActionImpl)
			if p := d.DeleteOptions.Preconditions; p == nil || p.UID == nil || *p.UID != types.UID(d.Name) {
				t.Errorf("%s: whatever is called %s is deleted", name, d.Name)
			}
			deleted = append(deleted, d.Name)
			if d.Name == "db-0" {
				return true, nil, tt.refusal
			}
			return false, nil, nil
		})
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: time.Millisecond, Pulse: time.Millisecond, Policy: drain.Force}
		_, err := d.Drain(t.Context())
		if (err != nil) != tt.fault || err != nil && !strings.Contains(err.Error(), "deleting pod default/db-0") || strings.Join(deleted, " ") != "db-0 db-1" {
			t.Errorf("%s: %v, deleted %v", name, err, deleted)
		}
	}
}

// Two who cordon do not both think that it is theirs: what changed in between counts, but for heartbeats.
func TestCordonMeetsAChange(t *testing.T) {
	for name, tt := range map[string]struct {
		before, meanwhile *corev1.Node
		cordons, did      bool
	}{
		"a heartbeat":                 {node(false, ""), node(false, ""), true, true},
		"somebody cordoned":           {node(false, ""), node(true, "plan/north"), true, false},
		"a hand cordoned":             {node(false, ""), node(true, ""), true, false},
		"a heartbeat before the end":  {node(true, "update"), node(true, "update"), false, true},
		"somebody else has it by now": {node(true, "update"), node(true, "plan/north"), false, false},
	} {
		c := cluster("", tt.before)
		tt.before.ResourceVersion, tt.meanwhile.ResourceVersion = "1", "2"
		if err := c.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), tt.before, ""); err != nil {
			t.Fatal(err)
		}
		var versions []string
		c.PrependReactor("patch", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
			var body struct {
				Metadata struct{ ResourceVersion string }
			}
			if err := json.Unmarshal(a.(clienttesting.PatchAction).GetPatch(), &body); err != nil {
				t.Error(err)
			}
			if versions = append(versions, body.Metadata.ResourceVersion); len(versions) > 1 {
				return false, nil, nil
			}
			if err := c.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), tt.meanwhile, ""); err != nil {
				t.Error(err)
			}
			return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "n", errors.New("the object has been modified"))
		})
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update"}
		var err error
		if tt.cordons {
			err = d.Cordon(t.Context())
		} else {
			_, err = d.Uncordon(t.Context())
		}
		want, owner := "1", tt.meanwhile.Annotations[drain.Annotation]
		if tt.did {
			if want, owner = "1 2", ""; tt.cordons {
				owner = "update"
			}
		}
		got, gerr := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if gerr != nil || (err == nil) != tt.did || strings.Join(versions, " ") != want || got.Annotations[drain.Annotation] != owner {
			t.Errorf("%s: %v; changed versions %q; the node is %q's", name, err, versions, got.Annotations[drain.Annotation])
		}
	}
}

// No pod is asked to go from a node that takes new ones, and none is forgotten because they could not be listed.
func TestDrainWithoutAnAnswer(t *testing.T) {
	for _, what := range []string{"get nodes", "patch nodes", "list pods"} {
		verb, resource, _ := strings.Cut(what, " ")
		c := cluster("", node(false, ""), pod("web", "ReplicaSet", nil))
		c.PrependReactor(verb, resource, func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errNoAnswer })
		c.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			t.Errorf("%s: a pod was evicted", what)
			return true, nil, nil
		})
		d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: time.Millisecond, Pulse: time.Millisecond}
		if _, err := d.Drain(t.Context()); !errors.Is(err, errNoAnswer) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDrainIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	c := cluster("db", node(false, ""), pod("db", "StatefulSet", nil))
	c.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		cancel(stopped)
		return false, nil, nil
	})
	d := &drain.Drainer{Client: c, Node: "n", Owner: "update", Deadline: time.Second, Pulse: time.Millisecond, Policy: drain.Force}
	if _, err := d.Drain(ctx); !errors.Is(err, stopped) {
		t.Errorf("%v", err)
	}
}
