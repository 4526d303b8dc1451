package netpol

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"
	"sigs.k8s.io/yaml"
)

var (
	update = flag.Bool("update", false, "rewrite the golden files")
	seeds  = flag.Uint64("seeds", 6, "how many random histories to go through")
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// verdict follows a new connection through one node's rules, as the kernel would.
func (e *Engine) verdict(src, dst netip.Addr, protocol string, port uint16) bool {
	if _, self := e.elements["self"+family(src)][src.String()+" . "+dst.String()]; self {
		return true
	}
	for dir, end := range map[direction]netip.Addr{egress: src, ingress: dst} {
		if group := e.elements[string(dir)+family(end)][end.String()]; group != "" && e.walk(group, dir, src, dst, protocol, port) != "accept" {
			return false
		}
	}
	return true
}

func (e *Engine) walk(name string, dir direction, src, dst netip.Addr, protocol string, port uint16) string {
	for _, r := range e.chains[name].rules {
		far := src
		if dir == egress {
			far = dst
		}
		v := families[0].digit
		if r.v6 {
			v = families[1].digit
		}
		in := func(set, key string) bool { _, ok := e.elements[set][key]; return ok }
		switch {
		case !r.both && r.v6 != src.Is6(),
			r.peer != "" && !in("s"+v+"-"+r.peer, far.String()),
			r.block.IsValid() && (!r.block.Contains(far) || slices.ContainsFunc(r.except, func(p netip.Prefix) bool { return p.Contains(far) })),
			r.protocol != "" && r.protocol != protocol,
			r.named != "" && !in("n"+v+"-"+r.named, fmt.Sprintf("%s . %d", dst, port)),
			len(r.ports) > 0 && !slices.ContainsFunc(r.ports, func(p portRange) bool { return p.first <= port && port <= p.last }):
			continue
		}
		switch r.verdict {
		case "":
			return "accept"
		case "drop":
			return "drop"
		}
		if v := e.walk(strings.TrimPrefix(r.verdict, "jump "), dir, src, dst, protocol, port); v != "" {
			return v
		}
	}
	return ""
}

// world is the objects, judged by the letter of the API: every connection asks every policy.
type world struct {
	pods       map[string]*Pod
	namespaces map[string]labels.Set
	policies   map[string]*networkingv1.NetworkPolicy
}

func (w *world) at(a netip.Addr) *Pod {
	var best *Pod
	for _, p := range w.pods {
		if slices.Contains(p.Addresses, a) && (best == nil || p.Created.After(best.Created) || p.Created.Equal(best.Created) && p.key() > best.key()) {
			best = p
		}
	}
	return best
}

func (w *world) allowed(src, dst netip.Addr, protocol string, port uint16) bool {
	from, to := w.at(src), w.at(dst)
	if from != nil && from == to && src == dst {
		return true
	}
	return w.side(networkingv1.PolicyTypeEgress, from, dst, to, to, protocol, port) && w.side(networkingv1.PolicyTypeIngress, to, src, from, to, protocol, port)
}

func (w *world) side(dir networkingv1.PolicyType, subject *Pod, far netip.Addr, other, target *Pod, protocol string, port uint16) bool {
	if subject == nil {
		return true
	}
	isolated := false
	for _, p := range w.policies {
		if p.Namespace != subject.Namespace || !selects(&p.Spec.PodSelector, subject.Labels) || !slices.Contains(p.Spec.PolicyTypes, dir) {
			continue
		}
		isolated = true
		if dir == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if w.peers(p.Namespace, r.From, far, other) && ports(r.Ports, target, protocol, port) {
					return true
				}
			}
		} else {
			for _, r := range p.Spec.Egress {
				if w.peers(p.Namespace, r.To, far, other) && ports(r.Ports, target, protocol, port) {
					return true
				}
			}
		}
	}
	return !isolated
}

func selects(s *metav1.LabelSelector, l labels.Set) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(l)
}

