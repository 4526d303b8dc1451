package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway/proxy"
)

// read makes a Snapshot of YAML objects. Objects are as old as they stand high in the text.
func read(t testing.TB, text string) *Snapshot {
	t.Helper()
	s := &Snapshot{Namespace: "ingress", Now: time.Unix(1_700_000_000, 0)}
	for n, doc := range strings.Split(text, "\n---\n") {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		add(t, s, head.Kind, []byte(doc), n)
	}
	return s
}

func into[T any](t testing.TB, list *[]*T, doc []byte, age int) {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict(doc, o); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	if m, ok := any(o).(metav1.Object); ok {
		m.SetCreationTimestamp(metav1.Unix(1_600_000_000+int64(age), 0))
		m.SetGeneration(1)
		if m.GetNamespace() == "" {
			m.SetNamespace("app")
		}
	}
	*list = append(*list, o)
}

func add(t testing.TB, s *Snapshot, kind string, doc []byte, age int) {
	t.Helper()
	switch kind {
	case "GatewayClass":
		into(t, &s.Classes, doc, age)
	case "Gateway":
		into(t, &s.Gateways, doc, age)
	case "ListenerSet":
		into(t, &s.ListenerSets, doc, age)
	case "HTTPRoute":
		into(t, &s.HTTPRoutes, doc, age)
	case "GRPCRoute":
		into(t, &s.GRPCRoutes, doc, age)
	case "TLSRoute":
		into(t, &s.TLSRoutes, doc, age)
	case "ReferenceGrant":
		into(t, &s.Grants, doc, age)
	case "IngressClass":
		into(t, &s.IngressClasses, doc, age)
	case "Ingress":
		into(t, &s.Ingresses, doc, age)
	case "Namespace":
		into(t, &s.Namespaces, doc, age)
	case "Service":
		into(t, &s.Services, doc, age)
	case "EndpointSlice":
		into(t, &s.Slices, doc, age)
	case "Secret":
		into(t, &s.Secrets, doc, age)
	default:
		t.Fatalf("kind %q", kind)
	}
}

// settle translates until nothing is left to write, as a controller does, and gives the last Result and all statuses.
func settle(t testing.TB, s *Snapshot) (Result, map[string]metav1.Object) {
	t.Helper()
	statuses := map[string]metav1.Object{}
	for range 5 {
		r := Translate(s)
		if len(r.Services)+len(r.Statuses)+len(r.Unused) == 0 {
			return r, statuses
		}
		for _, want := range r.Services {
			s.Services = slices.DeleteFunc(s.Services, func(x *corev1.Service) bool { return nameOf(x) == nameOf(want) })
			made := want.DeepCopy()
			made.Spec.ClusterIPs = []string{"10.43.0.99"}
			s.Services = append(s.Services, made)
		}
		for _, gone := range r.Unused {
			s.Services = slices.DeleteFunc(s.Services, func(x *corev1.Service) bool { return nameOf(x) == gone })
		}
		for _, o := range r.Statuses {
			statuses[fmt.Sprintf("%T %s", o, o.GetName())] = o
			switch x := o.(type) {
			case *gatewayv1.GatewayClass:
				replace(s.Classes, x)
			case *gatewayv1.Gateway:
				replace(s.Gateways, x)
			case *gatewayv1.ListenerSet:
				replace(s.ListenerSets, x)
			case *gatewayv1.HTTPRoute:
				replace(s.HTTPRoutes, x)
			case *gatewayv1.GRPCRoute:
				replace(s.GRPCRoutes, x)
			case *gatewayv1.TLSRoute:
				replace(s.TLSRoutes, x)
			case *networkingv1.Ingress:
				replace(s.Ingresses, x)
			}
		}
	}
	t.Fatal("never settles: a status is written again and again")
	return Result{}, nil
}

func replace[T metav1.Object](list []T, x T) {
	for i := range list {
		if list[i].GetName() == x.GetName() && list[i].GetNamespace() == x.GetNamespace() {
			list[i] = x
		}
	}
}

