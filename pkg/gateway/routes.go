package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// routeState is a route of any kind as it comes to be understood.
type routeState struct {
	metav1.Object
	kind      gatewayv1.Kind
	namespace string
	name      string
	parents   []gatewayv1.ParentReference
	hostnames []gatewayv1.Hostname
	before    []gatewayv1.RouteParentStatus

	unresolved *refProblem // the first reference that leads nowhere
	refused    string      // what in it cannot be done
	services   []types.NamespacedName
	rules      []proxy.Route // without host names
	tls        []proxy.TLSRoute

	statuses []gatewayv1.RouteParentStatus
	gateways []*gatewayState // that accepted it
}

func newRoute(o metav1.Object, kind gatewayv1.Kind, common gatewayv1.CommonRouteSpec, hosts []gatewayv1.Hostname, before []gatewayv1.RouteParentStatus) *routeState {
	return &routeState{Object: o, kind: kind, namespace: o.GetNamespace(), name: o.GetName(), parents: common.ParentRefs, hostnames: hosts, before: before}
}

func (r *routeState) id() string {
	return strings.ToLower(string(r.kind)) + "/" + r.namespace + "/" + r.name
}

func (r *routeState) unresolvedBy(p *refProblem) {
	if p != nil && r.unresolved == nil {
		r.unresolved = p
	}
}

func (r *routeState) refuse(format string, a ...any) {
	if r.refused == "" {
		r.refused = fmt.Sprintf(format, a...)
	}
}

// attach finds the listeners of ours that a route belongs to, gives it to them, and notes what its status says.
func (w *world) attach(r *routeState, gateways map[types.NamespacedName]*gatewayState, sets map[types.NamespacedName]*setState) {
	for _, ref := range r.parents {
		if deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName {
			continue
		}
		name := types.NamespacedName{Namespace: string(deref(ref.Namespace, gatewayv1.Namespace(r.namespace))), Name: string(ref.Name)}
		var g *gatewayState
		var listeners []*listener
		switch deref(ref.Kind, "Gateway") {
		case "Gateway":
			if g = gateways[name]; g == nil {
				continue
			}
			for _, l := range g.listeners {
				if l.set == nil {
					listeners = append(listeners, l)
				}
			}
		case "ListenerSet":
			set := sets[name]
			if set == nil {
				continue
			}
			g, listeners = set.gateway, set.listeners
		default:
			continue
		}
		c := conditions{generation: r.GetGeneration()}
		if reason, message := w.attachTo(r, ref, listeners); reason != gatewayv1.RouteReasonAccepted {
			c.set(string(gatewayv1.RouteConditionAccepted), false, string(reason), message)
		} else {
			c.set(string(gatewayv1.RouteConditionAccepted), true, string(reason), "")
			r.gateways = append(r.gateways, g)
		}
		if r.unresolved != nil {
			c.set(string(gatewayv1.RouteConditionResolvedRefs), false, string(r.unresolved.reason), r.unresolved.message)
		} else {
			c.set(string(gatewayv1.RouteConditionResolvedRefs), true, string(gatewayv1.RouteReasonResolvedRefs), "")
		}
		status := gatewayv1.RouteParentStatus{ParentRef: ref, ControllerName: ControllerName}
		status.Conditions = c.since(conditionsOf(r.before, ref), w.Now)
		r.statuses = append(r.statuses, status)
	}
}

func conditionsOf(before []gatewayv1.RouteParentStatus, ref gatewayv1.ParentReference) []metav1.Condition {
	for _, b := range before {
		if b.ControllerName == ControllerName && sameParent(b.ParentRef, ref) {
			return b.Conditions
		}
	}
	return nil
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return a.Name == b.Name && deref(a.Namespace, "") == deref(b.Namespace, "") && deref(a.SectionName, "") == deref(b.SectionName, "") &&
		deref(a.Port, 0) == deref(b.Port, 0) && deref(a.Kind, "Gateway") == deref(b.Kind, "Gateway")
}

