// Package gateway turns Gateway API and Ingress objects into what the proxy serves and what the objects' statuses say. Translate
// is one function from a Snapshot of objects to a Result, without clock, network or state, so that every node of a cluster comes
// to the same result and tests need no cluster.
//
// One program serves all Gateways. Each Gateway has a Service of its own in the namespace of the ingress: its ports lead to
// ports of the proxy that serve this Gateway alone, so that Gateways with equal ports and names do not meet. The default Gateway's
// Service holds the nodes' ports 80 and 443. On these also answers what Ingress objects and other Gateways ask for on the same
// ports, as long as nobody older serves the same host and path: a node has one address, and people expect to reach their routes
// at it.
package gateway

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Names that manifests and people use.
const (
	ControllerName        = "skerry.local/gateway"
	IngressController     = "skerry.local/ingress"
	DefaultGateway        = "default"             // in the ingress's own namespace
	DefaultCertificate    = "default-certificate" // Secret there, for TLS names that have none
	ServiceSelectorKey    = "app.kubernetes.io/name"
	ServiceSelectorValue  = "ingress"
	GatewayLabel          = "gateway.networking.k8s.io/gateway-name"
	GatewayNamespaceLabel = "skerry.local/gateway-namespace"
	// IssuerAnnotation on a Gateway, ListenerSet or Ingress asks for certificates by ACME. Its value is "acme".
	IssuerAnnotation = "skerry.local/issuer"
	issuerACME       = "acme"
	// ACMEHostAnnotation marks the Secret in the ingress's namespace that holds the certificate of a host that ACME brought.
	ACMEHostAnnotation = "skerry.local/acme-host"
)

// Snapshot is all that is known of the cluster.
type Snapshot struct {
	Namespace string // of the ingress itself
	Now       time.Time
	ACME      bool // an issuer is set up

	Classes         []*gatewayv1.GatewayClass
	Gateways        []*gatewayv1.Gateway
	ListenerSets    []*gatewayv1.ListenerSet
	HTTPRoutes      []*gatewayv1.HTTPRoute
	GRPCRoutes      []*gatewayv1.GRPCRoute
	TLSRoutes       []*gatewayv1.TLSRoute
	Grants          []*gatewayv1.ReferenceGrant
	BackendPolicies []*gatewayv1.BackendTLSPolicy
	IngressClasses  []*networkingv1.IngressClass
	Ingresses       []*networkingv1.Ingress
	Namespaces      []*corev1.Namespace
	Services        []*corev1.Service
	Slices          []*discoveryv1.EndpointSlice
	Secrets         []*corev1.Secret
	ConfigMaps      []*corev1.ConfigMap
}

// world is a Snapshot with the ways to find things in it.
type world struct {
	*Snapshot
	namespaces map[string]*corev1.Namespace
	services   map[types.NamespacedName]*corev1.Service
	slices     map[types.NamespacedName][]*discoveryv1.EndpointSlice
	secrets    map[types.NamespacedName]*corev1.Secret
	configMaps map[types.NamespacedName]*corev1.ConfigMap
	pairs      map[types.NamespacedName]pairResult
	policies   map[policyKey]*policy
	pools      map[types.NamespacedName]poolResult
	acme       map[string]types.NamespacedName // Secrets by host
}

