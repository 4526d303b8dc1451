package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// gatewayState is a Gateway of ours as it comes to be understood.
type gatewayState struct {
	*gatewayv1.Gateway
	conds     conditions
	listeners []*listener // its own, then those of its sets
	sets      []*setState
}

// setState is a ListenerSet that belongs to a Gateway of ours.
type setState struct {
	*gatewayv1.ListenerSet
	conds     conditions
	gateway   *gatewayState
	listeners []*listener
	allowed   bool
}

// listener is one of a Gateway or of a ListenerSet.
type listener struct {
	gatewayv1.Listener
	gateway   *gatewayState
	set       *setState
	conds     conditions
	kinds     []gatewayv1.RouteGroupKind
	attached  int32
	certs     []proxy.Certificate
	acme      bool
	clientCA  *proxy.ClientCA
	routes    []proxy.Route
	tlsRoutes []proxy.TLSRoute
}

// owner is the kind, namespace and name of the object that lists the listener.
func (l *listener) owner() (kind string, name types.NamespacedName) {
	if l.set != nil {
		return "ListenerSet", nameOf(l.set)
	}
	return "Gateway", nameOf(l.gateway)
}

func (l *listener) hostname() string { return strings.ToLower(string(deref(l.Hostname, ""))) }

func (l *listener) accepted() bool { return l.conds.isTrue(accepted) }

func (l *listener) serves() bool { return l.accepted() && l.conds.isTrue(programmed) }

// isTLS says whether connections begin with a TLS handshake.
func isTLS(p gatewayv1.ProtocolType) bool {
	return p == gatewayv1.HTTPSProtocolType || p == gatewayv1.TLSProtocolType
}

// gateways finds the Gateways of our classes and validates what they and their ListenerSets list.
func (w *world) gateways(ours map[string]bool) []*gatewayState {
	var all []*gatewayState
	for _, g := range w.Gateways {
		if !ours[string(g.Spec.GatewayClassName)] {
			continue
		}
		s := &gatewayState{Gateway: g, conds: conditions{generation: g.Generation}}
		for _, spec := range g.Spec.Listeners {
			s.listeners = append(s.listeners, &listener{Listener: spec, gateway: s, conds: conditions{generation: g.Generation}})
		}
		w.listenerSets(s)
		s.infrastructure()
		for _, l := range s.listeners {
			w.validate(l)
		}
		s.conflicts()
		w.conclude(s)
		all = append(all, s)
	}
	return all
}

// infrastructure refuses what a Gateway asks for and we do not have.
func (s *gatewayState) infrastructure() {
	if i := s.Spec.Infrastructure; i != nil && i.ParametersRef != nil {
		s.conds.set(accepted, false, string(gatewayv1.GatewayReasonInvalidParameters), "infrastructure.parametersRef: there are no parameters to refer to; remove it")
	}
	for _, a := range s.Spec.Addresses {
		kind := deref(a.Type, gatewayv1.IPAddressType)
		_, err := netip.ParseAddr(a.Value)
		if kind != gatewayv1.IPAddressType || (a.Value != "" && err != nil) {
			s.conds.set(accepted, false, string(gatewayv1.GatewayReasonUnsupportedAddress), fmt.Sprintf("addresses: %s %q: only IP addresses can be asked for", kind, a.Value))
		}
	}
}

