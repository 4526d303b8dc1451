package updates

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// health is what the cluster says of this node.
type health struct {
	ready   bool
	serves  bool                 // services can be reached through the node
	renewed time.Time            // the node's lease: the newest write that is known to have gone through
	pods    map[string]bool      // by namespace/name: ready
	started map[string]time.Time // when the youngest of a pod's containers started
}

// read asks for it; serves is what the cluster cannot know.
func read(ctx context.Context, c kubernetes.Interface, name string, serves bool) (*health, error) {
	node, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	h := &health{serves: serves, pods: map[string]bool{}, started: map[string]time.Time{}}
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			h.ready = cond.Status == corev1.ConditionTrue
		}
	}
	lease, err := c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if lease.Spec.RenewTime != nil {
		h.renewed = lease.Spec.RenewTime.Time
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		key := p.Namespace + "/" + p.Name
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady {
				h.pods[key] = cond.Status == corev1.ConditionTrue
			}
		}
		if _, ok := h.pods[key]; !ok {
			h.pods[key] = false
		}
		if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			delete(h.pods, key) // it is going, or has done what it was for
			continue
		}
		for _, cs := range p.Status.ContainerStatuses {
			if cs.State.Running != nil && cs.State.Running.StartedAt.After(h.started[key]) {
				h.started[key] = cs.State.Running.StartedAt.Time
			}
		}
	}
	return h, nil
}

// missing says what is not as it was before; "" is nothing. What the API says of the time before this boot does not
// count: its datastore remembers the node and its pods as they were when the machine went down. Pods that are gone were moved
// or deleted: they are no fault, but are noted.
func (h *health) missing(b *record.Before, booted time.Time) (what, note string) {
	ready := b == nil || b.Ready
	if ready && !h.ready {
		return "the node to be Ready", ""
	}
	if (ready || b.Leased) && !h.renewed.After(booted) {
		return "the datastore to take the node's lease", ""
	}
	if (ready || b.Serves) && !h.serves {
		return "kube-proxy to write the rules of services", ""
	}
	if b == nil {
		return "", ""
	}
	var gone []string
	for _, key := range b.Pods {
		ok, there := h.pods[key]
		switch {
		case !there:
			gone = append(gone, key)
		case !ok:
			return fmt.Sprintf("pod %s, which was ready before", key), ""
		case h.started[key].Before(booted):
			return fmt.Sprintf("pod %s to start again", key), ""
		}
	}
	if len(gone) > 0 {
		note = fmt.Sprintf("%d of %d pods that were ready before are not on this node: they were moved, deleted, or have ended: %s", len(gone), len(b.Pods), strings.Join(gone, ", "))
	}
	return "", note
}

// bootTime is when the kernel started, by the clock as it is now.
func bootTime() time.Time {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(info.Uptime) * time.Second)
}

// tell makes events of why the last update failed and of what sources tried, once each, and shows the record as metrics.
func (s *service) tell(ctx context.Context) {
	st := s.n.Updater.Store
	r, err := st.Load()
	if err != nil {
		s.o.Log.Warn("record of updates", "err", err)
		return
	}
	show(s.n.ID, r)
	told := r.Reason
	if r.Reason != "" && r.Reason != r.Told {
		s.o.Log.Warn("the last update failed", "reason", r.Reason)
		if !s.event(ctx, "UpdateFailed", r.Reason) {
			told = r.Told
		}
	}
	changed := told != r.Told
	r.Told = told
	for name, src := range r.Sources {
		if src.Told == src.Problem || update.Attack(src.Kind) && !s.event(ctx, "UpdateRefused", name+": "+src.Problem) {
			continue
		}
		src.Told, changed = src.Problem, true
		r.Sources[name] = src
	}
	if !changed {
		return
	}
	if err := st.Save(r); err != nil {
		s.o.Log.Warn("record of updates", "err", err)
	}
}

// maxMessage is how much of a message an event takes.
const maxMessage = 1024

// event tells something of the node that a person should see, and says whether it could.
func (s *service) event(ctx context.Context, reason, message string) bool {
	c, err := s.kube()
	if err == nil {
		now := metav1.Now()
		_, err = c.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{GenerateName: s.o.NodeName + ".", Namespace: metav1.NamespaceDefault},
			InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: s.o.NodeName, UID: types.UID(s.o.NodeName), APIVersion: "v1"},
			Reason:         reason, Message: message[:min(len(message), maxMessage)], Type: corev1.EventTypeWarning,
			Source:         corev1.EventSource{Component: "skerry-update", Host: s.o.NodeName},
			FirstTimestamp: now, LastTimestamp: now, Count: 1,
		}, metav1.CreateOptions{})
	}
	if err != nil {
		s.o.Log.Warn("telling the cluster", "reason", reason, "err", err)
	}
	return err == nil
}
