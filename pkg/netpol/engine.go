package netpol

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Engine holds the objects, the rules that follow from them, and what has changed since the last Commit. It is not for several
// goroutines at once.
//
// The rules follow from the objects alone, not from the order in which they came.
type Engine struct {
	node       string
	pods       map[string]*podState
	namespaces map[string]labels.Set
	inside     map[string]map[string]bool // namespace -> keys of its pods
	claims     map[netip.Addr][]string    // address -> keys of pods that say it is theirs
	policies   map[string]*policy

	selectors map[string]*selector // in use, by id
	named     map[string]*namedPort
	groups    map[string]int // chain -> pods

	chains   map[string]*chain
	sets     map[string]bool              // by name
	elements map[string]map[string]string // set or map -> key -> verdict
	before   change
	stale    bool // policies have changed, and nothing else yet
}

type podState struct {
	Pod
	gives []element
}

// element is one of a set (value "") or of a map.
type element struct{ set, key, value string }

// change remembers how things were at the last Commit, where they have been touched since.
type change struct {
	chains   map[string]*chain // nil: was not there
	sets     map[string]bool
	elements map[string]map[string]*string // nil: was not there
}

func newChange() change {
	return change{chains: map[string]*chain{}, sets: map[string]bool{}, elements: map[string]map[string]*string{}}
}

// NewEngine makes one for a node, by name, without any objects.
func NewEngine(node string) *Engine {
	return &Engine{
		node: node, pods: map[string]*podState{}, namespaces: map[string]labels.Set{}, inside: map[string]map[string]bool{},
		claims: map[netip.Addr][]string{}, policies: map[string]*policy{}, selectors: map[string]*selector{}, named: map[string]*namedPort{},
		groups: map[string]int{}, chains: map[string]*chain{}, sets: map[string]bool{}, elements: map[string]map[string]string{}, before: newChange(),
	}
}

// SetPod adds or changes a pod.
func (e *Engine) SetPod(p Pod) {
	key := p.key()
	touched := e.unclaim(key)
	s := e.pods[key]
	if s == nil {
		s = &podState{}
		e.pods[key] = s
	}
	s.Pod = p
	for _, a := range p.Addresses {
		e.claims[a] = append(e.claims[a], key)
		touched = append(touched, e.claims[a]...)
	}
	if e.inside[p.Namespace] == nil {
		e.inside[p.Namespace] = map[string]bool{}
	}
	e.inside[p.Namespace][key] = true
	e.refresh(append(touched, key))
}

// DeletePod takes one away.
func (e *Engine) DeletePod(namespace, name string) {
	key := namespace + "/" + name
	s := e.pods[key]
	if s == nil {
		return
	}
	touched := e.unclaim(key)
	delete(e.pods, key)
	delete(e.inside[namespace], key)
	if len(e.inside[namespace]) == 0 {
		delete(e.inside, namespace)
	}
	e.replace(map[*podState][]element{s: nil})
	e.refresh(touched)
}

// unclaim gives a pod's addresses up, and lists the others that say they are theirs.
func (e *Engine) unclaim(key string) (others []string) {
	s := e.pods[key]
	if s == nil {
		return nil
	}
	for _, a := range s.Addresses {
		left := slices.DeleteFunc(slices.Clone(e.claims[a]), func(k string) bool { return k == key })
		if len(left) == 0 {
			delete(e.claims, a)
		} else {
			e.claims[a] = left
		}
		others = append(others, left...)
	}
	return others
}

// owns says whether the address is the pod's: of several that have had it one after the other, the newest's.
func (e *Engine) owns(s *podState, a netip.Addr) bool {
	for _, key := range e.claims[a] {
		o := e.pods[key]
		if o.Created.After(s.Created) || o.Created.Equal(s.Created) && key > s.key() {
			return false
		}
	}
	return true
}

// SetNamespace adds a namespace, or changes its labels.
func (e *Engine) SetNamespace(name string, l labels.Set) {
	if old, ok := e.namespaces[name]; ok && labels.Equals(old, l) {
		return
	}
	e.namespaces[name] = l
	e.refresh(slices.Collect(maps.Keys(e.inside[name])))
}

// DeleteNamespace takes one away. Its pods, should there be any yet, are then in one without labels.
func (e *Engine) DeleteNamespace(name string) {
	delete(e.namespaces, name)
	e.refresh(slices.Collect(maps.Keys(e.inside[name])))
}

// SetPolicy adds or changes a policy. One that has something wrong with it counts as far as it can be read.
func (e *Engine) SetPolicy(o *networkingv1.NetworkPolicy) error {
	p, err := compile(o)
	if p != nil {
		e.policies[p.key] = p
		e.stale = true
	}
	return err
}

// DeletePolicy takes one away.
func (e *Engine) DeletePolicy(namespace, name string) {
	if key := namespace + "/" + name; e.policies[key] != nil {
		delete(e.policies, key)
		e.stale = true
	}
}

// settle makes chains, sets and what the pods give to them anew, from all policies, if those have changed.
func (e *Engine) settle() {
	if !e.stale {
		return
	}
	e.stale = false
	chains := map[string]*chain{}
	e.selectors, e.named = map[string]*selector{}, map[string]*namedPort{}
	for _, p := range e.policies {
		for _, c := range p.chains {
			chains[c.name] = c
		}
		for _, s := range p.selectors {
			e.selectors[s.id] = s
		}
		for _, n := range p.named {
			e.named[n.id] = n
		}
	}
	sets := map[string]bool{}
	for id := range e.selectors {
		sets["s4-"+id], sets["s6-"+id] = true, true
	}
	for id := range e.named {
		sets["n4-"+id], sets["n6-"+id] = true, true
	}
	for name := range sets {
		e.setSet(name, true)
	}
	for name, c := range chains {
		e.setChain(name, c)
	}
	e.refresh(slices.Collect(maps.Keys(e.pods)))
	for name := range e.sets {
		if !sets[name] {
			e.setSet(name, false)
		}
	}
	for name, c := range e.chains {
		if chains[name] == nil && !strings.HasPrefix(c.name, "g-") {
			e.setChain(name, nil)
		}
	}
}

