// Package servicelb is the load balancer for Services of type LoadBalancer: it publishes addresses of nodes in their status, and
// kube-proxy, which runs on every node anyway, does the forwarding.
//
// Other small distributions forward with pods, one per Service and node, each holding the ports by host ports and rules of
// its own. Here there are none, because nothing is left for them to do: kube-proxy installs, for every address in
// status.loadBalancer, the rules that lead its ports to the endpoints, whether or not a load balancer of flesh stands in front.
// So a Service costs no memory, no image and no start of a pod, its packets take one translation instead of two,
// loadBalancerSourceRanges, session affinity and externalTrafficPolicy work because kube-proxy has them, and with
// externalTrafficPolicy Local the endpoints see the client's own address. No node port is needed:
// allocateLoadBalancerNodePorts may be false.
//
// What is published: the addresses of the nodes that are Ready, external ones if any node has some, else internal ones, of
// the Service's address families, as VIPs (ipMode: VIP, since kube-proxy is to take the packets). Behind external ones come the
// internal ones of the same nodes: there the packets arrive whose address a router has translated. With externalTrafficPolicy
// Local, only nodes with an endpoint. While no node is Ready, the last addresses stay: they are as good as none, and whoever
// follows the status (DNS) is spared a storm. K3s's labels choose nodes:
//
//	svccontroller.k3s.cattle.io/enablelb  on nodes: as soon as one has it, only those with the value "true" are used
//	svccontroller.k3s.cattle.io/lbpool    on a Service: only nodes that also have it, with the same value
//
// as does node.kubernetes.io/exclude-from-external-load-balancers. Services with a loadBalancerClass are others'.
//
// A port of an address can lead to one Service. A second one that wants it stays pending, with an event and a condition that
// name the first; so does one that wants a port of the node itself, as the API's. It is published when the port becomes free.
//
// Everything published is applied (server-side apply) under a field manager of our own, so that it can be taken back without
// touching what others wrote, and no finalizer is needed: what is deleted is gone from kube-proxy too.
package servicelb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skerry-os/skerry/pkg/controllers"
)

// Name of the component.
const Name = "servicelb"

// FieldManager owns what is published.
const FieldManager = "skerry-servicelb"

// Controller is the component; reserved are TCP ports that no Service may take, since the nodes themselves listen there.
func Controller(reserved ...int32) controllers.Controller {
	return controllers.Controller{
		Name:  Name,
		Run:   func(ctx context.Context, k *controllers.Kit) error { return run(ctx, k, reserved) },
		Clean: clean,
	}
}

type balancer struct {
	*controllers.Kit
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	slices   discoverylisters.EndpointSliceLister
	reserved []int32
	told     map[string]string // Service -> the conflict it has had an event of
}

func run(ctx context.Context, k *controllers.Kit, reserved []int32) error {
	services, nodes := k.Informers.Core().V1().Services(), k.Informers.Core().V1().Nodes()
	endpoints := k.Informers.Discovery().V1().EndpointSlices()
	b := &balancer{Kit: k, services: services.Lister(), nodes: nodes.Lister(), slices: endpoints.Lister(), reserved: reserved, told: map[string]string{}}
	return k.Loop(ctx, controllers.Loop{
		What: "load balancers", On: []cache.SharedIndexInformer{services.Informer(), nodes.Informer(), endpoints.Informer()},
		Settle: 50 * time.Millisecond, Retry: 5 * time.Second, Same: sameNode,
		Pass: func(ctx context.Context) (time.Duration, error) { return 0, b.pass(ctx) },
	})
}

// pass publishes what differs.
func (b *balancer) pass(ctx context.Context) error {
	services, err := b.services.List(labels.Everything())
	if err != nil {
		return err
	}
	nodes, err := b.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	p := plan{nodes: nodes, reserved: b.reserved, serving: b.serving}
	var faults []error
	wanted := p.make(services)
	for key := range b.told {
		if w, ok := wanted[key]; !ok || w.conflict == "" {
			delete(b.told, key)
		}
	}
	for _, s := range services {
		w, ok := wanted[keyOf(s)]
		if !ok && (s.Spec.Type == corev1.ServiceTypeLoadBalancer || len(s.Status.LoadBalancer.Ingress) == 0) {
			continue // another's, or none and nothing left of one
		}
		if err := b.publish(ctx, s, w); err != nil && !apierrors.IsNotFound(err) {
			faults = append(faults, fmt.Errorf("%s: %w", keyOf(s), err))
		}
	}
	return errors.Join(faults...)
}

