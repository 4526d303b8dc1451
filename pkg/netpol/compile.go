package netpol

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// direction is that of a connection, as seen from the pod that a policy selects.
type direction string

const (
	ingress direction = "in"
	egress  direction = "eg"
)

// policy is a NetworkPolicy, read.
type policy struct {
	key       string // namespace/name
	namespace string
	subject   labels.Selector
	chains    map[direction]*chain // nil where it does not isolate
	selectors []*selector          // whose sets its rules use
	named     []*namedPort
}

// chain is a list of rules under a name.
type chain struct {
	name    string
	dir     direction
	comment string
	rules   []rule
}

// rule accepts, drops or jumps, if everything that it names matches.
type rule struct {
	v6, both bool           // the family; both: it is the same for either
	peer     string         // id of a selector
	block    netip.Prefix   // or this
	except   []netip.Prefix // but not these
	protocol string
	ports    []portRange
	named    string // id of a named port, which has a protocol too
	verdict  string // "" is accept
}

type portRange struct{ first, last uint16 }

// selector selects pods, of one namespace or of those with certain labels.
type selector struct {
	id         string
	namespace  string          // of this one
	namespaces labels.Selector // or of these; nil: of namespace
	pods       labels.Selector
}

// namedPort is a port by its name, of the pods of a selector.
type namedPort struct {
	id             string
	of             *selector
	name, protocol string
}

func newSelector(namespace string, namespaces, pods labels.Selector) *selector {
	s := &selector{namespace: namespace, namespaces: namespaces, pods: pods}
	text := "in " + namespace
	if namespaces != nil {
		text, s.namespace = "where "+namespaces.String(), ""
	}
	s.id = short(text + " pods " + pods.String())
	return s
}

func (s *selector) matches(p *Pod, namespace labels.Set) bool {
	if s.namespaces == nil {
		if p.Namespace != s.namespace {
			return false
		}
	} else if !s.namespaces.Matches(namespace) {
		return false
	}
	return s.pods.Matches(p.Labels)
}

// compile reads a policy. The API has checked it; what is wrong all the same leaves a rule out, which lets less through.
func compile(o *networkingv1.NetworkPolicy) (*policy, error) {
	p := &policy{key: o.Namespace + "/" + o.Name, namespace: o.Namespace, chains: map[direction]*chain{}}
	var err error
	if p.subject, err = metav1.LabelSelectorAsSelector(&o.Spec.PodSelector); err != nil {
		return nil, fmt.Errorf("network policy %s: spec.podSelector: %w", p.key, err)
	}
	isolates := func(t networkingv1.PolicyType) bool { return slices.Contains(o.Spec.PolicyTypes, t) }
	unsaid := len(o.Spec.PolicyTypes) == 0
	var faults []string
	if isolates(networkingv1.PolicyTypeIngress) || unsaid {
		c := p.newChain(ingress)
		for i, r := range o.Spec.Ingress {
			if err := p.rules(c, r.From, r.Ports); err != nil {
				faults = append(faults, fmt.Sprintf("spec.ingress[%d]: %v", i, err))
			}
		}
	}
	if isolates(networkingv1.PolicyTypeEgress) || unsaid && len(o.Spec.Egress) > 0 {
		c := p.newChain(egress)
		for i, r := range o.Spec.Egress {
			if err := p.rules(c, r.To, r.Ports); err != nil {
				faults = append(faults, fmt.Sprintf("spec.egress[%d]: %v", i, err))
			}
		}
	}
	if len(faults) > 0 {
		return p, fmt.Errorf("network policy %s: %v; the rule lets nothing through", p.key, faults)
	}
	return p, nil
}

func (p *policy) newChain(dir direction) *chain {
	c := &chain{name: "p-" + string(dir) + "-" + short(p.key), dir: dir, comment: p.key}
	p.chains[dir] = c
	return c
}

// peer is one place at the other end: anywhere, a selector's pods, or a block of addresses.
type peer struct {
	selector *selector
	block    netip.Prefix
	except   []netip.Prefix
}

// rules adds a rule for each peer and each kind of port.
func (p *policy) rules(c *chain, from []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	peers, err := p.peers(from)
	if err != nil {
		return err
	}
	numbers, names, err := splitPorts(ports)
	if err != nil {
		return err
	}
	for _, to := range peers {
		for _, m := range numbers {
			c.rules = append(c.rules, to.rules(m)...)
		}
		for _, n := range names {
			m := rule{protocol: n.protocol, named: p.namedPort(c.dir, to, n).id}
			if c.dir == egress && to.selector != nil {
				c.rules = append(c.rules, peer{}.rules(m)...) // it names the peer already
				continue
			}
			c.rules = append(c.rules, to.rules(m)...)
		}
	}
	for _, to := range peers {
		if to.selector != nil {
			p.selectors = append(p.selectors, to.selector)
		}
	}
	return nil
}

