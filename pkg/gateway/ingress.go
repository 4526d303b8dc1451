package gateway

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// k3sClass is what K3s calls its ingress; manifests that were written for it work here too, unless a class of that name exists.
const k3sClass = "traefik"

// Annotations of Ingress that are understood, beside IssuerAnnotation.
const (
	// redirectAnnotation sends plain requests to HTTPS.
	redirectAnnotation = "skerry.local/redirect-https"
	classAnnotation    = "kubernetes.io/ingress.class"
)

// ingressState is what all Ingress objects of ours ask for together.
type ingressState struct {
	objects []*networkingv1.Ingress
	routes  []proxy.Route // plain and TLS
	plain   []proxy.Route // plain alone, before the others
	certs   []proxy.Certificate
	acme    []string
	names   map[string]bool // of acme
}

// ingress reads the Ingress objects of our classes. They answer on the default Gateway's ports.
func (w *world) ingress(all []*gatewayState) *ingressState {
	classes, known, byDefault := map[string]bool{}, map[string]bool{}, false
	for _, c := range w.IngressClasses {
		known[c.Name] = true
		if c.Spec.Controller == IngressController {
			classes[c.Name] = true
			byDefault = byDefault || c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
		}
	}
	if len(classes) == 0 {
		return nil
	}
	if !known[k3sClass] {
		classes[k3sClass] = true
	}
	s := &ingressState{names: map[string]bool{}}
	for _, i := range w.Ingresses {
		class := deref(i.Spec.IngressClassName, i.Annotations[classAnnotation])
		if (class == "" && !byDefault) || (class != "" && !classes[class]) {
			continue
		}
		s.objects = append(s.objects, i)
		w.oneIngress(s, i)
	}
	_ = all
	return s
}

func (w *world) oneIngress(s *ingressState, i *networkingv1.Ingress) {
	name := fmt.Sprintf("ingress/%s/%s", i.Namespace, i.Name)
	issuer := w.ACME && i.Annotations[IssuerAnnotation] == issuerACME
	for _, t := range i.Spec.TLS {
		for _, h := range t.Hosts {
			h = strings.ToLower(h)
			pair, err := w.pair(types.NamespacedName{Namespace: i.Namespace, Name: t.SecretName})
			switch {
			case err == nil:
				s.certs = append(s.certs, proxy.Certificate{Hostname: h, Pair: pair})
			case issuer && h != "" && !strings.HasPrefix(h, "*") && !s.names[h]:
				s.names[h] = true
				s.acme = append(s.acme, h)
				if p := w.acmePair(h); p != nil {
					s.certs = append(s.certs, proxy.Certificate{Hostname: h, Pair: p})
				}
			}
		}
	}
	if i.Annotations[redirectAnnotation] == "true" {
		for _, r := range i.Spec.Rules {
			s.plain = append(s.plain, proxy.Route{
				Hostnames: hostList(r.Host), OneLabel: true, Match: proxy.Match{Path: "/"},
				Action: &proxy.Action{Name: name, Filters: []proxy.Filter{{Redirect: &proxy.Redirect{Scheme: "https", Code: 308}}}},
			})
		}
	}
	for _, r := range i.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for _, p := range r.HTTP.Paths {
			m := proxy.Match{Path: p.Path}
			if m.Path == "" {
				m.Path = "/"
			}
			if deref(p.PathType, networkingv1.PathTypePrefix) == networkingv1.PathTypeExact {
				m.PathKind = proxy.Exact
			}
			s.routes = append(s.routes, proxy.Route{Hostnames: hostList(r.Host), OneLabel: true, Match: m, Action: w.ingressAction(name, i.Namespace, p.Backend)})
		}
	}
	if i.Spec.DefaultBackend != nil {
		s.routes = append(s.routes, proxy.Route{Match: proxy.Match{Path: "/"}, Action: w.ingressAction(name, i.Namespace, *i.Spec.DefaultBackend)})
	}
}

func hostList(host string) []string {
	if host == "" {
		return nil
	}
	return []string{strings.ToLower(host)}
}

// ingressAction is a backend of an Ingress. A missing one is answered with 503, as people know it.
func (w *world) ingressAction(name, namespace string, b networkingv1.IngressBackend) *proxy.Action {
	a := &proxy.Action{Name: name, Backends: []proxy.Backend{{Name: "missing", Weight: 1}}}
	if b.Service == nil {
		return a
	}
	s := w.services[types.NamespacedName{Namespace: namespace, Name: b.Service.Name}]
	if s == nil {
		return a
	}
	for _, p := range s.Spec.Ports {
		named := b.Service.Port.Name != "" && p.Name == b.Service.Port.Name
		numbered := b.Service.Port.Name == "" && p.Port == b.Service.Port.Number
		if (named || numbered) && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
			found, _ := w.serviceBackend(s, p)
			a.Backends[0] = found
		}
	}
	return a
}

// site is what Ingress objects serve on one of the default Gateway's ports.
func (s *ingressState) site(tls bool) proxy.Site {
	if !tls {
		return proxy.Site{Listeners: []proxy.Listener{{Name: "Ingress", Routes: append(append([]proxy.Route{}, s.plain...), s.routes...)}}}
	}
	return proxy.Site{Listeners: []proxy.Listener{{Name: "Ingress", Certificates: s.certs, Routes: s.routes}}}
}
