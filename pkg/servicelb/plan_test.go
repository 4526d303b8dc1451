package servicelb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name string, ready bool, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{}
	n.Name, n.Labels = name, map[string]string{}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: name},
		{Type: corev1.NodeInternalIP, Address: "192.0.2." + strings.TrimPrefix(name, "n")},
		{Type: corev1.NodeInternalIP, Address: "2001:db8::" + strings.TrimPrefix(name, "n")},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func label(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func external(ip string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip})
	}
}

// service number age wants TCP ports.
func service(name string, age int, change func(*corev1.Service), ports ...int32) *corev1.Service {
	s := &corev1.Service{}
	s.Namespace, s.Name, s.Labels = "x", name, map[string]string{}
	s.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0).Add(-time.Duration(age) * time.Minute))
	s.Spec.Type, s.Spec.IPFamilies = corev1.ServiceTypeLoadBalancer, []corev1.IPFamily{corev1.IPv4Protocol}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p, Protocol: corev1.ProtocolTCP})
	}
	if change != nil {
		change(s)
	}
	return s
}

func published(ip string, ports ...int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		i := corev1.LoadBalancerIngress{IP: ip}
		for _, p := range ports {
			i.Ports = append(i.Ports, corev1.PortStatus{Port: p, Protocol: corev1.ProtocolTCP})
		}
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, i)
	}
}

func TestPlan(t *testing.T) {
	class := "other"
	two := []*corev1.Node{node("n1", true), node("n2", true)}
	for name, c := range map[string]struct {
		nodes    []*corev1.Node
		services []*corev1.Service
		serving  []string
		want     map[string]string // Service -> addresses, or the beginning of "!conflict", "=" for keep
	}{
		"every ready node": {
			append(two, node("n3", false)), []*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": "192.0.2.1 192.0.2.2"},
		},
		"both families, the first first": {
			two[:1], []*corev1.Service{service("a", 1, func(s *corev1.Service) {
				s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
			}, 80)},
			nil, map[string]string{"a": "2001:db8::1 192.0.2.1"},
		},
		"external addresses, if there are any": {
			append(two, node("n3", true, external("198.51.100.3"))), []*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": "198.51.100.3 192.0.2.3"},
		},
		"an external address that is no other": {
			[]*corev1.Node{node("n1", true, external("192.0.2.1"))}, []*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": "192.0.2.1"},
		},
		"no internal address when those with external ones are down": {
			append(two, node("n3", false, external("198.51.100.3"))), []*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": ""},
		},
		"others' classes and types": {
			two, []*corev1.Service{
				service("class", 1, func(s *corev1.Service) { s.Spec.LoadBalancerClass = &class }, 80),
				service("type", 1, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, 80),
			}, nil, map[string]string{},
		},
		"local: only nodes with endpoints": {
			two, []*corev1.Service{service("a", 1, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, 80)},
			[]string{"n2"}, map[string]string{"a": "192.0.2.2"},
		},
		"local: none": {
			two, []*corev1.Service{service("a", 1, func(s *corev1.Service) {
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
				published("192.0.2.1", 80)(s)
			}, 80)},
			nil, map[string]string{"a": ""},
		},
		"no node is ready: the last addresses stay": {
			[]*corev1.Node{node("n1", false)},
			[]*corev1.Service{service("new", 1, nil, 80), service("old", 2, published("192.0.2.1", 81), 81)}, nil, map[string]string{"new": "", "old": "="},
		},
		"excluded node": {
			append(two, node("n3", true, label(labelExclude, ""))), []*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": "192.0.2.1 192.0.2.2"},
		},
		"enabled nodes only": {
			append(two, node("n3", true, label(labelEnable, "true")), node("n4", true, label(labelEnable, "false"))),
			[]*corev1.Service{service("a", 1, nil, 80)}, nil, map[string]string{"a": "192.0.2.3"},
		},
		"no node may be used": {
			[]*corev1.Node{node("n1", true, label(labelEnable, "false"))}, []*corev1.Service{service("a", 1, published("192.0.2.1", 80), 80)}, nil, map[string]string{"a": ""},
		},
		"pools": {
			[]*corev1.Node{node("n1", true, label(labelPool, "p")), node("n2", true, label(labelPool, "q")), node("n3", true)},
			[]*corev1.Service{
				service("a", 1, func(s *corev1.Service) { s.Labels[labelPool] = "p" }, 80),
				service("b", 1, func(s *corev1.Service) { s.Labels[labelPool] = "q" }, 80), // the same port elsewhere
			}, nil, map[string]string{"a": "192.0.2.1", "b": "192.0.2.2"},
		},
		"the older has the port": {
			two[:1], []*corev1.Service{service("young", 1, nil, 80), service("old", 2, nil, 443, 80)}, nil,
			map[string]string{"old": "192.0.2.1", "young": "!TCP port 80 is taken by Service x/old"},
		},
		"who has the port keeps it": {
			two[:1], []*corev1.Service{service("young", 1, published("192.0.2.1", 80), 80), service("old", 2, published("192.0.2.1", 81), 80, 81)}, nil,
			map[string]string{"young": "192.0.2.1", "old": "!TCP port 80 is taken by Service x/young"},
		},
		"a port that another controller or a person gave away": {
			two[:1], []*corev1.Service{
				service("foreign", 1, func(s *corev1.Service) { s.Spec.LoadBalancerClass = &class; published("192.0.2.1")(s) }, 80),
				service("external", 1, func(s *corev1.Service) {
					s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, []string{"192.0.2.1"}
				}, 81),
				service("a", 3, nil, 80), service("b", 3, nil, 81),
			}, nil, map[string]string{"a": "!TCP port 80 is taken by Service x/foreign", "b": "!TCP port 81 is taken by Service x/external"},
		},
		"another protocol is another port": {
			two[:1], []*corev1.Service{service("a", 1, nil, 53), service("b", 2, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }, 53)}, nil,
			map[string]string{"a": "192.0.2.1", "b": "192.0.2.1"},
		},
		"ports of the nodes": {
			two[:1], []*corev1.Service{service("a", 1, nil, 80, 6443), service("b", 2, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }, 6443)}, nil,
			map[string]string{"a": "!TCP port 6443 is used by the nodes", "b": "192.0.2.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan{nodes: c.nodes, reserved: []int32{6443}, serving: func(*corev1.Service) map[string]bool {
				out := map[string]bool{}
				for _, n := range c.serving {
					out[n] = true
				}
				return out
			}}
			got := p.make(c.services)
			if len(got) != len(c.want) {
				t.Errorf("planned %v", got)
			}
			for name, want := range c.want {
				w := got["x/"+name]
				text := strings.Trim(fmt.Sprint(w.addresses), "[]")
				if w.keep {
					text = "="
				}
				if conflict, ok := strings.CutPrefix(want, "!"); ok {
					if !strings.HasPrefix(w.conflict, conflict) || len(w.addresses) > 0 {
						t.Errorf("%s: %+v, want conflict %s", name, w, conflict)
					}
				} else if text != want || w.conflict != "" {
					t.Errorf("%s: %q %q, want %q", name, text, w.conflict, want)
				}
			}
		})
	}
}

