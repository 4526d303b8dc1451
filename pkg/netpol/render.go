package netpol

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// Whole renders the whole table, in place of what is there. It is one transaction: no packet passes between.
func (e *Engine) Whole(nft knftables.Interface) *knftables.Transaction {
	e.settle()
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("NetworkPolicies")})
	for _, v := range families {
		tx.Add(&knftables.Set{Name: "self" + v.digit, Type: v.addr + " . " + v.addr})
		for _, dir := range []direction{ingress, egress} {
			tx.Add(&knftables.Map{Name: string(dir) + v.digit, Type: v.addr + " : verdict"})
		}
	}
	for _, name := range sorted(e.sets) {
		tx.Add(setObject(name))
	}
	names := sorted(e.chains)
	for _, name := range names {
		tx.Add(e.chains[name].object())
	}
	for _, name := range names {
		e.chains[name].addRules(tx)
	}
	for _, set := range sorted(e.elements) {
		for _, key := range sorted(e.elements[set]) {
			tx.Add(elementObject(set, key, e.elements[set][key]))
		}
	}
	// Two base chains, because accepting in one is not accepting in the other: both ends of a connection may have their say.
	baseChain(tx, egress, "saddr", knftables.FilterPriority)
	baseChain(tx, ingress, "daddr", knftables.FilterPriority+"+1")
	return tx
}

var families = []struct{ digit, word, addr string }{{"4", "ip", "ipv4_addr"}, {"6", "ip6", "ipv6_addr"}}

func baseChain(tx *knftables.Transaction, dir direction, end string, priority knftables.BaseChainPriority) {
	name := map[direction]string{ingress: "ingress", egress: "egress"}[dir]
	tx.Add(&knftables.Chain{Name: name, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.ForwardHook), Priority: knftables.PtrTo(priority)})
	tx.Add(&knftables.Rule{Chain: name, Rule: "ct state established,related accept"})
	for _, v := range families {
		tx.Add(&knftables.Rule{Chain: name, Rule: fmt.Sprintf("%[1]s saddr . %[1]s daddr @self%[2]s accept", v.word, v.digit)})
		tx.Add(&knftables.Rule{Chain: name, Rule: fmt.Sprintf("%s %s vmap @%s%s", v.word, end, dir, v.digit)})
	}
}

// Changes renders what has changed since the last Commit; nil if nothing has.
func (e *Engine) Changes(nft knftables.Interface) *knftables.Transaction {
	e.settle()
	tx := nft.NewTransaction()
	b := e.before
	for _, name := range sorted(b.sets) {
		if e.sets[name] && !b.sets[name] {
			tx.Add(setObject(name))
		}
	}
	var write, remove []string
	for _, name := range sorted(b.chains) {
		now, old := e.chains[name], b.chains[name]
		switch {
		case now == nil && old == nil:
		case now == nil:
			remove = append(remove, name)
		case old == nil:
			tx.Add(now.object())
			write = append(write, name)
		case !reflect.DeepEqual(now.rules, old.rules):
			tx.Flush(now.object())
			write = append(write, name)
		}
	}
	for _, name := range write {
		e.chains[name].addRules(tx)
	}
	for _, set := range sorted(b.elements) {
		old := b.elements[set]
		for _, key := range sorted(old) {
			now, there := e.elements[set][key]
			was := old[key]
			if was != nil && (!there || now != *was) && (e.permanent(set) || e.sets[set]) && (e.permanent(set) || b.was(set)) {
				tx.Delete(elementObject(set, key, *was))
			}
			if there && (was == nil || now != *was) {
				tx.Add(elementObject(set, key, now))
			}
		}
	}
	for _, name := range remove {
		tx.Flush(b.chains[name].object())
	}
	for _, name := range remove {
		tx.Delete(b.chains[name].object())
	}
	for _, name := range sorted(b.sets) {
		if !e.sets[name] && b.sets[name] {
			tx.Delete(setObject(name))
		}
	}
	if tx.NumOperations() == 0 {
		return nil
	}
	return tx
}

// permanent says whether the set or map is there without any policy.
func (e *Engine) permanent(set string) bool { return !strings.Contains(set, "-") }

// was says whether a set that is there now was there at the last Commit.
func (b change) was(set string) bool {
	old, touched := b.sets[set]
	return !touched || old
}

// Commit says that the kernel has everything as it is now.
func (e *Engine) Commit() { e.before = newChange() }

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func setObject(name string) *knftables.Set {
	v := families[0]
	if name[1] == '6' {
		v = families[1]
	}
	s := &knftables.Set{Name: name, Type: v.addr}
	if name[0] == 'n' {
		s.Type += " . inet_service"
	}
	return s
}

func elementObject(set, key, verdict string) *knftables.Element {
	el := &knftables.Element{Set: set, Key: strings.Split(key, " . ")}
	if verdict != "" {
		el.Set, el.Map, el.Value = "", set, []string{"goto " + verdict}
	}
	return el
}

func (c *chain) object() *knftables.Chain {
	o := &knftables.Chain{Name: c.name}
	if c.comment != "" {
		o.Comment = &c.comment
	}
	return o
}

func (c *chain) addRules(tx *knftables.Transaction) {
	for _, r := range c.rules {
		tx.Add(&knftables.Rule{Chain: c.name, Rule: r.text(c.dir)})
	}
}

// text is the rule in nft's words; the peer is where a connection comes from, or where it goes.
func (r rule) text(dir direction) string {
	v, end := families[0], "saddr"
	if r.v6 {
		v = families[1]
	}
	if dir == egress {
		end = "daddr"
	}
	var words []string
	say := func(format string, a ...any) { words = append(words, fmt.Sprintf(format, a...)) }
	if r.peer != "" {
		say("%s %s @s%s-%s", v.word, end, v.digit, r.peer)
	}
	if r.block.IsValid() {
		if r.block.Bits() == 0 {
			say("meta nfproto %s", map[bool]string{false: "ipv4", true: "ipv6"}[r.v6])
		} else {
			say("%s %s %s", v.word, end, r.block)
		}
		for _, e := range r.except {
			say("%s %s != %s", v.word, end, e)
		}
	}
	switch {
	case r.named != "":
		say("%s daddr . %s dport @n%s-%s", v.word, r.protocol, v.digit, r.named)
	case len(r.ports) > 0:
		say("%s dport { %s }", r.protocol, portTexts(r.ports))
	case r.protocol != "":
		say("meta l4proto %s", r.protocol)
	}
	if r.verdict == "" {
		say("accept")
	} else {
		say("%s", r.verdict)
	}
	return strings.Join(words, " ")
}

func portTexts(ranges []portRange) string {
	var out []string
	for _, r := range ranges {
		text := strconv.Itoa(int(r.first))
		if r.last != r.first {
			text += "-" + strconv.Itoa(int(r.last))
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
