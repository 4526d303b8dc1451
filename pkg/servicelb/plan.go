package servicelb

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

const (
	labelEnable  = "svccontroller.k3s.cattle.io/enablelb"
	labelPool    = "svccontroller.k3s.cattle.io/lbpool"
	labelExclude = corev1.LabelNodeExcludeBalancers
)

// plan says what every Service should publish. It is pure, so that tests can ask it anything.
type plan struct {
	nodes    []*corev1.Node
	reserved []int32
	serving  func(*corev1.Service) map[string]bool // nodes with endpoints
}

// want is what one Service should publish.
type want struct {
	addresses []netip.Addr
	conflict  string // why nothing
	keep      bool   // leave what is there
}

// claim is what only one Service can have.
type claim struct {
	addr  netip.Addr
	proto corev1.Protocol
	port  int32
}

func keyOf(s *corev1.Service) string { return s.Namespace + "/" + s.Name }

// isOurs says whether a Service asks for the balancer of the cluster.
func isOurs(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil
}

// make plans for all Services at once: who has a port keeps it, then the older comes first.
func (p plan) make(services []*corev1.Service) map[string]want {
	taken := map[claim]string{}
	for _, s := range services {
		for _, c := range held(s) {
			if _, ok := taken[c]; !ok {
				taken[c] = keyOf(s)
			}
		}
	}
	services = slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(keyOf(a), keyOf(b)))
	})
	out := map[string]want{}
	for _, s := range services {
		if isOurs(s) {
			out[keyOf(s)] = p.one(s, taken)
		}
	}
	return out
}

func (p plan) one(s *corev1.Service, taken map[claim]string) want {
	pool := p.pool(s)
	// The claims are those of the whole pool, whichever of its nodes are Ready or have endpoints now: that changes every minute,
	// and with it nobody should win or lose a port.
	claims := map[claim]bool{}
	for _, a := range addresses(pool, s) {
		for _, port := range s.Spec.Ports {
			claims[claim{a, port.Protocol, port.Port}] = true
		}
	}
	for _, port := range s.Spec.Ports {
		if port.Protocol == corev1.ProtocolTCP && slices.Contains(p.reserved, port.Port) {
			return want{conflict: fmt.Sprintf("TCP port %d is used by the nodes themselves; give the Service another", port.Port)}
		}
	}
	for _, port := range s.Spec.Ports {
		for c := range claims {
			if other, ok := taken[c]; ok && other != keyOf(s) && c.port == port.Port && c.proto == port.Protocol {
				return want{conflict: fmt.Sprintf("%s port %d is taken by Service %s; it is published when that one gives it back", c.proto, c.port, other)}
			}
		}
	}
	for c := range claims {
		taken[c] = keyOf(s)
	}
	ready := filter(pool, isReady)
	if len(ready) == 0 && len(pool) > 0 && len(s.Status.LoadBalancer.Ingress) > 0 {
		return want{keep: true}
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		serving := p.serving(s)
		ready = filter(ready, func(n *corev1.Node) bool { return serving[n.Name] })
	}
	// Of the pool's kind of address, even when the nodes that have external ones are the ones that are not ready.
	all := addresses(pool, s)
	return want{addresses: slices.DeleteFunc(addresses(ready, s), func(a netip.Addr) bool { return !slices.Contains(all, a) })}
}

// held are the addresses and ports that kube-proxy leads to a Service already, whoever published them. Ours say which ports they
// were published for: the Service may have got others since.
func held(s *corev1.Service) []claim {
	var out []claim
	add := func(ip string, ports []corev1.PortStatus) {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return
		}
		if len(ports) == 0 {
			for _, p := range s.Spec.Ports {
				ports = append(ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
			}
		}
		for _, p := range ports {
			out = append(out, claim{a.Unmap(), p.Protocol, p.Port})
		}
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP {
			add(i.IP, i.Ports)
		}
	}
	for _, ip := range s.Spec.ExternalIPs {
		add(ip, nil)
	}
	return out
}

// pool is the nodes whose addresses a Service may have.
func (p plan) pool(s *corev1.Service) []*corev1.Node {
	chosen := slices.ContainsFunc(p.nodes, func(n *corev1.Node) bool { _, ok := n.Labels[labelEnable]; return ok })
	pool := s.Labels[labelPool]
	return filter(p.nodes, func(n *corev1.Node) bool {
		_, excluded := n.Labels[labelExclude]
		return !excluded && n.DeletionTimestamp == nil && (!chosen || n.Labels[labelEnable] == "true") && (pool == "" || n.Labels[labelPool] == pool)
	})
}

func filter(nodes []*corev1.Node, keep func(*corev1.Node) bool) []*corev1.Node {
	return slices.Collect(func(yield func(*corev1.Node) bool) {
		for _, n := range nodes {
			if keep(n) && !yield(n) {
				return
			}
		}
	})
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// addresses of nodes that fit a Service, in the order of its families: external ones if there is any, and behind them the internal
// ones of their nodes, else all internal ones.
func addresses(nodes []*corev1.Node, s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, family := range s.Spec.IPFamilies {
		external, behind, internal := map[netip.Addr]bool{}, map[netip.Addr]bool{}, map[netip.Addr]bool{}
		for _, n := range nodes {
			outer, inner := of(n, corev1.NodeExternalIP, family), of(n, corev1.NodeInternalIP, family)
			maps.Copy(external, outer)
			if len(outer) > 0 {
				maps.Copy(behind, inner)
			}
			maps.Copy(internal, inner)
		}
		if len(external) == 0 {
			external = internal
		}
		maps.DeleteFunc(behind, func(a netip.Addr, _ bool) bool { return external[a] })
		out = append(out, slices.SortedFunc(maps.Keys(external), netip.Addr.Compare)...)
		out = append(out, slices.SortedFunc(maps.Keys(behind), netip.Addr.Compare)...)
	}
	return out
}

func of(n *corev1.Node, kind corev1.NodeAddressType, family corev1.IPFamily) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && ip.Unmap().Is6() == (family == corev1.IPv6Protocol) {
			out[ip.Unmap()] = true
		}
	}
	return out
}

// sameNode says that nothing has changed that a plan looks at.
func sameNode(a, b *corev1.Node) bool {
	return isReady(a) == isReady(b) && slices.Equal(a.Status.Addresses, b.Status.Addresses) && maps.Equal(a.Labels, b.Labels) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
}