func (w *world) peers(namespace string, list []networkingv1.NetworkPolicyPeer, far netip.Addr, other *Pod) bool {
	if len(list) == 0 {
		return true
	}
	for _, p := range list {
		if p.IPBlock != nil {
			in := netip.MustParsePrefix(p.IPBlock.CIDR).Contains(far)
			for _, e := range p.IPBlock.Except {
				in = in && !netip.MustParsePrefix(e).Contains(far)
			}
			if in {
				return true
			}
			continue
		}
		if other == nil || p.NamespaceSelector == nil && other.Namespace != namespace ||
			p.NamespaceSelector != nil && !selects(p.NamespaceSelector, w.namespaces[other.Namespace]) || p.PodSelector != nil && !selects(p.PodSelector, other.Labels) {
			continue
		}
		return true
	}
	return false
}

func ports(list []networkingv1.NetworkPolicyPort, target *Pod, protocol string, port uint16) bool {
	if len(list) == 0 {
		return true
	}
	for _, p := range list {
		if protocolWord(p.Protocol) != protocol {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			if target != nil && slices.Contains(target.Ports, Port{p.Port.StrVal, protocol, port}) {
				return true
			}
		case p.EndPort != nil:
			if int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort {
				return true
			}
		case int32(port) == p.Port.IntVal:
			return true
		}
	}
	return false
}

// dice makes objects of a small world, so that they meet.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 7))} }

func newWorld() *world {
	return &world{pods: map[string]*Pod{}, namespaces: map[string]labels.Set{}, policies: map[string]*networkingv1.NetworkPolicy{}}
}

func pick[T any](d dice, list ...T) T { return list[d.IntN(len(list))] }

func (d dice) labels() labels.Set {
	l := labels.Set{}
	for _, k := range []string{"app", "tier"} {
		if d.IntN(4) > 0 {
			l[k] = pick(d, "a", "b")
		}
	}
	return l
}

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch d.IntN(5) {
	case 0:
	case 1:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: pick(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{"a"}}}
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "tier", Operator: pick(d, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}
	default:
		s.MatchLabels = map[string]string{pick(d, "app", "tier"): pick(d, "a", "b")}
	}
	return s
}

func (d dice) pod(now int) Pod {
	n := d.IntN(10)
	p := Pod{Namespace: pick(d, "x", "y", "z"), Name: fmt.Sprintf("pod-%d", n), Labels: d.labels(), Node: pick(d, "one", "two"), Created: time.Unix(int64(now), 0)}
	if d.IntN(8) > 0 {
		n = d.IntN(12) // sometimes another's
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(n % 2), byte(n)})}
		if d.IntN(2) == 0 {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", n)))
		}
	}
	for _, name := range []string{"http", "dns"} {
		if d.IntN(2) == 0 {
			p.Ports = append(p.Ports, Port{name, pick(d, "tcp", "udp"), pick[uint16](d, 53, 80, 8080)})
		}
	}
	return p
}

func (d dice) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range d.IntN(3) {
		p := networkingv1.NetworkPolicyPeer{}
		switch d.IntN(4) {
		case 0:
			p.PodSelector = d.selector()
		case 1:
			p.NamespaceSelector = d.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
		default:
			p.IPBlock = pick(d, &networkingv1.IPBlock{CIDR: "10.42.0.0/16", Except: []string{"10.42.1.0/24", "10.42.0.2/32"}}, &networkingv1.IPBlock{CIDR: "0.0.0.0/0"},
				&networkingv1.IPBlock{CIDR: "fd00:42::/64", Except: []string{"fd00:42::2/127"}}, &networkingv1.IPBlock{CIDR: "::/0"}, &networkingv1.IPBlock{CIDR: "192.0.2.7/32"})
		}
		out = append(out, p)
	}
	return out
}

func (d dice) ports() (out []networkingv1.NetworkPolicyPort) {
	for range d.IntN(3) {
		p := networkingv1.NetworkPolicyPort{}
		if d.IntN(3) > 0 {
			p.Protocol = pick(d, new(corev1.ProtocolTCP), new(corev1.ProtocolUDP), new(corev1.ProtocolSCTP))
		}
		switch d.IntN(4) {
		case 0:
		case 1:
			p.Port = new(intstr.FromString(pick(d, "http", "dns", "none")))
		case 2:
			p.Port, p.EndPort = new(intstr.FromInt32(pick[int32](d, 50, 80))), new(pick[int32](d, 80, 90, 65535))
		default:
			p.Port = new(intstr.FromInt32(pick[int32](d, 53, 80, 8080)))
		}
		out = append(out, p)
	}
	return out
}

