package rollout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skerry-os/skerry/pkg/controllers"
)

// Controller carries out UpdatePlans, and Plans of the system-upgrade-controller.
func Controller() controllers.Controller { return controllers.Controller{Name: Name, Run: run} }

type controller struct {
	*controllers.Kit
	dynamic  dynamic.Interface
	nodes    corelisters.NodeLister
	plans    cache.GenericLister
	upgrades cache.GenericLister
	now      func() time.Time
}

func run(ctx context.Context, k *controllers.Kit) error {
	config := *k.Config
	config.ContentType = runtime.ContentTypeJSON // custom resources have no other
	dyn, err := dynamic.NewForConfig(&config)
	if err != nil {
		return err
	}
	custom := dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0)
	nodes, plans, upgrades := k.Informers.Core().V1().Nodes(), custom.ForResource(Plans), custom.ForResource(Upgrades)
	on := []cache.SharedIndexInformer{nodes.Informer(), plans.Informer(), upgrades.Informer()}
	custom.Start(ctx.Done())
	defer custom.Shutdown()
	c := &controller{Kit: k, dynamic: dyn, nodes: nodes.Lister(), plans: plans.Lister(), upgrades: upgrades.Lister(), now: time.Now}
	return k.Loop(ctx, controllers.Loop{What: "update plans", On: on, Settle: 100 * time.Millisecond, Retry: 15 * time.Second, Same: same, Pass: c.pass})
}

// same says whether a plan would decide the same of both.
func same(a, b *corev1.Node) bool {
	return a.Annotations[reportAnnotation] == b.Annotations[reportAnnotation] && a.Annotations[requestAnnotation] == b.Annotations[requestAnnotation] &&
		memberOf(a).ready == memberOf(b).ready && memberOf(a).kubelet == memberOf(b).kubelet && maps.Equal(a.Labels, b.Labels)
}

// pass decides for all plans and tells nodes and plans. It gives when to look again if nothing changes; 0 is never.
func (c *controller) pass(ctx context.Context) (again time.Duration, err error) {
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return 0, err
	}
	var all []member
	for _, n := range nodes {
		all = append(all, memberOf(n))
	}
	plans, err := c.list()
	if err != nil {
		return 0, err
	}
	var faults []error
	taken := map[string]string{} // node -> plan
	for _, u := range plans {
		p, err := u.plan()
		if err != nil {
			faults = append(faults, c.tell(ctx, u, Status{Phase: Refused, Message: err.Error()}))
			continue
		}
		var mine []member
		var lost []string
		for _, m := range all {
			if !p.selector.Matches(labels.Set(m.node.Labels)) {
				continue
			}
			if other := taken[m.node.Name]; other != "" {
				lost = append(lost, m.node.Name+" ("+other+")")
				continue
			}
			taken[m.node.Name] = u.Name
			mine = append(mine, m)
		}
		d := p.decide(u.Status, all, mine, c.now())
		if len(lost) > 0 {
			d.status.Message += "; left to older plans: " + strings.Join(lost, ", ")
		}
		for i, m := range all {
			if taken[m.node.Name] == u.Name {
				all[i].request = d.requests[m.node.Name] // for the plans that follow
				faults = append(faults, c.ask(ctx, m, all[i].request))
			}
		}
		faults = append(faults, c.tell(ctx, u, d.status))
		if d.again > 0 && (again == 0 || d.again < again) {
			again = d.again
		}
	}
	for _, m := range all { // whose plan is gone
		if m.request != nil && taken[m.node.Name] == "" {
			faults = append(faults, c.ask(ctx, m, nil))
		}
	}
	faults = append(faults, c.translate(ctx, plans))
	return again, errors.Join(faults...)
}

// list gives the plans, the oldest first.
func (c *controller) list() ([]*UpdatePlan, error) {
	objects, err := c.plans.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	var plans []*UpdatePlan
	for _, o := range objects {
		plans = append(plans, updatePlan(o.(*unstructured.Unstructured)))
	}
	slices.SortFunc(plans, func(a, b *UpdatePlan) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return plans, nil
}

// ask leaves a node with the request; nil takes it back.
func (c *controller) ask(ctx context.Context, m member, r *Request) error {
	body := patch(requestAnnotation, nil)
	if r != nil {
		body = patch(requestAnnotation, r)
		if have, ok := m.node.Annotations[requestAnnotation]; ok && bytes.Equal(patchOf(have), body) {
			return nil
		}
	}
	_, err := c.Client.CoreV1().Nodes().Patch(ctx, m.node.Name, types.MergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil && r != nil && r.Version != "" && (m.request == nil || m.request.Version != r.Version) {
		c.Events.Eventf(m.node, corev1.EventTypeNormal, "UpdateRequested", "plan %s brings the node to release %s", r.Plan, r.Version)
	}
	return err
}

// patchOf is the patch that would write an annotation's text again.
func patchOf(text string) []byte {
	b, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{requestAnnotation: text}}})
	return b
}

// tell writes a plan's status if it is another one, and an event when its phase is.
func (c *controller) tell(ctx context.Context, u *UpdatePlan, s Status) error {
	s.ObservedGeneration = u.Generation
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if have, err := json.Marshal(u.Status); err == nil && bytes.Equal(have, text) {
		return nil
	}
	// A merge patch leaves what it does not name; what is gone has to be named.
	body := fmt.Appendf(nil, `{"status": %s}`, withNulls(text))
	if _, err := c.dynamic.Resource(Plans).Patch(ctx, u.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status"); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("update plan %s: %w", u.Name, err)
	}
	if s.Phase != u.Status.Phase {
		kind := corev1.EventTypeNormal
		if s.Phase == Failed || s.Phase == Refused {
			kind = corev1.EventTypeWarning
		}
		o := &corev1.ObjectReference{APIVersion: Group + "/v1alpha1", Kind: "UpdatePlan", Name: u.Name, UID: u.UID}
		c.Events.Event(o, kind, s.Phase, s.Message)
		slog.Info("update plan", "plan", u.Name, "phase", s.Phase, "message", s.Message)
	}
	return nil
}

// withNulls names each field of a Status that a JSON text of it leaves out.
func withNulls(text []byte) []byte {
	fields := map[string]any{"message": nil, "version": nil, "channel": nil, "progress": nil, "updating": nil, "failed": nil, "stage": nil, "stageDone": nil}
	_ = json.Unmarshal(text, &fields) // made by us just now
	out, _ := json.Marshal(fields)
	return out
}
