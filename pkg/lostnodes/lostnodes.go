// Package lostnodes removes the nodes of machines that a cloud has ended: instances of an autoscaling group come and go, and
// nobody tells the cluster of those that went.
//
// A node is removed when all of this holds:
//
//   - it has a provider ID, so a cloud made its machine and will make another; nodes on somebody's shelf have none
//   - it is no server
//   - it is not Ready, and its lease was not renewed for as long as the setting node-remove-after says
//
// How long that is, is measured by this process's own clock from when it last saw the lease change. So neither clocks that
// differ nor a server that was off for a while cost a node: who comes back late begins to count anew. A machine that was lost
// and comes back after all registers its node again.
package lostnodes

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/controllers"
)

// Name of the controller, whose permissions are in the manifests.
const Name = "lost-nodes"

// Controller removes nodes that were lost for this long.
func Controller(after time.Duration) controllers.Controller {
	return controllers.Controller{Name: Name, Run: func(ctx context.Context, k *controllers.Kit) error {
		w := &watch{after: after, seen: map[string]seen{}, client: k.Client, now: time.Now}
		w.removed = func(n *corev1.Node, silent time.Duration) {
			k.Events.Eventf(n, corev1.EventTypeNormal, "LostNodeRemoved", "removed: its machine %s was not heard of for %v", n.Spec.ProviderID, silent.Round(time.Second))
		}
		tick := time.NewTicker(min(after/4, time.Minute))
		defer tick.Stop()
		for {
			if err := w.look(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}}
}

type watch struct {
	after   time.Duration
	client  kubernetes.Interface
	seen    map[string]seen // by node
	now     func() time.Time
	removed func(*corev1.Node, time.Duration)
}

// seen is a node's lease as it was when it last changed.
type seen struct {
	renewed metav1.MicroTime
	at      time.Time
}

// look looks once.
func (w *watch) look(ctx context.Context) error {
	nodes, err := w.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	leases, err := w.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing leases of nodes: %w", err)
	}
	renewed := map[string]metav1.MicroTime{}
	for _, l := range leases.Items {
		renewed[l.Name] = renewTime(&l)
	}
	now, before := w.now(), w.seen
	w.seen = map[string]seen{}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		s, known := before[n.Name]
		if t := renewed[n.Name]; !known || !t.Equal(&s.renewed) {
			s = seen{t, now}
		}
		w.seen[n.Name] = s
		if silent := now.Sub(s.at); mortal(n) && silent >= w.after {
			if err := w.remove(ctx, n, silent); err != nil {
				return err
			}
		}
	}
	return nil
}

func renewTime(l *coordinationv1.Lease) metav1.MicroTime {
	if l.Spec.RenewTime == nil {
		return metav1.MicroTime{}
	}
	return *l.Spec.RenewTime
}

// mortal says whether a node may be removed when it is not heard of.
func mortal(n *corev1.Node) bool {
	for _, role := range []string{"control-plane", "etcd", "master"} {
		if _, ok := n.Labels["node-role.kubernetes.io/"+role]; ok {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return n.Spec.ProviderID != ""
}

// remove deletes the node that was looked at, and no other that took its name since.
func (w *watch) remove(ctx context.Context, n *corev1.Node, silent time.Duration) error {
	err := w.client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &n.UID, ResourceVersion: &n.ResourceVersion}})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it is gone, or was heard of after all
		return nil
	case err != nil:
		return fmt.Errorf("removing node %s: %w", n.Name, err)
	}
	slog.Info("removed a node whose machine is gone", "node", n.Name, "providerID", n.Spec.ProviderID, "silent", silent.Round(time.Second).String())
	delete(w.seen, n.Name)
	w.removed(n, silent)
	return nil
}