func (d dice) policy() *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, "x", "y", "z"), Name: fmt.Sprintf("policy-%d", d.IntN(4))}}
	p.Spec.PodSelector = *d.selector()
	if d.IntN(3) > 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for range d.IntN(3) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
		}
	}
	if len(p.Spec.PolicyTypes) == 0 || d.IntN(2) == 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for range d.IntN(3) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
		}
	}
	return p
}

// Whatever comes and goes, in whatever order: the rules say of every connection what the API's letter says; what is sent to
// the kernel piece by piece makes the same table as the whole; and the order has left no trace.
func TestRulesAreThePolicies(t *testing.T) {
	for seed := range *seeds {
		d, w := newDice(seed), newWorld()
		engines := map[string]*Engine{"one": NewEngine("one"), "two": NewEngine("two")}
		kernel := map[string]*knftables.Fake{}
		for name, e := range engines {
			kernel[name] = knftables.NewFake(knftables.InetFamily, Table)
			check(t, kernel[name].Run(t.Context(), e.Whole(kernel[name])))
			e.Commit()
		}
		var said []string
		for step := range 60 {
			said = append(said, d.turn(t, w, engines, step))
			if d.IntN(3) > 0 {
				continue // several changes in one commit
			}
			for name, e := range engines {
				if tx := e.Changes(kernel[name]); tx != nil {
					if err := kernel[name].Run(t.Context(), tx); err != nil {
						t.Fatalf("seed %d, step %d, node %s: %v\n%s\n%s", seed, step, name, err, strings.Join(said, "\n"), tx)
					}
				}
				e.Commit()
				fresh := knftables.NewFake(knftables.InetFamily, Table)
				check(t, fresh.Run(t.Context(), w.engine(t, name).Whole(fresh)))
				if a, b := table(kernel[name]), table(fresh); a != b {
					t.Fatalf("seed %d, step %d, node %s: after\n%s\nthe table is\n%s\nand should be\n%s", seed, step, name, strings.Join(said, "\n"), a, b)
				}
			}
			compareAll(t, w, engines, fmt.Sprintf("seed %d, step %d", seed, step))
			if t.Failed() {
				t.Fatal(strings.Join(said, "\n"))
			}
		}
	}
}

// table is a fake's content without the order of what was added.
func table(f *knftables.Fake) string {
	lines := strings.Split(f.Dump(), "\n")
	slices.SortStableFunc(lines, func(a, b string) int { // the order of rules counts
		if strings.HasPrefix(a, "add rule") && strings.HasPrefix(b, "add rule") {
			return strings.Compare(strings.Join(strings.Fields(a)[:5], " "), strings.Join(strings.Fields(b)[:5], " "))
		}
		return strings.Compare(a, b)
	})
	return strings.Join(lines, "\n")
}

// turn makes one change in the world and tells the engines.
func (d dice) turn(t *testing.T, w *world, engines map[string]*Engine, now int) string {
	var said string
	tell := func(f func(*Engine)) {
		for _, e := range engines {
			f(e)
		}
	}
	switch d.IntN(8) {
	case 0, 1, 2:
		p := d.pod(now)
		if old := w.pods[p.key()]; old != nil {
			p.Created, p.Node = old.Created, old.Node
		}
		w.pods[p.key()] = &p
		said = fmt.Sprintf("pod %+v", p)
		tell(func(e *Engine) { e.SetPod(p) })
	case 3:
		p := d.pod(now)
		delete(w.pods, p.key())
		said = "no pod " + p.key()
		tell(func(e *Engine) { e.DeletePod(p.Namespace, p.Name) })
	case 4:
		name, l := pick(d, "x", "y", "z"), d.labels()
		w.namespaces[name] = l
		said = fmt.Sprintf("namespace %s %v", name, l)
		tell(func(e *Engine) { e.SetNamespace(name, l) })
	case 5:
		p := d.policy()
		delete(w.policies, p.Namespace+"/"+p.Name)
		said = "no policy " + p.Namespace + "/" + p.Name
		tell(func(e *Engine) { e.DeletePolicy(p.Namespace, p.Name) })
	default:
		p := d.policy()
		w.policies[p.Namespace+"/"+p.Name] = p
		said = fmt.Sprintf("policy %s/%s %+v", p.Namespace, p.Name, p.Spec)
		tell(func(e *Engine) { check(t, e.SetPolicy(p)) })
	}
	return said
}