// namedPort is the port of the pods that the connection goes to: those that the policy selects, or the peers.
func (p *policy) namedPort(dir direction, to peer, n namedPort) *namedPort {
	switch {
	case dir == ingress:
		n.of = newSelector(p.namespace, nil, p.subject)
	case to.selector != nil:
		n.of = to.selector
	default: // whatever pods there are, also in a block of addresses
		n.of = newSelector("", labels.Everything(), labels.Everything())
	}
	n.id = short(n.of.id + " " + n.name + "/" + n.protocol)
	p.named = append(p.named, &n)
	return &n
}

// rules is the match, from or to the peer, in each family that it has.
func (to peer) rules(m rule) []rule {
	switch {
	case to.block.IsValid():
		m.v6, m.block, m.except = to.block.Addr().Is6(), to.block, to.except
		return []rule{m}
	case to.selector != nil:
		m.peer = to.selector.id
	case m.named == "":
		m.both = true
		return []rule{m}
	}
	four, six := m, m
	six.v6 = true
	return []rule{four, six}
}

func (p *policy) peers(list []networkingv1.NetworkPolicyPeer) ([]peer, error) {
	if len(list) == 0 {
		return []peer{{}}, nil
	}
	var out []peer
	for i, o := range list {
		if o.IPBlock != nil {
			b, err := block(o.IPBlock)
			if err != nil {
				return nil, fmt.Errorf("[%d].ipBlock: %w", i, err)
			}
			out = append(out, b)
			continue
		}
		if o.PodSelector == nil && o.NamespaceSelector == nil {
			return nil, fmt.Errorf("[%d]: selects nothing", i)
		}
		pods, namespaces := labels.Everything(), labels.Selector(nil)
		var err error
		if o.PodSelector != nil {
			if pods, err = metav1.LabelSelectorAsSelector(o.PodSelector); err != nil {
				return nil, fmt.Errorf("[%d].podSelector: %w", i, err)
			}
		}
		if o.NamespaceSelector != nil {
			if namespaces, err = metav1.LabelSelectorAsSelector(o.NamespaceSelector); err != nil {
				return nil, fmt.Errorf("[%d].namespaceSelector: %w", i, err)
			}
		}
		out = append(out, peer{selector: newSelector(p.namespace, namespaces, pods)})
	}
	return out, nil
}

func block(o *networkingv1.IPBlock) (peer, error) {
	cidr, err := netip.ParsePrefix(o.CIDR)
	if err != nil {
		return peer{}, err
	}
	b := peer{block: cidr.Masked()}
	for _, text := range o.Except {
		e, err := netip.ParsePrefix(text)
		if err != nil {
			return peer{}, err
		}
		if e.Addr().Is6() == cidr.Addr().Is6() {
			b.except = append(b.except, e.Masked())
		}
	}
	return b, nil
}

// splitPorts gives the matches on port numbers, one per protocol, and the named ports. No ports at all are one match on
// anything.
func splitPorts(list []networkingv1.NetworkPolicyPort) (numbers []rule, names []namedPort, err error) {
	if len(list) == 0 {
		return []rule{{}}, nil, nil
	}
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		m, all := rule{protocol: protocol}, false
		for i, o := range list {
			switch {
			case protocolWord(o.Protocol) != protocol:
			case o.Port == nil:
				all = true
			case o.Port.Type == intstr.String:
				names = append(names, namedPort{name: o.Port.StrVal, protocol: protocol})
			default:
				r := portRange{uint16(o.Port.IntVal), uint16(o.Port.IntVal)}
				if o.EndPort != nil {
					r.last = uint16(*o.EndPort)
				}
				if o.Port.IntVal < 1 || o.Port.IntVal > 65535 || o.EndPort != nil && (*o.EndPort > 65535 || *o.EndPort < o.Port.IntVal) {
					return nil, nil, fmt.Errorf("ports[%d]: %s is no port or range of ports", i, o.Port)
				}
				m.ports = append(m.ports, r)
			}
		}
		if all {
			m.ports = nil
		}
		if all || len(m.ports) > 0 {
			m.ports = merged(m.ports)
			numbers = append(numbers, m)
		}
	}
	return numbers, names, nil
}

// merged sorts ranges and joins those that overlap, which nft does not take.
func merged(ranges []portRange) (out []portRange) {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b portRange) int { return int(a.first) - int(b.first) })
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}