// However Services came about, no address and port is ever published twice, or kube-proxy could load none of its rules.
func TestPlanNeverPublishesTwice(t *testing.T) {
	nodes := []*corev1.Node{node("n1", true), node("n2", true, label(labelPool, "p"))}
	var services []*corev1.Service
	for i := range 40 {
		services = append(services, service(fmt.Sprint("s", i), i%3, func(s *corev1.Service) {
			if i%4 == 0 {
				s.Labels[labelPool] = "p"
			}
			if i%5 == 0 {
				published("192.0.2.1", int32(80+i%7))(s)
			}
		}, int32(80+i%7), int32(80+i%3)))
	}
	for round := range 5 {
		got := plan{nodes: nodes, serving: func(*corev1.Service) map[string]bool { return nil }}.make(services)
		had := map[claim]string{}
		for _, s := range services {
			s.Status.LoadBalancer.Ingress = nil
			for _, a := range got[keyOf(s)].addresses {
				var ports []int32
				for _, p := range s.Spec.Ports {
					c := claim{a, p.Protocol, p.Port}
					if other, ok := had[c]; ok && other != s.Name {
						t.Errorf("round %d: %v is published for %s and %s", round, c, other, s.Name)
					}
					had[c] = s.Name
					ports = append(ports, p.Port)
				}
				published(a.String(), ports...)(s)
			}
		}
		if len(had) == 0 {
			t.Errorf("round %d: nothing is published", round)
		}
	}
}

func TestAddressesAreSorted(t *testing.T) {
	got := addresses([]*corev1.Node{node("n10", true), node("n9", true), node("n9", true)}, service("a", 1, nil, 80))
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.10")}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
