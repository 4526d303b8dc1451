package gateway

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// Result is what follows from a Snapshot.
type Result struct {
	Config   proxy.Config
	Statuses []metav1.Object   // copies of objects with the status they should have, where it differs
	Services []*corev1.Service // that Gateways need, as they should be
	Unused   []types.NamespacedName
	ACME     []string // host names to get certificates for
}

// Translate works a Snapshot out. It sorts the Snapshot's lists and changes nothing else of it.
func Translate(s *Snapshot) Result {
	w := newWorld(s)
	var out Result
	ours := w.classes(&out)
	policies := w.backendPolicies()
	all := w.gateways(ours)
	gateways, sets := map[types.NamespacedName]*gatewayState{}, map[types.NamespacedName]*setState{}
	for _, g := range all {
		gateways[nameOf(g)] = g
		for _, set := range g.sets {
			if set.allowed {
				sets[nameOf(set)] = set
			}
		}
	}
	var routes []*routeState
	for _, h := range s.HTTPRoutes {
		routes = append(routes, w.httpRoute(h))
	}
	for _, g := range s.GRPCRoutes {
		routes = append(routes, w.grpcRoute(g))
	}
	for _, t := range s.TLSRoutes {
		routes = append(routes, w.tlsRoute(t))
	}
	for _, r := range routes {
		w.attach(r, gateways, sets)
		for _, service := range r.services {
			w.noteAncestors(service, policies, r.gateways)
		}
	}
	ports := w.gatewayServices(all, &out)
	ingress := w.ingress(all)
	w.sites(all, ports, ingress, &out)

	for _, r := range routes {
		w.routeStatus(r, &out)
	}
	for _, g := range all {
		w.gatewayStatus(g, ports[nameOf(g)], &out)
	}
	for _, p := range policies {
		w.policyStatus(p, &out)
	}
	w.ingressStatus(ingress, ports[types.NamespacedName{Namespace: s.Namespace, Name: DefaultGateway}], &out)
	slices.Sort(out.ACME)
	out.ACME = slices.Compact(out.ACME)
	return out
}

// features are what GatewayClass says it can do beyond the core, by the names of upstream's tests. Retries are not among them: the
// standard channel's HTTPRoute has no field for them yet.
var features = []gatewayv1.FeatureName{
	"BackendTLSPolicy", "BackendTLSPolicySANValidation", "GRPCRoute", "GRPCRouteNamedRouteRule", "Gateway", "GatewayAddressEmpty",
	"GatewayFrontendClientCertificateValidation", "GatewayFrontendClientCertificateValidationInsecureFallback", "GatewayHTTPListenerIsolation",
	"GatewayHTTPSListenerDetectMisdirectedRequests", "GatewayPort8080", "HTTPRoute", "HTTPRoute303RedirectStatusCode",
	"HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode", "HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket",
	"HTTPRouteBackendRequestHeaderModification", "HTTPRouteBackendTimeout", "HTTPRouteCORS", "HTTPRouteDestinationPortMatching", "HTTPRouteHostRewrite",
	"HTTPRouteMethodMatching", "HTTPRouteNamedRouteRule", "HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect",
	"HTTPRouteQueryParamMatching", "HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror",
	"HTTPRouteRequestTimeout", "HTTPRouteResponseHeaderModification",
	"HTTPRouteSchemeRedirect", "ListenerSet", "ReferenceGrant", "TLSRoute", "TLSRouteModeMixed", "TLSRouteModeTerminate",
}

// classes finds the GatewayClasses that are ours.
func (w *world) classes(out *Result) map[string]bool {
	ours := map[string]bool{}
	for _, c := range w.Classes {
		if c.Spec.ControllerName != ControllerName {
			continue
		}
		conds := conditions{generation: c.Generation}
		if c.Spec.ParametersRef != nil {
			conds.set(accepted, false, string(gatewayv1.GatewayClassReasonInvalidParameters), "parametersRef: there are no parameters to refer to; remove it")
		} else {
			ours[c.Name] = true
			conds.set(accepted, true, string(gatewayv1.GatewayClassReasonAccepted), "")
		}
		n := c.DeepCopy()
		n.Status.Conditions = conds.since(c.Status.Conditions, w.Now)
		n.Status.SupportedFeatures = nil
		for _, f := range features {
			n.Status.SupportedFeatures = append(n.Status.SupportedFeatures, gatewayv1.SupportedFeature{Name: f})
		}
		out.status(c, n, c.Status, n.Status)
	}
	return ours
}