// attachTo gives the route to those of the listeners that it names and that take it.
func (w *world) attachTo(r *routeState, ref gatewayv1.ParentReference, listeners []*listener) (gatewayv1.RouteConditionReason, string) {
	if r.refused != "" {
		return gatewayv1.RouteReasonUnsupportedValue, r.refused
	}
	named, allowed, matched := 0, 0, 0
	for _, l := range listeners {
		if (ref.SectionName != nil && *ref.SectionName != "" && l.Name != *ref.SectionName) || (ref.Port != nil && l.Port != *ref.Port) {
			continue
		}
		named++
		if !w.lets(l, r.kind, r.namespace) {
			continue
		}
		allowed++
		hosts, ok := intersect(l.hostname(), r.hostnames)
		if !ok {
			continue
		}
		matched++
		if !l.accepted() {
			continue
		}
		l.attached++
		for _, one := range r.rules {
			one.Hostnames = hosts
			l.routes = append(l.routes, one)
		}
		for _, one := range r.tls {
			one.Hostnames = hosts
			if len(hosts) == 0 {
				one.Hostnames = []string{""}
			}
			one.Terminate = l.TLS == nil || deref(l.TLS.Mode, gatewayv1.TLSModeTerminate) == gatewayv1.TLSModeTerminate
			l.tlsRoutes = append(l.tlsRoutes, one)
		}
	}
	switch {
	case named == 0:
		return gatewayv1.RouteReasonNoMatchingParent, "no listener has this name and port"
	case allowed == 0:
		return gatewayv1.RouteReasonNotAllowedByListeners, "no listener allows this kind of route from this namespace"
	case matched == 0:
		return gatewayv1.RouteReasonNoMatchingListenerHostname, "no listener has a host name in common with the route"
	}
	return gatewayv1.RouteReasonAccepted, ""
}

// httpRoute reads an HTTPRoute's rules.
func (w *world) httpRoute(h *gatewayv1.HTTPRoute) *routeState {
	r := newRoute(h, "HTTPRoute", h.Spec.CommonRouteSpec, h.Spec.Hostnames, h.Status.Parents)
	for i := range h.Spec.Rules {
		rule := &h.Spec.Rules[i]
		a := &proxy.Action{Name: r.id(), Filters: w.filters(r, rule.Filters)}
		for j := range rule.BackendRefs {
			ref := &rule.BackendRefs[j]
			b, problem := w.backend(r, ref.BackendObjectReference)
			r.unresolvedBy(problem)
			b.Weight = int(deref(ref.Weight, 1))
			b.Filters = w.filters(r, ref.Filters)
			a.Backends = append(a.Backends, b)
		}
		if t := rule.Timeouts; t != nil {
			a.Timeout, a.BackendTimeout = r.duration(t.Request), r.duration(t.BackendRequest)
		}
		if t := rule.Retry; t != nil {
			a.Retry = &proxy.Retry{Attempts: deref(t.Attempts, 1), Backoff: r.duration(t.Backoff)}
			for _, c := range t.Codes {
				a.Retry.Codes = append(a.Retry.Codes, int(c))
			}
		}
		if rule.SessionPersistence != nil {
			r.refuse("rules[%d].sessionPersistence is not supported", i)
		}
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range matches {
			r.rules = append(r.rules, proxy.Route{Match: r.match(&matches[j]), Action: a})
		}
	}
	return r
}

func (r *routeState) match(m *gatewayv1.HTTPRouteMatch) proxy.Match {
	out := proxy.Match{Path: "/"}
	if p := m.Path; p != nil {
		out.Path = deref(p.Value, "/")
		switch deref(p.Type, gatewayv1.PathMatchPathPrefix) {
		case gatewayv1.PathMatchPathPrefix:
		case gatewayv1.PathMatchExact:
			out.PathKind = proxy.Exact
		case gatewayv1.PathMatchRegularExpression:
			out.PathKind, out.Regexp = proxy.Regexp, r.expression(out.Path)
		default:
			r.refuse("path type %s is not supported", *p.Type)
		}
	}
	out.Method = string(deref(m.Method, ""))
	for _, h := range m.Headers {
		out.Headers = r.pair(out.Headers, canonical(string(h.Name)), h.Value, string(deref(h.Type, gatewayv1.HeaderMatchExact)))
	}
	for _, q := range m.QueryParams {
		out.Query = r.pair(out.Query, string(q.Name), q.Value, string(deref(q.Type, gatewayv1.QueryParamMatchExact)))
	}
	return out
}