// listenerSets adds the listeners of the sets that a Gateway allows.
func (w *world) listenerSets(s *gatewayState) {
	from, selector := gatewayv1.NamespacesFromNone, (*gatewayv1.ListenerNamespaces)(nil)
	if a := s.Spec.AllowedListeners; a != nil && a.Namespaces != nil {
		selector = a.Namespaces
		from = deref(selector.From, gatewayv1.NamespacesFromNone)
	}
	for _, ls := range w.ListenerSets {
		ref := ls.Spec.ParentRef
		if deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName || deref(ref.Kind, "Gateway") != "Gateway" || string(ref.Name) != s.Name ||
			string(deref(ref.Namespace, gatewayv1.Namespace(ls.Namespace))) != s.Namespace {
			continue
		}
		set := &setState{ListenerSet: ls, gateway: s, conds: conditions{generation: ls.Generation}}
		s.sets = append(s.sets, set)
		if set.allowed = selector != nil && w.selects(from, selector.Selector, s.Namespace, ls.Namespace); !set.allowed {
			set.conds.set(accepted, false, string(gatewayv1.ListenerSetReasonNotAllowed), "the Gateway's allowedListeners does not let this namespace in")
			set.conds.set(programmed, false, string(gatewayv1.ListenerSetReasonNotAllowed), "the Gateway's allowedListeners does not let this namespace in")
			continue
		}
		for _, e := range ls.Spec.Listeners {
			l := &listener{
				Listener: gatewayv1.Listener(e),
				gateway:  s, set: set, conds: conditions{generation: ls.Generation},
			}
			set.listeners = append(set.listeners, l)
			s.listeners = append(s.listeners, l)
		}
	}
}

// validate looks at a listener by itself.
func (w *world) validate(l *listener) {
	var supported []gatewayv1.Kind
	passthrough := l.TLS != nil && deref(l.TLS.Mode, gatewayv1.TLSModeTerminate) == gatewayv1.TLSModePassthrough
	switch l.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType:
		supported = []gatewayv1.Kind{"HTTPRoute", "GRPCRoute"}
	case gatewayv1.TLSProtocolType:
		supported = []gatewayv1.Kind{"TLSRoute"}
	default:
		l.conds.set(accepted, false, string(gatewayv1.ListenerReasonUnsupportedProtocol), fmt.Sprintf("protocol %s: the ingress speaks HTTP, HTTPS and TLS", l.Protocol))
		l.conds.set(programmed, false, string(gatewayv1.ListenerReasonInvalid), "the protocol is not supported")
		l.conds.set(resolvedRefs, true, string(gatewayv1.ListenerReasonResolvedRefs), "")
		l.kinds = []gatewayv1.RouteGroupKind{}
		return
	}
	if l.Protocol == gatewayv1.HTTPSProtocolType && passthrough {
		l.conds.set(accepted, false, string(gatewayv1.ListenerReasonUnsupportedValue), "tls.mode: HTTPS ends TLS here; use protocol TLS to pass connections on")
		l.conds.set(programmed, false, string(gatewayv1.ListenerReasonInvalid), "tls.mode is not supported with this protocol")
	}
	w.routeKinds(l, supported)
	if isTLS(l.Protocol) && !passthrough {
		w.certificates(l)
	}
	if isTLS(l.Protocol) {
		w.frontendValidation(l)
	}
	l.conds.unless(resolvedRefs, true, string(gatewayv1.ListenerReasonResolvedRefs), "")
	l.conds.unless(accepted, true, string(gatewayv1.ListenerReasonAccepted), "")
}

func (w *world) routeKinds(l *listener, supported []gatewayv1.Kind) {
	l.kinds = []gatewayv1.RouteGroupKind{}
	add := func(k gatewayv1.Kind) {
		group := gatewayv1.Group(gatewayv1.GroupName)
		l.kinds = append(l.kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: k})
	}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		for _, k := range supported {
			add(k)
		}
		return
	}
	for _, k := range l.AllowedRoutes.Kinds {
		if deref(k.Group, gatewayv1.GroupName) != gatewayv1.GroupName || !slices.Contains(supported, k.Kind) {
			l.conds.set(resolvedRefs, false, string(gatewayv1.ListenerReasonInvalidRouteKinds), fmt.Sprintf("allowedRoutes.kinds: %s is none that a listener of protocol %s can have", k.Kind, l.Protocol))
			continue
		}
		add(k.Kind)
	}
}