// sites puts together what each port of the proxy serves.
func (w *world) sites(all []*gatewayState, ports map[types.NamespacedName]*servicePorts, in *ingressState, out *Result) {
	own := types.NamespacedName{Namespace: w.Namespace, Name: DefaultGateway}
	for _, g := range all {
		p := ports[nameOf(g)]
		if p == nil {
			continue
		}
		for _, number := range p.numbers() {
			target := p.target[number]
			if target == 0 {
				continue // its Service is yet to come
			}
			port := proxy.Port{Number: target, Public: uint16(number)} //nolint:gosec // validated by the API
			site := g.site(number, &port)
			if len(site.Listeners) == 0 {
				continue
			}
			port.Sites = append(port.Sites, site)
			if nameOf(g) == own {
				if in != nil {
					port.Sites = append(port.Sites, in.site(port.TLS))
				}
				for _, other := range all {
					guest := proxy.Port{}
					if s := other.site(number, &guest); other != g && len(s.Listeners) > 0 && guest.TLS == port.TLS {
						port.Sites = append(port.Sites, s)
					}
				}
			}
			out.Config.Ports = append(out.Config.Ports, port)
		}
		for _, l := range g.listeners {
			if l.acme && l.serves() {
				out.ACME = append(out.ACME, l.hostname())
			}
		}
	}
	if in != nil {
		out.ACME = append(out.ACME, in.acme...)
	}
	slices.SortFunc(out.Config.Ports, func(a, b proxy.Port) int { return int(a.Number) - int(b.Number) })
}

// site is what a Gateway's listeners of a port serve.
func (s *gatewayState) site(number int32, port *proxy.Port) proxy.Site {
	var site proxy.Site
	for _, l := range s.listeners {
		if l.Port != number || !l.serves() {
			continue
		}
		port.TLS = isTLS(l.Protocol)
		kind, name := l.owner()
		site.Listeners = append(site.Listeners, proxy.Listener{
			Name: fmt.Sprintf("%s %s %s", kind, name, l.Name), Hostname: l.hostname(), Certificates: l.certs,
			ClientCA: l.clientCA, Routes: l.routes, TLSRoutes: l.tlsRoutes,
		})
	}
	return site
}

func (o *Result) status(old, changed metav1.Object, before, after any) {
	if !same(before, after) {
		o.Statuses = append(o.Statuses, changed)
	}
	_ = old
}

func (w *world) routeStatus(r *routeState, out *Result) {
	// Statuses of other controllers stay; ours of parents that are no more go.
	var parents []gatewayv1.RouteParentStatus
	for _, b := range r.before {
		if b.ControllerName != ControllerName {
			parents = append(parents, b)
		}
	}
	if len(r.statuses) == 0 && len(parents) == len(r.before) {
		return
	}
	parents = append(parents, r.statuses...)
	if parents == nil {
		parents = []gatewayv1.RouteParentStatus{}
	}
	if same(r.before, parents) {
		return
	}
	switch o := r.Object.(type) {
	case *gatewayv1.HTTPRoute:
		n := o.DeepCopy()
		n.Status.Parents = parents
		out.Statuses = append(out.Statuses, n)
	case *gatewayv1.GRPCRoute:
		n := o.DeepCopy()
		n.Status.Parents = parents
		out.Statuses = append(out.Statuses, n)
	case *gatewayv1.TLSRoute:
		n := o.DeepCopy()
		n.Status.Parents = parents
		out.Statuses = append(out.Statuses, n)
	}
}