// pair adds a condition; of several with the same name only the first counts.
func (r *routeState) pair(list []proxy.Pair, name, value, kind string) []proxy.Pair {
	if slices.ContainsFunc(list, func(p proxy.Pair) bool { return p.Name == name }) {
		return list
	}
	p := proxy.Pair{Name: name, Value: value}
	switch kind {
	case "Exact":
	case "RegularExpression":
		p.Regexp = r.expression(value)
	default:
		r.refuse("match type %s is not supported", kind)
	}
	return append(list, p)
}

// expression compiles a regular expression, which must match the whole of a text.
func (r *routeState) expression(text string) *regexp.Regexp {
	e, err := regexp.Compile("^(?:" + text + ")$")
	if err != nil {
		r.refuse("regular expression %q: %v", text, err)
		return regexp.MustCompile(`$^x`) // nothing
	}
	return e
}

func (r *routeState) duration(d *gatewayv1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	t, err := time.ParseDuration(string(*d))
	if err != nil {
		r.refuse("duration %q: %v", *d, err)
	}
	return t
}

// grpcRoute reads a GRPCRoute's rules: gRPC is HTTP/2 with the method as path.
func (w *world) grpcRoute(g *gatewayv1.GRPCRoute) *routeState {
	r := newRoute(g, "GRPCRoute", g.Spec.CommonRouteSpec, g.Spec.Hostnames, g.Status.Parents)
	for i := range g.Spec.Rules {
		rule := &g.Spec.Rules[i]
		a := &proxy.Action{Name: r.id(), Filters: w.filters(r, grpcFilters(rule.Filters))}
		for j := range rule.BackendRefs {
			ref := &rule.BackendRefs[j]
			b, problem := w.backend(r, ref.BackendObjectReference)
			r.unresolvedBy(problem)
			b.Weight, b.Protocol = int(deref(ref.Weight, 1)), proxy.H2C
			b.Filters = w.filters(r, grpcFilters(ref.Filters))
			a.Backends = append(a.Backends, b)
		}
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for _, m := range matches {
			out := r.grpcMethod(m.Method)
			out.GRPC = true
			for _, h := range m.Headers {
				out.Headers = r.pair(out.Headers, canonical(string(h.Name)), h.Value, string(deref(h.Type, gatewayv1.GRPCHeaderMatchExact)))
			}
			r.rules = append(r.rules, proxy.Route{Match: out, Action: a})
		}
	}
	return r
}

func (r *routeState) grpcMethod(m *gatewayv1.GRPCMethodMatch) proxy.Match {
	out := proxy.Match{Path: "/"}
	if m == nil {
		return out
	}
	service, method := deref(m.Service, ""), deref(m.Method, "")
	if deref(m.Type, gatewayv1.GRPCMethodMatchExact) == gatewayv1.GRPCMethodMatchExact {
		switch {
		case service != "" && method != "":
			return proxy.Match{PathKind: proxy.Exact, Path: "/" + service + "/" + method}
		case service != "":
			return proxy.Match{Path: "/" + service}
		case method == "":
			return out
		}
		method = regexp.QuoteMeta(method)
	}
	text := func(s string) string {
		if s == "" {
			return "[^/]+"
		}
		return "(?:" + s + ")"
	}
	out.PathKind, out.Path = proxy.Regexp, "/"+text(service)+"/"+text(method)
	out.Regexp = r.expression(out.Path)
	return out
}

func grpcFilters(list []gatewayv1.GRPCRouteFilter) (out []gatewayv1.HTTPRouteFilter) {
	for _, f := range list {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}

// tlsRoute reads a TLSRoute's rules.
func (w *world) tlsRoute(t *gatewayv1.TLSRoute) *routeState {
	r := newRoute(t, "TLSRoute", t.Spec.CommonRouteSpec, t.Spec.Hostnames, t.Status.Parents)
	for i := range t.Spec.Rules {
		one := proxy.TLSRoute{}
		for _, ref := range t.Spec.Rules[i].BackendRefs {
			b, problem := w.backend(r, ref.BackendObjectReference)
			r.unresolvedBy(problem)
			b.Weight = int(deref(ref.Weight, 1))
			one.Backends = append(one.Backends, b)
		}
		r.tls = append(r.tls, one)
	}
	return r
}