func reason(list []metav1.Condition, kind string) string {
	for _, c := range list {
		if c.Type == kind {
			return string(c.Status) + " " + c.Reason
		}
	}
	return "none"
}

const base = `kind: GatewayClass
metadata: {name: skerry}
spec: {controllerName: skerry.local/gateway}
---
kind: Namespace
metadata: {name: app, labels: {team: a}}
---
kind: Service
metadata: {name: web, namespace: app}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
---
kind: EndpointSlice
metadata: {name: web-1, namespace: app, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.5], conditions: {ready: true}}
- {addresses: [10.42.0.4], conditions: {ready: true}}
- {addresses: [10.42.0.6], conditions: {ready: false}}
---
kind: Gateway
metadata: {name: gw, namespace: app}
spec:
  gatewayClassName: skerry
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
`

func TestRoute(t *testing.T) {
	s := read(t, base+`kind: HTTPRoute
metadata: {name: r, namespace: app}
spec:
  parentRefs: [{name: gw}]
  hostnames: [A.example.com]
  rules:
  - matches: [{path: {type: PathPrefix, value: /x}}]
    backendRefs: [{name: web, port: 80}]
    timeouts: {request: 5s}`)
	r, statuses := settle(t, s)
	if len(r.Config.Ports) != 1 {
		t.Fatalf("%d ports", len(r.Config.Ports))
	}
	p := r.Config.Ports[0]
	if p.Public != 80 || p.TLS || p.Number < firstPort {
		t.Errorf("port is %+v", p)
	}
	route := p.Sites[0].Listeners[0].Routes[0]
	if route.Hostnames[0] != "a.example.com" || route.Match.Path != "/x" || route.Action.Timeout != 5*time.Second {
		t.Errorf("route is %+v", route)
	}
	if got := route.Action.Backends[0].Addresses; !slices.Equal(got, []string{"10.42.0.4:8080", "10.42.0.5:8080"}) {
		t.Errorf("addresses are %v", got)
	}
	g, ok := statuses["*v1.Gateway gw"].(*gatewayv1.Gateway)
	if !ok || reason(g.Status.Conditions, "Programmed") != "True Programmed" || g.Status.Listeners[0].AttachedRoutes != 1 || g.Status.Addresses[0].Value != "10.43.0.99" {
		t.Errorf("Gateway's status is %+v", g)
	}
	h, ok := statuses["*v1.HTTPRoute r"].(*gatewayv1.HTTPRoute)
	if !ok || reason(h.Status.Parents[0].Conditions, "Accepted") != "True Accepted" || reason(h.Status.Parents[0].Conditions, "ResolvedRefs") != "True ResolvedRefs" ||
		h.Status.Parents[0].Conditions[0].ObservedGeneration != 1 {
		t.Errorf("route's status is %+v", h)
	}
}