// refresh works out again what pods give.
func (e *Engine) refresh(keys []string) {
	if e.stale {
		return // settle will do it for all
	}
	now := map[*podState][]element{}
	for _, key := range keys {
		if s := e.pods[key]; s != nil {
			now[s] = e.gives(s)
		}
	}
	e.replace(now)
}

// gives lists the elements that follow from a pod.
func (e *Engine) gives(s *podState) (out []element) {
	var addresses []netip.Addr
	for _, a := range s.Addresses {
		if e.owns(s, a) {
			addresses = append(addresses, a)
		}
	}
	if len(addresses) == 0 {
		return nil
	}
	namespace := e.namespaces[s.Namespace]
	for id, sel := range e.selectors {
		if sel.matches(&s.Pod, namespace) {
			for _, a := range addresses {
				out = append(out, element{set: "s" + family(a) + "-" + id, key: a.String()})
			}
		}
	}
	for id, n := range e.named {
		if len(s.Ports) == 0 || !n.of.matches(&s.Pod, namespace) {
			continue
		}
		for _, port := range s.Ports {
			if port.Name == n.name && port.Protocol == n.protocol {
				for _, a := range addresses {
					g := element{set: "n" + family(a) + "-" + id, key: fmt.Sprintf("%s . %d", a, port.Number)}
					if !slices.Contains(out, g) { // two containers may say the same
						out = append(out, g)
					}
				}
			}
		}
	}
	if s.Node != e.node {
		return out
	}
	isolated := false
	for _, dir := range []direction{ingress, egress} {
		if group := e.group(&s.Pod, dir); group != "" {
			isolated = true
			for _, a := range addresses {
				out = append(out, element{set: string(dir) + family(a), key: a.String(), value: group})
			}
		}
	}
	if isolated {
		for _, a := range addresses {
			out = append(out, element{set: "self" + family(a), key: a.String() + " . " + a.String()})
		}
	}
	return out
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "6"
	}
	return "4"
}

// group is the chain of all policies that select the pod; "" if none does.
func (e *Engine) group(p *Pod, dir direction) string {
	var keys []string
	for key, pol := range e.policies {
		if pol.chains[dir] != nil && pol.namespace == p.Namespace && pol.subject.Matches(p.Labels) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	name := "g-" + string(dir) + "-" + short(strings.Join(keys, " "))
	if e.chains[name] == nil {
		c := &chain{name: name, dir: dir}
		for _, key := range keys {
			c.rules = append(c.rules, rule{both: true, verdict: "jump " + e.policies[key].chains[dir].name})
		}
		c.rules = append(c.rules, rule{both: true, verdict: "drop"})
		e.setChain(name, c)
	}
	return name
}

// replace makes the elements of now those that the pods give. All of it is one step, because an address may go from one pod
// to another.
func (e *Engine) replace(now map[*podState][]element) {
	var fresh, gone []element
	for s, gives := range now {
		old := map[element]bool{}
		for _, g := range s.gives {
			old[g] = true
		}
		for _, g := range gives {
			if old[g] {
				delete(old, g)
			} else {
				fresh = append(fresh, g)
			}
		}
		for g := range old {
			gone = append(gone, g)
		}
		s.gives = gives
	}
	for _, g := range fresh { // first, or a group that goes on would have nobody for a moment
		e.use(g.value, 1)
	}
	for _, g := range gone { // and these before the new ones: the key of a map may come again with another value
		e.setElement(g, false)
		e.use(g.value, -1)
	}
	for _, g := range fresh {
		e.setElement(g, true)
	}
}

// use counts how many elements lead to a group, and takes away one without.
func (e *Engine) use(group string, n int) {
	if group == "" {
		return
	}
	if e.groups[group] += n; e.groups[group] == 0 {
		delete(e.groups, group)
		e.setChain(group, nil)
	}
}

func (e *Engine) setChain(name string, c *chain) {
	if _, touched := e.before.chains[name]; !touched {
		e.before.chains[name] = e.chains[name]
	}
	if c == nil {
		delete(e.chains, name)
	} else {
		e.chains[name] = c
	}
}

func (e *Engine) setSet(name string, there bool) {
	if e.sets[name] == there {
		return
	}
	if _, touched := e.before.sets[name]; !touched {
		e.before.sets[name] = e.sets[name]
	}
	if there {
		e.sets[name] = true
	} else {
		delete(e.sets, name) // no pod gives to it any more
	}
}

func (e *Engine) setElement(g element, there bool) {
	had := e.elements[g.set]
	if e.before.elements[g.set] == nil {
		e.before.elements[g.set] = map[string]*string{}
	}
	if _, touched := e.before.elements[g.set][g.key]; !touched {
		var old *string
		if v, ok := had[g.key]; ok {
			old = &v
		}
		e.before.elements[g.set][g.key] = old
	}
	if there {
		if had == nil {
			had = map[string]string{}
			e.elements[g.set] = had
		}
		had[g.key] = g.value
		return
	}
	delete(had, g.key)
	if len(had) == 0 {
		delete(e.elements, g.set)
	}
}