// certificates resolves what a listener shows to clients.
func (w *world) certificates(l *listener) {
	kind, own := l.owner()
	var refs []gatewayv1.SecretObjectReference
	if l.TLS != nil {
		refs = l.TLS.CertificateRefs
	}
	l.acme = w.ACME && l.hostname() != "" && !strings.HasPrefix(l.hostname(), "*") && w.issuer(l)
	if l.acme {
		if p := w.acmePair(l.hostname()); p != nil {
			l.certs = append(l.certs, proxy.Certificate{Pair: p})
		}
	}
	if len(refs) == 0 && !l.acme {
		l.conds.set(resolvedRefs, false, string(gatewayv1.ListenerReasonInvalidCertificateRef), "tls.certificateRefs is empty")
		return
	}
	for _, r := range refs {
		to := types.NamespacedName{Namespace: string(deref(r.Namespace, gatewayv1.Namespace(own.Namespace))), Name: string(r.Name)}
		reason, message := "", ""
		if deref(r.Group, "") != "" || deref(r.Kind, "Secret") != "Secret" {
			reason, message = string(gatewayv1.ListenerReasonInvalidCertificateRef), fmt.Sprintf("tls.certificateRefs: %s %s: only Secrets hold certificates", deref(r.Group, ""), deref(r.Kind, ""))
		} else if !w.granted(gatewayv1.GroupName, kind, own.Namespace, "", "Secret", to.Namespace, to.Name) {
			reason, message = string(gatewayv1.ListenerReasonRefNotPermitted), fmt.Sprintf("tls.certificateRefs: Secret %s: no ReferenceGrant there allows it", to)
		} else if pair, err := w.pair(to); err != nil {
			if l.acme {
				continue // the issuer's own Secret, yet to come
			}
			reason, message = string(gatewayv1.ListenerReasonInvalidCertificateRef), fmt.Sprintf("tls.certificateRefs: Secret %s: %v", to, err)
		} else {
			l.certs = append(l.certs, proxy.Certificate{Pair: pair})
		}
		if reason != "" {
			l.conds.set(resolvedRefs, false, reason, message)
		}
	}
}

// issuer says whether certificates shall come by ACME.
func (w *world) issuer(l *listener) bool {
	if l.set != nil && l.set.Annotations[IssuerAnnotation] == issuerACME {
		return true
	}
	return l.gateway.Annotations[IssuerAnnotation] == issuerACME
}

// conflicts marks listeners that another one, listed earlier, does not leave room for.
func (s *gatewayState) conflicts() {
	for i, l := range s.listeners {
		l.conds.unless(conflicted, false, string(gatewayv1.ListenerReasonNoConflicts), "")
		if tcp := l.Protocol == gatewayv1.TCPProtocolType; !l.accepted() && !tcp {
			continue
		}
		for _, other := range s.listeners[:i] {
			if other.Port != l.Port || !other.accepted() {
				continue
			}
			reason := ""
			switch {
			case isTLS(other.Protocol) != isTLS(l.Protocol), l.Protocol == gatewayv1.TCPProtocolType:
				reason = string(gatewayv1.ListenerReasonProtocolConflict)
			case other.hostname() == l.hostname() && other.Protocol != l.Protocol:
				reason = string(gatewayv1.ListenerReasonProtocolConflict)
			case other.hostname() == l.hostname():
				reason = string(gatewayv1.ListenerReasonHostnameConflict)
			}
			if reason != "" {
				message := fmt.Sprintf("listener %s has port %d already, with protocol %s and host name %q", other.Name, other.Port, other.Protocol, other.hostname())
				l.conds.set(conflicted, true, reason, message)
				l.conds.set(accepted, false, reason, message)
				l.conds.set(programmed, false, reason, message)
				break
			}
		}
	}
}