// serving are the nodes with endpoints of a Service: with ready ones, or, where there is none, with those that still serve
// while they end, as kube-proxy sees it.
func (b *balancer) serving(s *corev1.Service) map[string]bool {
	list, err := b.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{"kubernetes.io/service-name": s.Name}))
	if err != nil {
		return nil
	}
	ready, ending := map[string]bool{}, map[string]bool{}
	for _, slice := range list {
		for _, e := range slice.Endpoints {
			switch c := e.Conditions; {
			case e.NodeName == nil:
			case c.Ready == nil || *c.Ready:
				ready[*e.NodeName] = true
			case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
				ending[*e.NodeName] = true
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return ending
}

// publish makes a Service's status say w, and tells about it.
func (b *balancer) publish(ctx context.Context, s *corev1.Service, w want) error {
	if w.keep {
		return nil
	}
	status := applycorev1.ServiceStatus().WithLoadBalancer(applycorev1.LoadBalancerStatus())
	var now []corev1.LoadBalancerIngress
	for _, a := range w.addresses {
		i := corev1.LoadBalancerIngress{IP: a.String(), IPMode: new(corev1.LoadBalancerIPModeVIP)}
		apply := applycorev1.LoadBalancerIngress().WithIP(i.IP).WithIPMode(*i.IPMode)
		for _, p := range s.Spec.Ports {
			i.Ports = append(i.Ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
			apply.WithPorts(applycorev1.PortStatus().WithPort(p.Port).WithProtocol(p.Protocol))
		}
		now = append(now, i)
		status.LoadBalancer.WithIngress(apply)
	}
	had := conditionOf(s)
	if had == w.conflict && slices.EqualFunc(s.Status.LoadBalancer.Ingress, now, sameIngress) {
		return nil
	}
	if w.conflict != "" {
		status.WithConditions(applymetav1.Condition().WithType(corev1.LoadBalancerPortsError).WithStatus(metav1.ConditionTrue).
			WithReason(reasonTaken).WithMessage(w.conflict).WithObservedGeneration(s.Generation).WithLastTransitionTime(metav1.Now()))
	}
	apply := applycorev1.Service(s.Name, s.Namespace).WithStatus(status)
	if _, err := b.Client.CoreV1().Services(s.Namespace).ApplyStatus(ctx, apply, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return err
	}
	b.tell(s, w)
	return nil
}

// reasonTaken is the condition's reason and the event's.
const reasonTaken = "LoadBalancerPortTaken"

func (b *balancer) tell(s *corev1.Service, w want) {
	key := keyOf(s)
	switch {
	case w.conflict != "":
		if b.told[key] != w.conflict {
			b.Events.Event(s, corev1.EventTypeWarning, reasonTaken, w.conflict)
		}
		b.told[key] = w.conflict
	case len(w.addresses) > 0 && len(s.Status.LoadBalancer.Ingress) == 0:
		b.Events.Eventf(s, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Reachable at %s", join(w.addresses))
	case len(w.addresses) > 0:
		b.Events.Eventf(s, corev1.EventTypeNormal, "UpdatedLoadBalancer", "Now reachable at %s", join(w.addresses))
	case s.Spec.Type == corev1.ServiceTypeLoadBalancer:
		b.Events.Event(s, corev1.EventTypeWarning, "UnAvailableLoadBalancer", "No node can take its packets")
	}
}

func conditionOf(s *corev1.Service) string {
	for _, c := range s.Status.Conditions {
		if c.Type == corev1.LoadBalancerPortsError && c.Reason == reasonTaken {
			return c.Message
		}
	}
	return ""
}

func sameIngress(a, b corev1.LoadBalancerIngress) bool {
	return a.IP == b.IP && a.Hostname == b.Hostname && (a.IPMode == nil || *a.IPMode == *b.IPMode) && slices.EqualFunc(a.Ports, b.Ports, func(a, b corev1.PortStatus) bool {
		return a.Port == b.Port && a.Protocol == b.Protocol
	})
}

func join(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// clean takes back everything published.
func clean(ctx context.Context, client kubernetes.Interface) error {
	list, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if !slices.ContainsFunc(s.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == FieldManager }) {
			continue
		}
		apply := applycorev1.Service(s.Name, s.Namespace).WithStatus(applycorev1.ServiceStatus())
		_, err := client.CoreV1().Services(s.Namespace).ApplyStatus(ctx, apply, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("service %s: taking its addresses back: %w", keyOf(&s), err)
		}
	}
	return nil
}