// engine is one that has seen nothing but what is there now.
func (w *world) engine(t *testing.T, node string) *Engine {
	e := NewEngine(node)
	for name, l := range w.namespaces {
		e.SetNamespace(name, l)
	}
	for _, p := range w.policies {
		check(t, e.SetPolicy(p))
	}
	for _, p := range w.pods {
		e.SetPod(*p)
	}
	return e
}

func compareAll(t *testing.T, w *world, engines map[string]*Engine, when string) {
	t.Helper()
	addresses := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	for _, p := range w.pods {
		addresses = append(addresses, p.Addresses...)
	}
	for _, src := range addresses {
		for _, dst := range addresses {
			if src.Is6() != dst.Is6() {
				continue
			}
			for _, protocol := range []string{"tcp", "udp", "sctp"} {
				for _, port := range []uint16{53, 80, 85, 8080, 9999} {
					want, got := w.allowed(src, dst, protocol, port), true
					for _, e := range engines {
						got = got && e.verdict(src, dst, protocol, port)
					}
					if got != want {
						t.Errorf("%s: %s to %s, %s %d: rules say %v, policies %v", when, src, dst, protocol, port, got, want)
					}
				}
			}
		}
	}
}

// What nft is told, for one policy of each kind.
func TestGolden(t *testing.T) {
	sources, err := filepath.Glob("testdata/*.yaml")
	check(t, err)
	if len(sources) == 0 {
		t.Fatal("no testdata")
	}
	for _, source := range sources {
		data, err := os.ReadFile(source)
		check(t, err)
		e := NewEngine("north")
		for doc := range strings.SplitSeq(string(data), "\n---\n") {
			var kind metav1.TypeMeta
			check(t, yaml.Unmarshal([]byte(doc), &kind))
			switch kind.Kind {
			case "Namespace":
				var o corev1.Namespace
				check(t, yaml.UnmarshalStrict([]byte(doc), &o))
				e.SetNamespace(o.Name, o.Labels)
			case "Pod":
				var o corev1.Pod
				check(t, yaml.UnmarshalStrict([]byte(doc), &o))
				if p := FromPod(&o); p != nil {
					e.SetPod(*p)
				}
			case "NetworkPolicy":
				var o networkingv1.NetworkPolicy
				check(t, yaml.UnmarshalStrict([]byte(doc), &o))
				check(t, e.SetPolicy(&o))
			default:
				t.Fatalf("%s: %q", source, kind.Kind)
			}
		}
		got := e.Whole(knftables.NewFake(knftables.InetFamily, Table)).String()
		golden := strings.TrimSuffix(source, ".yaml") + ".nft"
		if *update {
			check(t, os.WriteFile(golden, []byte(got), 0o644))
		}
		want, err := os.ReadFile(golden)
		check(t, err)
		if got != string(want) {
			t.Errorf("%s: got\n%s", golden, got)
		}
	}
}

// A rule that cannot be read lets nothing through, and the others of its policy hold.
func TestUnreadable(t *testing.T) {
	e := NewEngine("one")
	p := Pod{Namespace: "x", Name: "p", Node: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.2")}}
	e.SetPod(p)
	bad := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "bad"}}
	bad.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0; flush ruleset"}}}},
		{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(70000))}}},
		{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(80))}}},
	}
	if err := e.SetPolicy(bad); err == nil || !strings.Contains(err.Error(), "network policy x/bad: [spec.ingress[0]: [0].ipBlock") {
		t.Error(err)
	}
	e.settle()
	from := netip.MustParseAddr("192.0.2.1")
	if !e.verdict(from, p.Addresses[0], "tcp", 80) || e.verdict(from, p.Addresses[0], "tcp", 81) {
		t.Error("the good rule does not hold, or a bad one lets through")
	}
}