// conclude says of listeners, sets and the Gateway whether they are accepted and programmed, as far as that is known before
// its Service.
func (w *world) conclude(s *gatewayState) {
	refused := s.conds.find(accepted) != nil
	valid, invalid := 0, 0
	for _, l := range s.listeners {
		switch {
		case refused:
			l.conds.unless(programmed, false, string(gatewayv1.ListenerReasonInvalid), "the Gateway is not accepted")
		case !l.conds.isTrue(resolvedRefs) && (len(l.kinds) == 0 || (isTLS(l.Protocol) && len(l.certs) == 0 && !l.acme)):
			l.conds.unless(programmed, false, string(gatewayv1.ListenerReasonInvalid), "a reference does not lead anywhere")
		case !l.accepted():
			l.conds.unless(programmed, false, string(gatewayv1.ListenerReasonInvalid), "the listener is not accepted")
		default:
			l.conds.unless(programmed, true, string(gatewayv1.ListenerReasonProgrammed), "")
		}
		if l.set != nil {
			continue
		}
		if l.accepted() {
			valid++
		}
		if !l.accepted() || !l.conds.isTrue(resolvedRefs) {
			invalid++
		}
	}
	anyOfSets := slices.ContainsFunc(s.listeners, func(l *listener) bool { return l.set != nil && l.accepted() })
	switch {
	case refused:
	case valid == 0 && !anyOfSets:
		s.conds.set(accepted, false, string(gatewayv1.GatewayReasonListenersNotValid), "no listener is valid")
	case invalid > 0:
		s.conds.set(accepted, true, string(gatewayv1.GatewayReasonListenersNotValid), fmt.Sprintf("%d listeners are not valid", invalid))
	default:
		s.conds.set(accepted, true, string(gatewayv1.GatewayReasonAccepted), "")
	}
	for _, set := range s.sets {
		set.conclude(s.conds.isTrue(accepted))
	}
}

func (set *setState) conclude(parent bool) {
	if !set.allowed {
		return
	}
	good := 0
	for _, l := range set.listeners {
		if l.serves() {
			good++
		}
	}
	switch {
	case !parent:
		set.conds.set(accepted, false, string(gatewayv1.ListenerSetReasonParentNotAccepted), "the Gateway is not accepted")
		set.conds.set(programmed, false, string(gatewayv1.ListenerSetReasonParentNotAccepted), "the Gateway is not accepted")
	case good == 0:
		set.conds.set(accepted, false, string(gatewayv1.ListenerSetReasonListenersNotValid), "no listener is valid")
		set.conds.set(programmed, false, string(gatewayv1.ListenerSetReasonListenersNotValid), "no listener is valid")
	default:
		reason := string(gatewayv1.ListenerSetReasonAccepted)
		if good < len(set.listeners) {
			reason = string(gatewayv1.ListenerSetReasonListenersNotValid)
		}
		set.conds.set(accepted, true, reason, "")
		set.conds.set(programmed, true, string(gatewayv1.ListenerSetReasonProgrammed), "")
	}
}

// attachedSets counts the sets that are accepted.
func (s *gatewayState) attachedSets() *int32 {
	n := int32(0)
	for _, set := range s.sets {
		if set.conds.isTrue(accepted) {
			n++
		}
	}
	return &n
}

// lets says whether a listener allows a route of a kind and namespace.
func (w *world) lets(l *listener, kind gatewayv1.Kind, namespace string) bool {
	if !slices.ContainsFunc(l.kinds, func(k gatewayv1.RouteGroupKind) bool { return k.Kind == kind }) {
		return false
	}
	_, own := l.owner()
	from := gatewayv1.NamespacesFromSame
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		return w.selects(deref(a.Namespaces.From, from), a.Namespaces.Selector, own.Namespace, namespace)
	}
	return w.selects(from, nil, own.Namespace, namespace)
}

// intersect gives the host names that a listener and a route have in common; ok is false when there are none. No name at all
// means any.
func intersect(listener string, route []gatewayv1.Hostname) (names []string, ok bool) {
	if len(route) == 0 {
		if listener == "" {
			return nil, true
		}
		return []string{listener}, true
	}
	for _, h := range route {
		name := strings.ToLower(string(h))
		switch {
		case listener == "" || name == listener || covers(listener, name):
			names = append(names, name)
		case covers(name, listener):
			names = append(names, listener)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), len(names) > 0
}

// covers says whether a wildcard name takes another name, itself a wildcard or not.
func covers(wildcard, name string) bool {
	below, ok := strings.CutPrefix(wildcard, "*")
	return ok && strings.HasSuffix(strings.TrimPrefix(name, "*"), below) && len(strings.TrimPrefix(name, "*")) >= len(below) && name != below[1:] &&
		(strings.HasPrefix(name, "*") || len(name) > len(below))
}