// gatewayStatus writes what became of a Gateway, its listeners and its sets.
func (w *world) gatewayStatus(s *gatewayState, p *servicePorts, out *Result) {
	n := s.DeepCopy()
	n.Status.Addresses = nil
	if p != nil {
		n.Status.Addresses = p.addresses
	}
	switch {
	case !s.conds.isTrue(accepted):
		s.conds.unless(programmed, false, string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted")
	case p == nil || len(p.addresses) == 0:
		s.conds.set(programmed, false, string(gatewayv1.GatewayReasonAddressNotAssigned), "its Service has no address yet")
	case p.unusable != "":
		s.conds.set(programmed, false, string(gatewayv1.GatewayReasonAddressNotUsable), p.unusable)
	case !slices.ContainsFunc(s.listeners, func(l *listener) bool { return l.serves() }):
		s.conds.set(programmed, false, string(gatewayv1.GatewayReasonInvalid), "no listener can be served")
	default:
		s.conds.set(programmed, true, string(gatewayv1.GatewayReasonProgrammed), "")
	}
	n.Status.Conditions = s.conds.since(s.Status.Conditions, w.Now)
	n.Status.Listeners = nil
	for _, l := range s.listeners {
		if l.set != nil {
			continue
		}
		var before []metav1.Condition
		for _, b := range s.Status.Listeners {
			if b.Name == l.Name {
				before = b.Conditions
			}
		}
		n.Status.Listeners = append(n.Status.Listeners, gatewayv1.ListenerStatus{
			Name: l.Name, SupportedKinds: l.kinds, AttachedRoutes: l.attached, Conditions: l.conds.since(before, w.Now),
		})
	}
	n.Status.AttachedListenerSets = s.attachedSets()
	out.status(s.Gateway, n, s.Status, n.Status)
	for _, set := range s.sets {
		w.setStatus(set, out)
	}
}

func (w *world) setStatus(set *setState, out *Result) {
	n := set.DeepCopy()
	n.Status.Conditions = set.conds.since(set.Status.Conditions, w.Now)
	n.Status.Listeners = nil
	for _, l := range set.listeners {
		var before []metav1.Condition
		for _, b := range set.Status.Listeners {
			if b.Name == l.Name {
				before = b.Conditions
			}
		}
		n.Status.Listeners = append(n.Status.Listeners, gatewayv1.ListenerEntryStatus{
			Name: l.Name, SupportedKinds: l.kinds, AttachedRoutes: l.attached, Conditions: l.conds.since(before, w.Now),
		})
	}
	out.status(set.ListenerSet, n, set.Status, n.Status)
}

func (w *world) policyStatus(p *policy, out *Result) {
	n := p.DeepCopy()
	var list []gatewayv1.PolicyAncestorStatus
	for _, a := range p.Status.Ancestors {
		if a.ControllerName != ControllerName {
			list = append(list, a)
		}
	}
	for _, g := range w.Gateways {
		if !p.ancestors[nameOf(g)] || len(list) == 16 {
			continue
		}
		group, kind, namespace := gatewayv1.Group(gatewayv1.GroupName), gatewayv1.Kind("Gateway"), gatewayv1.Namespace(g.Namespace)
		ref := gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &namespace, Name: gatewayv1.ObjectName(g.Name)}
		var before []metav1.Condition
		for _, a := range p.Status.Ancestors {
			if a.ControllerName == ControllerName && sameParent(a.AncestorRef, ref) {
				before = a.Conditions
			}
		}
		list = append(list, gatewayv1.PolicyAncestorStatus{AncestorRef: ref, ControllerName: ControllerName, Conditions: p.conds.since(before, w.Now)})
	}
	if list == nil {
		list = []gatewayv1.PolicyAncestorStatus{}
	}
	n.Status.Ancestors = list
	if len(p.Status.Ancestors) == 0 && len(list) == 0 {
		return
	}
	out.status(p.BackendTLSPolicy, n, p.Status, n.Status)
}

func (w *world) ingressStatus(in *ingressState, p *servicePorts, out *Result) {
	if in == nil || p == nil {
		return
	}
	for _, i := range in.objects {
		n := i.DeepCopy()
		n.Status.LoadBalancer.Ingress = nil
		for _, a := range p.outside {
			one := networkingv1.IngressLoadBalancerIngress{IP: a}
			if strings.ContainsFunc(a, func(r rune) bool { return r > 'f' && r <= 'z' }) {
				one = networkingv1.IngressLoadBalancerIngress{Hostname: a}
			}
			n.Status.LoadBalancer.Ingress = append(n.Status.LoadBalancer.Ingress, one)
		}
		out.status(i, n, i.Status, n.Status)
	}
}