// What is wrong with a route is in its status, and requests for it get 500.
func TestRouteProblems(t *testing.T) {
	for name, c := range map[string]struct{ spec, accepted, resolved string }{
		"no service":        {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: none, port: 80}]}]}`, "True Accepted", "False BackendNotFound"},
		"no port":           {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 81}]}]}`, "True Accepted", "False BackendNotFound"},
		"other kind":        {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{kind: Pod, name: web, port: 80}]}]}`, "True Accepted", "False InvalidKind"},
		"not granted":       {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, namespace: other, port: 80}]}]}`, "True Accepted", "False RefNotPermitted"},
		"no section":        {`{parentRefs: [{name: gw, sectionName: x}], rules: [{backendRefs: [{name: web, port: 80}]}]}`, "False NoMatchingParent", "True ResolvedRefs"},
		"no such port":      {`{parentRefs: [{name: gw, port: 81}], rules: [{backendRefs: [{name: web, port: 80}]}]}`, "False NoMatchingParent", "True ResolvedRefs"},
		"unknown filter":    {`{parentRefs: [{name: gw}], rules: [{filters: [{type: ExtensionRef, extensionRef: {group: x, kind: y, name: z}}], backendRefs: [{name: web, port: 80}]}]}`, "False UnsupportedValue", "True ResolvedRefs"},
		"bad expression":    {`{parentRefs: [{name: gw}], rules: [{matches: [{path: {type: RegularExpression, value: "("}}], backendRefs: [{name: web, port: 80}]}]}`, "False UnsupportedValue", "True ResolvedRefs"},
		"mirror to nowhere": {`{parentRefs: [{name: gw}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}}], backendRefs: [{name: web, port: 80}]}]}`, "True Accepted", "False BackendNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			s := read(t, base+"kind: HTTPRoute\nmetadata: {name: r, namespace: app}\nspec: "+c.spec)
			r, statuses := settle(t, s)
			h, ok := statuses["*v1.HTTPRoute r"].(*gatewayv1.HTTPRoute)
			if !ok {
				t.Fatal("no status")
			}
			got := h.Status.Parents[0].Conditions
			if reason(got, "Accepted") != c.accepted || reason(got, "ResolvedRefs") != c.resolved {
				t.Errorf("%s, %s; want %s, %s", reason(got, "Accepted"), reason(got, "ResolvedRefs"), c.accepted, c.resolved)
			}
			for _, p := range r.Config.Ports {
				for _, route := range p.Sites[0].Listeners[0].Routes {
					if strings.HasPrefix(c.resolved, "False") && name != "mirror to nowhere" && !route.Action.Backends[0].Invalid {
						t.Errorf("%+v goes somewhere", route.Action.Backends[0])
					}
				}
				if strings.HasPrefix(c.accepted, "False") && len(p.Sites[0].Listeners[0].Routes) > 0 {
					t.Error("a route that is not accepted is served")
				}
			}
		})
	}
}

func TestListenerProblems(t *testing.T) {
	for name, c := range map[string]struct{ listeners, conditions, gateway string }{
		"protocol":       {`[{name: a, port: 1, protocol: X}]`, "a: False UnsupportedProtocol, False Invalid, True ResolvedRefs", "False ListenersNotValid, False Invalid"},
		"one is good":    {`[{name: a, port: 1, protocol: X}, {name: b, port: 2, protocol: HTTP}]`, "a: False UnsupportedProtocol, False Invalid, True ResolvedRefs; b: True Accepted, True Programmed, True ResolvedRefs", "True ListenersNotValid, True Programmed"},
		"no certificate": {`[{name: a, port: 1, protocol: HTTPS, tls: {certificateRefs: [{name: x}]}}]`, "a: True Accepted, False Invalid, False InvalidCertificateRef", "True ListenersNotValid, False Invalid"},
		"not granted":    {`[{name: a, port: 1, protocol: HTTPS, tls: {certificateRefs: [{name: x, namespace: other}]}}]`, "a: True Accepted, False Invalid, False RefNotPermitted", "True ListenersNotValid, False Invalid"},
		"conflict":       {`[{name: a, port: 1, protocol: HTTP}, {name: b, port: 1, protocol: TLS, tls: {mode: Passthrough}}]`, "a: True Accepted, True Programmed, True ResolvedRefs; b: False ProtocolConflict, False ProtocolConflict, True ResolvedRefs", "True ListenersNotValid, True Programmed"},
		"kinds":          {`[{name: a, port: 1, protocol: HTTP, allowedRoutes: {kinds: [{kind: Foo}]}}]`, "a: True Accepted, False Invalid, False InvalidRouteKinds", "True ListenersNotValid, False Invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			s := read(t, "kind: GatewayClass\nmetadata: {name: skerry}\nspec: {controllerName: skerry.local/gateway}\n---\nkind: Gateway\nmetadata: {name: gw, namespace: app}\nspec: {gatewayClassName: skerry, listeners: "+c.listeners+"}")
			_, statuses := settle(t, s)
			g, ok := statuses["*v1.Gateway gw"].(*gatewayv1.Gateway)
			if !ok {
				t.Fatal("no status")
			}
			var all []string
			for _, l := range g.Status.Listeners {
				all = append(all, fmt.Sprintf("%s: %s, %s, %s", l.Name, reason(l.Conditions, "Accepted"), reason(l.Conditions, "Programmed"), reason(l.Conditions, "ResolvedRefs")))
			}
			if got := strings.Join(all, "; "); got != c.conditions {
				t.Errorf("%s\nwant %s", got, c.conditions)
			}
			if got := reason(g.Status.Conditions, "Accepted") + ", " + reason(g.Status.Conditions, "Programmed"); got != c.gateway {
				t.Errorf("Gateway: %s, want %s", got, c.gateway)
			}
		})
	}
}

