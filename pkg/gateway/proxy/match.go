package proxy

import (
	"cmp"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// hostMap finds values by host name: exact ones, then wildcards from the longest, then the one for any.
type hostMap[T any] struct {
	exact map[string]T
	below map[string]T // "*.x" under ".x"
	any   *T
}

func (m *hostMap[T]) set(pattern string, v T) {
	switch {
	case pattern == "":
		m.any = &v
	case strings.HasPrefix(pattern, "*."):
		if m.below == nil {
			m.below = map[string]T{}
		}
		m.below[pattern[1:]] = v
	default:
		if m.exact == nil {
			m.exact = map[string]T{}
		}
		m.exact[pattern] = v
	}
}

func (m *hostMap[T]) get(pattern string) (v T, ok bool) {
	switch {
	case pattern == "":
		if m.any == nil {
			return v, false
		}
		return *m.any, true
	case strings.HasPrefix(pattern, "*."):
		v, ok = m.below[pattern[1:]]
	default:
		v, ok = m.exact[pattern]
	}
	return v, ok
}

// find calls f for what host belongs to, the closest first, until f is content. The number grows with closeness.
func (m *hostMap[T]) find(host string, f func(v T, closeness int) bool) {
	if v, ok := m.exact[host]; ok && f(v, 1<<16) {
		return
	}
	if len(m.below) > 0 {
		for i := strings.IndexByte(host, '.'); i >= 0; {
			if v, ok := m.below[host[i:]]; ok && i > 0 && f(v, len(host)-i+1) {
				return
			}
			next := strings.IndexByte(host[i+1:], '.')
			if next < 0 {
				break
			}
			i += 1 + next
		}
	}
	if m.any != nil {
		f(*m.any, 0)
	}
}

// hostOf is the host of a request as host names are compared: in small letters, without port and last dot.
func hostOf(hostport string) string {
	host := hostport
	if strings.IndexByte(host, ':') >= 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// siteTable is a site, ready to be asked.
type siteTable struct {
	listeners hostMap[*listenerTable]
}

type listenerTable struct {
	*Listener
	hosts hostMap[*ruleSet]
}

// ruleSet holds the rules of one host name by path.
type ruleSet struct {
	exact  map[string][]*rule
	prefix map[string][]*rule // without the slash at the end, so that "" is "/"
	regexp []*rule
}

type rule struct {
	*Match
	action   *Action
	oneLabel string // ".x" of "*.x" that takes only one label
	order    int
}

func newSite(s Site) *siteTable {
	t := &siteTable{}
	for i := range s.Listeners {
		l := &listenerTable{Listener: &s.Listeners[i]}
		order := 0
		for j := range l.Routes {
			r := &l.Routes[j]
			hosts := r.Hostnames
			if len(hosts) == 0 {
				hosts = []string{""}
			}
			for _, h := range hosts {
				set, ok := l.hosts.get(h)
				if !ok {
					set = &ruleSet{exact: map[string][]*rule{}, prefix: map[string][]*rule{}}
					l.hosts.set(h, set)
				}
				order++
				one := &rule{Match: &r.Match, action: r.Action, order: order}
				if r.OneLabel && strings.HasPrefix(h, "*.") {
					one.oneLabel = h[1:]
				}
				set.add(one)
			}
		}
		l.each(func(s *ruleSet) { s.sort() })
		if _, taken := t.listeners.get(l.Hostname); !taken {
			t.listeners.set(l.Hostname, l)
		}
	}
	return t
}

func (l *listenerTable) each(f func(*ruleSet)) {
	for _, s := range l.hosts.exact {
		f(s)
	}
	for _, s := range l.hosts.below {
		f(s)
	}
	if l.hosts.any != nil {
		f(*l.hosts.any)
	}
}

func (s *ruleSet) add(r *rule) {
	switch r.PathKind {
	case Exact:
		s.exact[r.Path] = append(s.exact[r.Path], r)
	case Regexp:
		s.regexp = append(s.regexp, r)
	default:
		key := strings.TrimRight(r.Path, "/")
		s.prefix[key] = append(s.prefix[key], r)
	}
}

// sort brings rules of the same path, or of any expression, into the order of precedence: by length, method, number of headers, number of query parameters, and
// then as they came.
func (s *ruleSet) sort() {
	order := func(a, b *rule) int {
		return cmp.Or(
			cmp.Compare(len(b.Path), len(a.Path)),
			cmp.Compare(btoi(b.Method != ""), btoi(a.Method != "")),
			cmp.Compare(len(b.Headers), len(a.Headers)),
			cmp.Compare(len(b.Query), len(a.Query)),
			cmp.Compare(a.order, b.order),
		)
	}
	for _, list := range s.exact {
		slices.SortStableFunc(list, order)
	}
	for _, list := range s.prefix {
		slices.SortStableFunc(list, order)
	}
	slices.SortStableFunc(s.regexp, order)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// find is the first rule for a request.
func (s *ruleSet) find(q *question) *rule {
	for _, r := range s.exact[q.path] {
		if q.matches(r) {
			return r
		}
	}
	for _, r := range s.regexp {
		if r.Regexp.MatchString(q.path) && q.matches(r) {
			return r
		}
	}
	if len(s.prefix) == 0 {
		return nil
	}
	for p := strings.TrimRight(q.path, "/"); ; {
		for _, r := range s.prefix[p] {
			if q.matches(r) {
				return r
			}
		}
		if p == "" {
			return nil
		}
		p = p[:max(strings.LastIndexByte(p, '/'), 0)]
	}
}

// question is a request as rules see it.
type question struct {
	*http.Request
	host, path string
	query      url.Values // read when a rule asks for it
}

func (q *question) matches(r *rule) bool {
	switch {
	case r.Method != "" && r.Method != q.Method:
		return false
	case r.oneLabel != "" && strings.IndexByte(strings.TrimSuffix(q.host, r.oneLabel), '.') >= 0:
		return false
	case r.GRPC && !strings.HasPrefix(q.Header.Get("Content-Type"), "application/grpc"):
		return false
	}
	for _, h := range r.Headers {
		values := q.Header.Values(h.Name)
		if h.Name == "Host" {
			values = []string{q.Host}
		}
		if len(values) == 0 || !h.has(strings.Join(values, ",")) {
			return false
		}
	}
	for _, p := range r.Query {
		if q.query == nil {
			q.query = q.URL.Query()
		}
		values := q.query[p.Name]
		if len(values) == 0 || !p.has(values[0]) {
			return false
		}
	}
	return true
}

func (p *Pair) has(value string) bool {
	if p.Regexp != nil {
		return p.Regexp.MatchString(value)
	}
	return p.Value == value
}

// table is a port, ready to be asked.
type table struct {
	*Port
	sites []*siteTable
	names hostMap[*nameTable] // for TLS
	// streams says whether connections may be passed on as they are, or as what is inside their TLS.
	streams bool
}

// find is the rule for a request and the listener it belongs to. When no rule matches, the listener is the closest one.
func (t *table) find(q *question) (*listenerTable, *rule) {
	if len(t.sites) == 1 {
		return t.sites[0].find(q)
	}
	type choice struct {
		l         *listenerTable
		closeness int
	}
	var buf [8]choice
	choices := buf[:0]
	for _, s := range t.sites {
		s.listeners.find(q.host, func(l *listenerTable, closeness int) bool {
			choices = append(choices, choice{l, closeness})
			return true
		})
	}
	slices.SortStableFunc(choices, func(a, b choice) int { return cmp.Compare(b.closeness, a.closeness) })
	for _, c := range choices {
		if r := c.l.find(q); r != nil {
			return c.l, r
		}
	}
	if len(choices) > 0 {
		return choices[0].l, nil
	}
	return nil, nil
}

func (s *siteTable) find(q *question) (l *listenerTable, r *rule) {
	s.listeners.find(q.host, func(found *listenerTable, _ int) bool { l = found; return true })
	if l == nil {
		return nil, nil
	}
	return l, l.find(q)
}

func (l *listenerTable) find(q *question) (r *rule) {
	l.hosts.find(q.host, func(s *ruleSet, _ int) bool {
		r = s.find(q)
		return r != nil
	})
	return r
}
