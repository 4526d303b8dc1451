package updates

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/skerry-os/skerry/pkg/update/record"
)

// A node that is as it was before is kept; each thing that is not is named. What the datastore remembers of the time before
// the restart does not count.
func TestWhatIsMissing(t *testing.T) {
	boot := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	old, fresh := metav1.NewTime(boot.Add(-time.Hour)), metav1.NewTime(boot.Add(time.Minute))
	truth := func(yes bool) corev1.ConditionStatus {
		if yes {
			return corev1.ConditionTrue
		}
		return corev1.ConditionFalse
	}
	type world struct {
		ready, podReady bool
		lease, started  metav1.Time
		gone, done      bool
		unserved        bool
	}
	for name, tt := range map[string]struct {
		w    world
		want string
	}{
		"as before":                    {world{true, true, fresh, fresh, false, false, false}, ""},
		"Services not reached":         {world{true, true, fresh, fresh, false, false, true}, "kube-proxy"},
		"not Ready":                    {world{false, true, fresh, fresh, false, false, false}, "Ready"},
		"Ready of before":              {world{true, true, old, fresh, false, false, false}, "lease"},
		"pod not ready":                {world{true, false, fresh, fresh, false, false, false}, "pod default/web, which was ready"},
		"pod of before":                {world{true, true, fresh, old, false, false, false}, "pod default/web to start again"},
		"pod was moved":                {world{true, true, fresh, fresh, true, false, false}, ""},
		"pod has done what it was for": {world{true, false, fresh, fresh, false, true, false}, ""},
	} {
		renewed := metav1.NewMicroTime(tt.w.lease.Time)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: truth(tt.w.ready)}}}}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{
				Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: truth(tt.w.podReady)}},
				ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: tt.w.started}}}},
			},
		}
		if tt.w.done {
			pod.Status.Phase = corev1.PodSucceeded
		}
		c := fake.NewClientset(node, lease)
		if !tt.w.gone {
			if err := c.Tracker().Add(pod); err != nil {
				t.Fatal(err)
			}
		}
		h, err := read(t.Context(), c, "n", !tt.w.unserved)
		if err != nil {
			t.Fatal(err)
		}
		got, note := h.missing(&record.Before{Ready: true, Pods: []string{"default/web"}}, boot)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		if left := tt.w.gone || tt.w.done; strings.Contains(note, "1 of 1 pods that were ready before are not on this node: they were moved, deleted, or have ended: default/web") != left {
			t.Errorf("%s: the note is %q", name, note)
		}
	}
}

// A node that runs well looks for updates at once; one that does not yet reach services waits.
func TestSettles(t *testing.T) {
	now := metav1.NewMicroTime(time.Now())
	c := fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}})
	var serves atomic.Bool
	s := &service{o: Options{NodeName: "n", Serves: serves.Load}, client: c}
	settled := make(chan struct{})
	go func() { s.settle(t.Context()); close(settled) }()
	select {
	case <-settled:
		t.Error("settled although services are not reached")
	case <-time.After(200 * time.Millisecond):
	}
	serves.Store(true)
	select {
	case <-settled:
	case <-time.After(time.Minute):
		t.Error("does not settle")
	}
}