func TestIntersect(t *testing.T) {
	for _, c := range []struct {
		listener string
		route    []gatewayv1.Hostname
		want     string
	}{
		{"", nil, ""},
		{"a.x", nil, "a.x"},
		{"", []gatewayv1.Hostname{"B.x", "a.x"}, "a.x b.x"},
		{"*.x", []gatewayv1.Hostname{"a.x", "x", "a.b.x", "a.y"}, "a.b.x a.x"},
		{"a.x", []gatewayv1.Hostname{"*.x"}, "a.x"},
		{"*.x", []gatewayv1.Hostname{"*.b.x"}, "*.b.x"},
		{"*.b.x", []gatewayv1.Hostname{"*.x"}, "*.b.x"},
		{"*.x", []gatewayv1.Hostname{"*.x"}, "*.x"},
		{"a.x", []gatewayv1.Hostname{"b.x"}, "none"},
		{"*.x", []gatewayv1.Hostname{"*.y", "ax"}, "none"},
	} {
		got, ok := intersect(c.listener, c.route)
		if text := strings.Join(got, " "); (ok && text != c.want) || (!ok && c.want != "none") {
			t.Errorf("%s with %v: %q, %v; want %q", c.listener, c.route, text, ok, c.want)
		}
	}
}

const defaultGateway = `kind: GatewayClass
metadata: {name: skerry}
spec: {controllerName: skerry.local/gateway}
---
kind: Gateway
metadata: {name: default, namespace: ingress}
spec:
  gatewayClassName: skerry
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]
---
kind: IngressClass
metadata: {name: skerry, annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}
spec: {controller: skerry.local/ingress}
---
`

