package gateway

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// policyKey is what a BackendTLSPolicy holds for: a port of a Service, or, with an empty port, all of them.
type policyKey struct {
	service types.NamespacedName
	port    string
}

// policy is a BackendTLSPolicy in force.
type policy struct {
	*gatewayv1.BackendTLSPolicy
	conds     conditions
	tls       *proxy.BackendTLS // nil: not to be reached, because it cannot be verified
	ancestors map[types.NamespacedName]bool
}

// backendPolicies resolves all of them; the oldest for a target wins.
func (w *world) backendPolicies() []*policy {
	w.policies = map[policyKey]*policy{}
	var all []*policy
	for _, b := range w.BackendPolicies {
		p := &policy{BackendTLSPolicy: b, conds: conditions{generation: b.Generation}, ancestors: map[types.NamespacedName]bool{}}
		all = append(all, p)
		won, lost := false, ""
		for _, t := range b.Spec.TargetRefs {
			if t.Group != "" || t.Kind != "Service" {
				continue
			}
			key := policyKey{types.NamespacedName{Namespace: b.Namespace, Name: string(t.Name)}, string(deref(t.SectionName, ""))}
			if had := w.policies[key]; had != nil {
				lost = fmt.Sprintf("BackendTLSPolicy %s is older and for the same target", had.Name)
				continue
			}
			w.policies[key], won = p, true
		}
		w.resolvePolicy(p)
		if !won && lost != "" {
			p.conds.set(accepted, false, string(gatewayv1.PolicyReasonConflicted), lost)
		}
	}
	return all
}

func (w *world) resolvePolicy(p *policy) {
	v := p.Spec.Validation
	t := &proxy.BackendTLS{ServerName: string(v.Hostname)}
	kind := string(gatewayv1.BackendTLSPolicyConditionResolvedRefs)
	good := v.WellKnownCACertificates != nil && *v.WellKnownCACertificates == gatewayv1.WellKnownCACertificatesSystem
	for _, r := range v.CACertificateRefs {
		name := types.NamespacedName{Namespace: p.Namespace, Name: string(r.Name)}
		if r.Group != "" || r.Kind != "ConfigMap" {
			p.conds.set(kind, false, string(gatewayv1.BackendTLSPolicyReasonInvalidKind), fmt.Sprintf("validation.caCertificateRefs: %s: CA certificates are read from ConfigMaps", r.Kind))
			continue
		}
		pool, key, err := w.pool(name)
		if err != nil {
			p.conds.set(kind, false, string(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef), fmt.Sprintf("validation.caCertificateRefs: ConfigMap %s: %v", name, err))
			continue
		}
		t.Roots, good = pool, true
		t.Key += key
	}
	for _, s := range v.SubjectAltNames {
		if s.Type == gatewayv1.URISubjectAltNameType {
			t.SANs = append(t.SANs, string(s.URI))
		} else {
			t.SANs = append(t.SANs, string(s.Hostname))
		}
	}
	if !good {
		p.conds.set(accepted, false, string(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate), "no CA certificate to verify the backend with")
		return
	}
	t.Key += fmt.Sprint(t.ServerName, t.SANs)
	p.tls = t
	p.conds.unless(kind, true, string(gatewayv1.BackendTLSPolicyReasonResolvedRefs), "")
	p.conds.set(accepted, true, string(gatewayv1.PolicyReasonAccepted), "")
}

// policyOf is the policy for a port of a service, for which one that names the port goes first.
func (w *world) policyOf(service types.NamespacedName, port corev1.ServicePort) *policy {
	if p := w.policies[policyKey{service, port.Name}]; p != nil && port.Name != "" {
		return p
	}
	return w.policies[policyKey{service, ""}]
}

// noteAncestors tells every policy for the service of which Gateways it is in use.
func (w *world) noteAncestors(service types.NamespacedName, all []*policy, gateways []*gatewayState) {
	for _, p := range all {
		if p.Namespace == service.Namespace && slices.ContainsFunc(p.Spec.TargetRefs, func(t gatewayv1.LocalPolicyTargetReferenceWithSectionName) bool {
			return t.Kind == "Service" && string(t.Name) == service.Name
		}) {
			for _, g := range gateways {
				p.ancestors[nameOf(g)] = true
			}
		}
	}
}
