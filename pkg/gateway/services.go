package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func same(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

// DefaultService is the Service of the default Gateway; it holds the nodes' ports.
const DefaultService = "ingress"

// managedBy marks Services that are ours to remove.
const (
	managedByKey   = "app.kubernetes.io/managed-by"
	managedByValue = "skerry-ingress"
)

// Ports of the proxy are given to Services from this range. None of it takes a privilege to listen on.
const (
	firstPort = 10000
	lastPort  = 29999
)

// servicePorts is a Gateway's Service: where clients reach it, and which port of the proxy each of its ports leads to.
type servicePorts struct {
	target    map[int32]uint16 // 0: not yet known
	addresses []gatewayv1.GatewayStatusAddress
	outside   []string // those of a load balancer
	unusable  string
}

func (p *servicePorts) numbers() []int32 {
	return slices.Sorted(maps.Keys(p.target))
}

func serviceName(namespace string, g *gatewayv1.Gateway) string {
	if g.Namespace == namespace && g.Name == DefaultGateway {
		return DefaultService
	}
	sum := sha256.Sum256([]byte(g.Namespace + "/" + g.Name))
	return "gateway-" + g.Name[:min(len(g.Name), 40)] + "-" + hex.EncodeToString(sum[:4])
}

// gatewayServices works out the Services that Gateways need, and reads from those that exist where things are. Which port of the
// proxy is whose, the Services themselves remember: only what one of them says is listened on, so that all nodes agree.
func (w *world) gatewayServices(all []*gatewayState, out *Result) map[types.NamespacedName]*servicePorts {
	taken := map[int32]bool{}
	wanted := map[string]bool{}
	for _, s := range w.Services {
		if s.Namespace == w.Namespace && s.Labels[managedByKey] == managedByValue {
			for _, p := range s.Spec.Ports {
				taken[p.TargetPort.IntVal] = true
			}
		}
	}
	next := int32(firstPort)
	free := func() int32 {
		for taken[next] && next < lastPort {
			next++
		}
		taken[next] = true
		return next
	}
	ports := map[types.NamespacedName]*servicePorts{}
	for _, g := range all {
		p := &servicePorts{target: map[int32]uint16{}}
		for _, l := range g.listeners {
			if l.accepted() && g.conds.isTrue(accepted) {
				p.target[l.Port] = 0
			}
		}
		if len(p.target) == 0 {
			continue
		}
		ports[nameOf(g)] = p
		name := serviceName(w.Namespace, g.Gateway)
		wanted[name] = true
		had := w.services[types.NamespacedName{Namespace: w.Namespace, Name: name}]
		want := g.service(w.Namespace, name)
		if had != nil {
			p.read(had, g.Spec.Addresses)
			known := map[int32]int32{}
			for _, sp := range had.Spec.Ports {
				known[sp.Port] = sp.TargetPort.IntVal
			}
			for _, n := range p.numbers() {
				if t := known[n]; t >= firstPort && t <= lastPort {
					p.target[n] = uint16(t) //nolint:gosec // in the range
				}
			}
		}
		for _, n := range p.numbers() {
			t := int32(p.target[n])
			if t == 0 {
				t = free()
			}
			want.Spec.Ports = append(want.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("port-%d", n), Port: n, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(t)})
		}
		if had == nil || !want.fits(had) {
			out.Services = append(out.Services, want.Service)
		}
	}
	for _, s := range w.Services {
		if s.Namespace == w.Namespace && s.Labels[managedByKey] == managedByValue && !wanted[s.Name] {
			out.Unused = append(out.Unused, nameOf(s))
		}
	}
	return ports
}

// wantedService is a Service as a Gateway needs it; what it does not say is others' to set.
type wantedService struct{ *corev1.Service }

func (s *gatewayState) service(namespace, name string) wantedService {
	out := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
			managedByKey: managedByValue, GatewayLabel: s.Name, GatewayNamespaceLabel: s.Namespace,
		}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer,
			// The client's address reaches the pods, and no node sends what it gets to another one: each runs the proxy.
			ExternalTrafficPolicy:         corev1.ServiceExternalTrafficPolicyLocal,
			AllocateLoadBalancerNodePorts: new(bool),
			IPFamilyPolicy:                ptr(corev1.IPFamilyPolicyPreferDualStack),
			Selector:                      map[string]string{ServiceSelectorKey: ServiceSelectorValue},
		},
	}
	if i := s.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			out.Labels[string(k)] = string(v)
		}
		for k, v := range i.Annotations {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[string(k)] = string(v)
		}
	}
	for _, a := range s.Spec.Addresses {
		if a.Value != "" {
			out.Spec.LoadBalancerIP = a.Value
		}
	}
	return wantedService{out}
}

func ptr[T any](v T) *T { return &v }

// fits says whether a Service is as it is wanted.
func (s wantedService) fits(had *corev1.Service) bool {
	for k, v := range s.Labels {
		if had.Labels[k] != v {
			return false
		}
	}
	for k, v := range s.Annotations {
		if had.Annotations[k] != v {
			return false
		}
	}
	if had.Spec.Type != s.Spec.Type || had.Spec.LoadBalancerIP != s.Spec.LoadBalancerIP || had.Spec.ExternalTrafficPolicy != s.Spec.ExternalTrafficPolicy ||
		!maps.Equal(had.Spec.Selector, s.Spec.Selector) || len(had.Spec.Ports) != len(s.Spec.Ports) {
		return false
	}
	return slices.EqualFunc(had.Spec.Ports, s.Spec.Ports, func(a, b corev1.ServicePort) bool {
		return a.Port == b.Port && a.TargetPort == b.TargetPort && a.Name == b.Name
	})
}

// read takes a Service's addresses: those of the load balancer if it has one, else its own, which pods and nodes reach.
func (p *servicePorts) read(s *corev1.Service, asked []gatewayv1.GatewaySpecAddress) {
	add := func(kind gatewayv1.AddressType, value string) {
		if len(p.addresses) < 16 {
			p.addresses = append(p.addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: value})
		}
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" {
			add(gatewayv1.IPAddressType, i.IP)
			p.outside = append(p.outside, i.IP)
		} else if i.Hostname != "" {
			add(gatewayv1.HostnameAddressType, i.Hostname)
			p.outside = append(p.outside, i.Hostname)
		}
	}
	if len(p.addresses) == 0 {
		for _, ip := range s.Spec.ClusterIPs {
			if _, err := netip.ParseAddr(ip); err == nil {
				add(gatewayv1.IPAddressType, ip)
			}
		}
	}
	for _, a := range asked {
		if a.Value != "" && !slices.ContainsFunc(p.addresses, func(x gatewayv1.GatewayStatusAddress) bool { return x.Value == a.Value }) {
			p.unusable = fmt.Sprintf("addresses: %s is none that this cluster can give", a.Value)
		}
	}
}