// Ingress objects and other Gateways answer on the default Gateway's ports too; what has another class does not.
func TestSharedPorts(t *testing.T) {
	s := read(t, defaultGateway+strings.TrimPrefix(base, base[:strings.Index(base, "---\n")+4])+`kind: Ingress
metadata: {name: i, namespace: app}
spec: {rules: [{host: i.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
---
kind: Ingress
metadata: {name: k3s, namespace: app}
spec: {ingressClassName: traefik, rules: [{host: k3s.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: none, port: {number: 80}}}}]}}]}
---
kind: Ingress
metadata: {name: other, namespace: app}
spec: {ingressClassName: nginx, rules: [{host: other.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
---
kind: HTTPRoute
metadata: {name: r, namespace: app}
spec: {parentRefs: [{name: gw}], hostnames: [gw.test], rules: [{backendRefs: [{name: web, port: 80}]}]}`)
	r, _ := settle(t, s)
	if len(r.Config.Ports) != 2 {
		t.Fatalf("%d ports, want one for each Gateway", len(r.Config.Ports))
	}
	hosts := map[string][]string{}
	for _, p := range r.Config.Ports {
		for _, site := range p.Sites {
			for _, l := range site.Listeners {
				for _, route := range l.Routes {
					hosts[fmt.Sprint(len(p.Sites))] = append(hosts[fmt.Sprint(len(p.Sites))], route.Hostnames...)
					if route.Hostnames[0] == "k3s.test" && len(route.Action.Backends[0].Addresses)+btoi(route.Action.Backends[0].Invalid) != 0 {
						t.Errorf("a missing Service is not answered with 503: %+v", route.Action.Backends[0])
					}
				}
			}
		}
	}
	if got := strings.Join(hosts["3"], " "); got != "i.test k3s.test gw.test" {
		t.Errorf("the nodes' port 80 has %q", got)
	}
	if got := strings.Join(hosts["1"], " "); got != "gw.test" {
		t.Errorf("the Gateway's own port has %q", got)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A Service remembers its ports; a Gateway that goes takes its Service with it.
func TestServices(t *testing.T) {
	s := read(t, base+`kind: Gateway
metadata: {name: two, namespace: app}
spec: {gatewayClassName: skerry, listeners: [{name: http, port: 80, protocol: HTTP}, {name: more, port: 81, protocol: HTTP}]}`)
	r, _ := settle(t, s)
	before := numbers(r.Config)
	if len(before) != 3 {
		t.Fatalf("ports are %v", before)
	}
	s.Gateways = slices.DeleteFunc(s.Gateways, func(g *gatewayv1.Gateway) bool { return g.Name == "gw" })
	r, _ = settle(t, s)
	for _, n := range numbers(r.Config) {
		if !slices.Contains(before, n) {
			t.Errorf("port %d is new: connections to the others' ports broke", n)
		}
	}
	if len(r.Config.Ports) != 2 || len(s.Services) != 2 { // web and the Gateway's
		t.Errorf("%d ports, %d Services", len(r.Config.Ports), len(s.Services))
	}
	if other := (types.NamespacedName{Namespace: "app", Name: "web"}); len(Translate(s).Unused) > 0 && Translate(s).Unused[0] == other {
		t.Error("a Service of somebody else is removed")
	}
}

func numbers(c proxy.Config) (out []uint16) {
	for _, p := range c.Ports {
		out = append(out, p.Number)
	}
	return out
}

// However odd the objects, translating them ends, and settles.
func FuzzTranslate(f *testing.F) {
	f.Add("a.example.com", "/x", "web", int32(80), int32(1), "HTTP", "RegularExpression", "5s", "Same")
	f.Add("*.x", "", "", int32(-1), int32(-5), "HTTPS", "Exact", "x", "Selector")
	f.Fuzz(func(t *testing.T, host, path, service string, port, weight int32, protocol, kind, duration, from string) {
		s := read(t, strings.TrimSuffix(base, "---\n"))
		l := &s.Gateways[0].Spec.Listeners[0]
		l.Protocol, l.Hostname, l.Port = gatewayv1.ProtocolType(protocol), ptr(gatewayv1.Hostname(host)), port
		l.AllowedRoutes = &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: ptr(gatewayv1.FromNamespaces(from))}}
		match := gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Type: ptr(gatewayv1.PathMatchType(kind)), Value: &path}}
		ref := gatewayv1.HTTPBackendRef{}
		ref.Name, ref.Port, ref.Weight = gatewayv1.ObjectName(service), &port, &weight
		h := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "app"}}
		h.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "gw"}, {Name: gatewayv1.ObjectName(host), SectionName: ptr(gatewayv1.SectionName(path))}}
		h.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(host)}
		h.Spec.Rules = []gatewayv1.HTTPRouteRule{{
			Matches: []gatewayv1.HTTPRouteMatch{match, {}}, BackendRefs: []gatewayv1.HTTPBackendRef{ref}, Timeouts: &gatewayv1.HTTPRouteTimeouts{Request: ptr(gatewayv1.Duration(duration))},
			Filters: []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterType(kind)}, {Type: gatewayv1.HTTPRouteFilterURLRewrite, URLRewrite: &gatewayv1.HTTPURLRewriteFilter{}}},
		}}
		s.HTTPRoutes = append(s.HTTPRoutes, h)
		s.Slices = append(s.Slices, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "app", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			Ports: []discoveryv1.EndpointPort{{Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{host, path}}}})
		r, _ := settle(t, s)
		srv := proxy.New(proxy.Options{})
		_ = srv
		for _, p := range r.Config.Ports {
			if p.Number < firstPort || p.Number > lastPort {
				t.Errorf("port %d is none of the range", p.Number)
			}
		}
	})
}
