package gateway

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// What Services say of their ports.
const (
	appH2C = "kubernetes.io/h2c"
	appWS  = "kubernetes.io/ws"
	appWSS = "kubernetes.io/wss"
)

// refProblem is why a reference of a route cannot be followed.
type refProblem struct {
	reason  gatewayv1.RouteConditionReason
	message string
}

// backend resolves a reference to a Service. With a problem it is Invalid, and requests for it are answered with 500.
func (w *world) backend(r *routeState, ref gatewayv1.BackendObjectReference) (proxy.Backend, *refProblem) {
	b := proxy.Backend{Weight: 1, Invalid: true, Name: string(ref.Name)}
	to := types.NamespacedName{Namespace: string(deref(ref.Namespace, gatewayv1.Namespace(r.namespace))), Name: string(ref.Name)}
	group, kind := string(deref(ref.Group, "")), string(deref(ref.Kind, "Service"))
	if group != "" || kind != "Service" {
		return b, &refProblem{gatewayv1.RouteReasonInvalidKind, fmt.Sprintf("backendRefs: %s %s: only Services can be backends", group, kind)}
	}
	if !w.granted(gatewayv1.GroupName, string(r.kind), r.namespace, "", "Service", to.Namespace, to.Name) {
		return b, &refProblem{gatewayv1.RouteReasonRefNotPermitted, fmt.Sprintf("backendRefs: Service %s: no ReferenceGrant there allows it", to)}
	}
	s := w.services[to]
	if s == nil {
		return b, &refProblem{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRefs: Service %s does not exist", to)}
	}
	if ref.Port == nil {
		return b, &refProblem{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRefs: Service %s: name a port", to)}
	}
	for _, p := range s.Spec.Ports {
		if p.Port == *ref.Port && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
			r.services = append(r.services, to)
			return w.serviceBackend(s, p)
		}
	}
	return b, &refProblem{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRefs: Service %s has no TCP port %d", to, *ref.Port)}
}

// serviceBackend is a Service's port.
func (w *world) serviceBackend(s *corev1.Service, p corev1.ServicePort) (proxy.Backend, *refProblem) {
	b := proxy.Backend{Weight: 1, Name: s.Name + "." + s.Namespace, Invalid: true}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		// A name outside would let whoever may write Services send the ingress anywhere, to the API and the node itself too.
		return b, &refProblem{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRefs: Service %s is of type ExternalName, which is not followed", nameOf(s))}
	}
	switch deref(p.AppProtocol, "") {
	case appH2C:
		b.Protocol = proxy.H2C
	case "", "http", appWS, appWSS, "https", "tcp", "grpc", "tls":
	default:
	}
	if deref(p.AppProtocol, "") == "grpc" {
		b.Protocol = proxy.H2C
	}
	if policy := w.policyOf(nameOf(s), p); policy != nil {
		if policy.tls == nil {
			return b, nil // what cannot be verified is not asked
		}
		b.TLS = policy.tls
	}
	b.Invalid = false
	b.Addresses = w.backendAddresses(s, p)
	return b, nil
}