func newWorld(s *Snapshot) *world {
	w := &world{
		Snapshot: s, namespaces: map[string]*corev1.Namespace{}, services: map[types.NamespacedName]*corev1.Service{},
		slices: map[types.NamespacedName][]*discoveryv1.EndpointSlice{}, secrets: map[types.NamespacedName]*corev1.Secret{},
		configMaps: map[types.NamespacedName]*corev1.ConfigMap{}, pairs: map[types.NamespacedName]pairResult{}, pools: map[types.NamespacedName]poolResult{},
	}
	for _, n := range s.Namespaces {
		w.namespaces[n.Name] = n
	}
	for _, x := range s.Services {
		w.services[nameOf(x)] = x
	}
	for _, x := range s.Secrets {
		w.secrets[nameOf(x)] = x
	}
	for _, x := range s.ConfigMaps {
		w.configMaps[nameOf(x)] = x
	}
	for _, x := range s.Slices {
		key := types.NamespacedName{Namespace: x.Namespace, Name: x.Labels[discoveryv1.LabelServiceName]}
		w.slices[key] = append(w.slices[key], x)
	}
	for _, list := range w.slices {
		slices.SortFunc(list, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	}
	byAge(s.Classes)
	byAge(s.Gateways)
	byAge(s.ListenerSets)
	byAge(s.HTTPRoutes)
	byAge(s.GRPCRoutes)
	byAge(s.TLSRoutes)
	byAge(s.BackendPolicies)
	byAge(s.Ingresses)
	byAge(s.IngressClasses)
	return w
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// byAge sorts as the API wants conflicts decided: the oldest first, then by namespace and name.
func byAge[T metav1.Object](list []T) {
	slices.SortStableFunc(list, func(a, b T) int {
		return cmp.Or(
			a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time),
			cmp.Compare(a.GetNamespace(), b.GetNamespace()),
			cmp.Compare(a.GetName(), b.GetName()),
		)
	})
}

// granted says whether a reference from one namespace into another is allowed by the one it leads to.
func (w *world) granted(fromGroup, fromKind, fromNamespace, toGroup, toKind, toNamespace, toName string) bool {
	if fromNamespace == toNamespace {
		return true
	}
	for _, g := range w.Grants {
		if g.Namespace != toNamespace {
			continue
		}
		from := slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return string(f.Group) == fromGroup && string(f.Kind) == fromKind && string(f.Namespace) == fromNamespace
		})
		to := slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
			return string(t.Group) == toGroup && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == toName)
		})
		if from && to {
			return true
		}
	}
	return false
}

// selects says whether an allowed-namespaces rule of an object in own lets something in from another.
func (w *world) selects(from gatewayv1.FromNamespaces, selector *metav1.LabelSelector, own, other string) bool {
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return own == other
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		n := w.namespaces[other]
		return err == nil && n != nil && s.Matches(labelSet(n.Labels))
	default:
		return false
	}
}

type labelSet map[string]string

func (l labelSet) Has(k string) bool   { _, ok := l[k]; return ok }
func (l labelSet) Get(k string) string { return l[k] }
func (l labelSet) Lookup(k string) (string, bool) {
	v, ok := l[k]
	return v, ok
}

func deref[T any](p *T, or T) T {
	if p == nil {
		return or
	}
	return *p
}

// backendAddresses lists IP:port of a service's ready pods for one of its ports; pods that are going away only when there is
// no other.
func (w *world) backendAddresses(s *corev1.Service, port corev1.ServicePort) []string {
	var ready, leaving []string
	for _, slice := range w.slices[nameOf(s)] {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		number := int32(0)
		for _, p := range slice.Ports {
			if deref(p.Name, "") == port.Name && deref(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP && p.Port != nil {
				number = *p.Port
			}
		}
		if number <= 0 || number > 65535 {
			continue
		}
		for _, e := range slice.Endpoints {
			for _, a := range e.Addresses {
				ip, err := netip.ParseAddr(a)
				if err != nil {
					continue
				}
				at := netip.AddrPortFrom(ip, uint16(number)).String()
				switch {
				case deref(e.Conditions.Ready, true):
					ready = append(ready, at)
				case deref(e.Conditions.Serving, false) && deref(e.Conditions.Terminating, false):
					leaving = append(leaving, at)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = leaving
	}
	ready = onlyOneFamily(s, ready)
	slices.Sort(ready)
	return slices.Compact(ready)
}

// onlyOneFamily keeps a pod with two addresses from being counted twice.
func onlyOneFamily(s *corev1.Service, list []string) []string {
	six := len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol
	var out []string
	for _, a := range list {
		if strings.HasPrefix(a, "[") == six {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return list
	}
	return out
}
