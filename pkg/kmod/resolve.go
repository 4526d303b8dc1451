package kmod

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrUnknown means that no module and no builtin has a name or alias.
var ErrUnknown = errors.New("no kernel module has this name or alias")

// Resolve gives the modules to load for names (of modules or aliases), each after those it needs. What the kernel has
// built in needs nothing. All unknown names are reported; a softdep that does not exist is none.
func (x *Index) Resolve(names ...string) ([]Module, error) {
	r := resolver{x: x, state: map[string]int{}}
	var errs []error
	for _, n := range names {
		errs = append(errs, r.ask(n))
	}
	return r.order, errors.Join(errs...)
}

// Subset is the index of the modules that names resolve to, for an image that carries only those.
func (x *Index) Subset(names ...string) (*Index, error) {
	mods, err := x.Resolve(names...)
	if err != nil {
		return nil, err
	}
	s := &Index{Modules: make(map[string]Module, len(mods)), Builtin: x.Builtin}
	for _, m := range mods {
		s.Modules[m.Name] = m
	}
	return s, nil
}

// Lookup gives the names of the modules that answer to a name or an alias. builtin is true when the kernel itself does.
func (x *Index) Lookup(name string) (mods []string, builtin bool) {
	name = Normal(name)
	_, builtin = slices.BinarySearch(x.Builtin, name)
	if _, ok := x.Modules[name]; ok {
		return []string{name}, builtin
	}
	return x.Match(name), builtin
}

// Match gives the sorted names of the modules with an alias that matches a modalias, such as a device has in sysfs.
func (x *Index) Match(modalias string) []string {
	x.once.Do(x.sortAliases)
	modalias = Normal(modalias)
	var out []string
	for _, bus := range []string{busOf(modalias), ""} {
		for _, a := range x.byBus[bus] {
			if match(a.pattern, modalias) {
				out = append(out, a.module)
			}
		}
		if bus == "" {
			break
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// alias is one pattern and whose it is.
type alias struct{ pattern, module string }

// busOf gives what stands before the colon of an alias, which patterns share with the devices they match; or "".
func busOf(alias string) string {
	bus, _, ok := strings.Cut(alias, ":")
	if !ok || strings.ContainsAny(bus, `*?[\\`) {
		return ""
	}
	return bus
}

// sortAliases files all aliases by bus, because a machine asks for a hundred devices among tens of thousands of aliases.
func (x *Index) sortAliases() {
	x.byBus = map[string][]alias{}
	for name, m := range x.Modules {
		for _, a := range m.Aliases {
			bus := busOf(a)
			x.byBus[bus] = append(x.byBus[bus], alias{a, name})
		}
	}
}

const (
	visiting = iota + 1
	done
)

type resolver struct {
	x     *Index
	state map[string]int
	order []Module
}

// ask resolves a name or alias that must exist.
func (r *resolver) ask(name string) error {
	mods, builtin := r.x.Lookup(name)
	if len(mods) == 0 && !builtin {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	if builtin && len(mods) > 0 && mods[0] != Normal(name) {
		return nil // an alias the kernel answers to itself; modules that do too are only other ways
	}
	for _, m := range mods {
		if err := r.visit(m, name); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) visit(name, by string) error {
	if _, builtin := slices.BinarySearch(r.x.Builtin, name); builtin {
		return nil
	}
	m, ok := r.x.Modules[name]
	if !ok {
		return fmt.Errorf("%s, which %s depends on: %w", name, by, ErrUnknown)
	}
	if r.state[name] != 0 { // done, or a softdep that leads back here
		return nil
	}
	r.state[name] = visiting
	r.wish(m.Pre)
	for _, d := range m.Depends {
		if err := r.visit(d, name); err != nil {
			return err
		}
	}
	r.order = append(r.order, m)
	r.state[name] = done
	r.wish(m.Post)
	return nil
}

// wish resolves softdeps, which need not exist. One that exists but cannot be had is left out like one that does not.
func (r *resolver) wish(names []string) {
	for _, n := range names {
		_ = r.ask(n)
	}
}

// match says whether the shell pattern p (*, ?, [a-z], \ before a literal) matches all of s.
func match(p, s string) bool {
	if !strings.ContainsAny(p, `*?[\`) {
		return p == s
	}
	for len(p) > 0 {
		switch p[0] {
		case '*':
			p = strings.TrimLeft(p, "*")
			if p == "" {
				return true
			}
			for i := 0; i <= len(s); i++ {
				if match2(p, s[i:]) {
					return true
				}
			}
			return false
		case '?':
			if s == "" {
				return false
			}
			p, s = p[1:], s[1:]
		case '[':
			if s == "" {
				return false
			}
			ok, rest := class(p[1:], s[0])
			if !ok {
				return false
			}
			p, s = rest, s[1:]
		case '\\':
			if len(p) > 1 {
				p = p[1:]
			}
			fallthrough
		default:
			if s == "" || s[0] != p[0] {
				return false
			}
			p, s = p[1:], s[1:]
		}
	}
	return s == ""
}

// match2 is match without the short cut, for what stands behind a star.
func match2(p, s string) bool {
	if p[0] != '*' && p[0] != '?' && p[0] != '[' && p[0] != '\\' && (s == "" || s[0] != p[0]) {
		return false
	}
	return match(p, s)
}

// class matches c against the bracket expression that starts p (behind its "["), and gives what follows it.
func class(p string, c byte) (ok bool, rest string) {
	negate := strings.HasPrefix(p, "!") || strings.HasPrefix(p, "^")
	if negate {
		p = p[1:]
	}
	for first := true; p != "" && (first || p[0] != ']'); first = false {
		lo := p[0]
		hi := lo
		p = p[1:]
		if len(p) > 1 && p[0] == '-' && p[1] != ']' {
			hi = p[1]
			p = p[2:]
		}
		if lo <= c && c <= hi {
			ok = true
		}
	}
	return ok != negate, strings.TrimPrefix(p, "]")
}
