package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// serve answers one request.
func (p *port) serve(w http.ResponseWriter, r *http.Request) {
	t := p.table.Load()
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	name := "none"
	defer func() { p.metrics.observe(name, rec.code, time.Since(start)) }()

	clean(r)
	if !t.TLS && p.challenge != nil && p.challenge(rec, r) {
		name = "acme"
		return
	}
	q := &question{Request: r, host: hostOf(r.Host), path: r.URL.Path}
	if r.TLS != nil && t.misdirected(r.TLS.ServerName, q.host) {
		http.Error(rec, "this connection was made for another host", http.StatusMisdirectedRequest)
		return
	}
	_, found := t.find(q)
	if found == nil {
		http.Error(rec, "no route for this host and path", http.StatusNotFound)
		return
	}
	a := found.action
	name = a.Name
	e := &exchange{port: t.Port, rule: found, action: a, in: r, proxy: p.proxy}
	if e.answered(rec, a.Filters) {
		return
	}
	b, code := a.pick()
	if code != 0 {
		e.respondWith(rec, code)
		return
	}
	e.backend = b
	if e.answered(rec, b.Filters) {
		return
	}
	e.forward(rec)
}

// pick chooses a backend, or says with which code a request must be answered that has none.
func (a *Action) pick() (*Backend, int) {
	var b *Backend
	switch len(a.Backends) {
	case 0:
	case 1:
		if b = &a.Backends[0]; b.Weight <= 0 {
			b = nil
		}
	default:
		b = weighted(&a.turn, a.Backends)
	}
	switch {
	case b == nil, b.Invalid:
		return nil, http.StatusInternalServerError
	case len(b.Addresses) == 0:
		return nil, http.StatusServiceUnavailable
	}
	return b, 0
}

// clean removes dot segments: what a rule allows must be what the backend reads.
func clean(r *http.Request) {
	u := r.URL
	if u.Path == "" {
		u.Path, u.RawPath = "/", ""
	}
	if !strings.Contains(u.Path, "/.") {
		return
	}
	c := path.Clean(u.Path)
	if strings.HasSuffix(u.Path, "/") || strings.HasSuffix(u.Path, "/.") || strings.HasSuffix(u.Path, "/..") {
		c = strings.TrimSuffix(c, "/") + "/"
	}
	if c != u.Path {
		u.Path, u.RawPath = c, ""
	}
}

// misdirected says whether a host was asked for over a connection whose name belongs to another listener: its certificate, or
// what it demands of clients, may not be that of the host.
func (t *table) misdirected(sni, host string) bool {
	if sni == "" || sni == host {
		return false
	}
	var a, b *nameTable
	t.names.find(sni, func(n *nameTable, _ int) bool { a = n; return true })
	t.names.find(host, func(n *nameTable, _ int) bool { b = n; return true })
	return a != b
}

// exchange is one request on its way.
type exchange struct {
	port     *Port
	rule     *rule
	action   *Action
	backend  *Backend
	in       *http.Request
	proxy    *forwarder
	response []*Headers // changes of the response
	request  []*Headers
	hostname string
	path     string
	rawPath  string
	moved    bool // path and rawPath replace the request's
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	e, _ := ctx.Value(exchangeKey{}).(*exchange)
	return e
}

// answered goes through filters and says whether one of them was the answer.
func (e *exchange) answered(w http.ResponseWriter, filters []Filter) bool {
	for i := range filters {
		switch f := &filters[i]; {
		case f.Request != nil:
			e.request = append(e.request, f.Request)
		case f.Response != nil:
			e.response = append(e.response, f.Response)
		case f.Rewrite != nil:
			e.hostname = f.Rewrite.Hostname
			if c := f.Rewrite.Path; c != nil {
				e.path, e.rawPath = e.rule.change(c, e.in.URL.Path, e.in.URL.EscapedPath())
				e.moved = true
			}
		case f.Redirect != nil:
			e.redirect(w, f.Redirect)
			return true
		case f.Mirror != nil:
			e.proxy.mirror(e, f.Mirror)
		case f.CORS != nil:
			if e.cors(w, f.CORS) {
				return true
			}
		}
	}
	return false
}

func (e *exchange) respondWith(w http.ResponseWriter, code int) {
	e.changeResponse(w.Header())
	http.Error(w, strings.ToLower(http.StatusText(code)), code)
}

func (e *exchange) changeResponse(h http.Header) {
	for _, c := range e.response {
		c.apply(h)
	}
}

func (h *Headers) apply(to http.Header) {
	for _, p := range h.Set {
		to.Set(p.Name, p.Value)
	}
	for _, p := range h.Add {
		to.Add(p.Name, p.Value)
	}
	for _, n := range h.Remove {
		to.Del(n)
	}
}

// change gives a path as a filter wants it, plain and as it is written in a URL ("" when that follows from the plain one).
func (r *rule) change(c *PathChange, plain, escaped string) (string, string) {
	if !c.Prefix {
		return c.Value, ""
	}
	prefix := strings.TrimRight(r.Path, "/")
	rest := strings.TrimPrefix(plain, prefix)
	to := strings.TrimRight(c.Value, "/")
	join := func(rest string) string {
		if rest == "" {
			if to == "" {
				return "/"
			}
			return to
		}
		if !strings.HasPrefix(rest, "/") {
			rest = "/" + rest
		}
		return to + rest
	}
	raw := ""
	if escaped != plain && strings.HasPrefix(escaped, prefix) {
		raw = join(strings.TrimPrefix(escaped, prefix))
	}
	if rest == "" && strings.HasSuffix(c.Value, "/") {
		return join("/"), raw
	}
	return join(rest), raw
}

// redirect answers with where to go.
func (e *exchange) redirect(w http.ResponseWriter, d *Redirect) {
	u := *e.in.URL
	scheme := "http"
	if e.port.TLS {
		scheme = "https"
	}
	number := int(e.port.Public)
	if d.Scheme != "" {
		scheme = d.Scheme
		number = map[string]int{"http": 80, "https": 443}[scheme]
	}
	if d.Port != 0 {
		number = d.Port
	}
	host := d.Hostname
	if host == "" {
		host = hostOf(e.in.Host)
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if number != 0 && (scheme != "http" || number != 80) && (scheme != "https" || number != 443) {
		host += ":" + strconv.Itoa(number)
	}
	u.Scheme, u.Host = scheme, host
	if d.Path != nil {
		u.Path, u.RawPath = e.rule.change(d.Path, e.in.URL.Path, e.in.URL.EscapedPath())
	}
	code := d.Code
	if code == 0 {
		code = http.StatusFound
	}
	e.changeResponse(w.Header())
	w.Header().Set("Location", u.String())
	w.WriteHeader(code)
}

// cors answers a preflight, or notes what the response to another origin must say.
func (e *exchange) cors(w http.ResponseWriter, c *CORS) bool {
	origin := e.in.Header.Get("Origin")
	if origin == "" {
		return false
	}
	preflight := e.in.Method == http.MethodOptions && e.in.Header.Get("Access-Control-Request-Method") != ""
	h := &Headers{}
	set := func(name, value string) { h.Set = append(h.Set, Pair{Name: name, Value: value}) }
	if !c.allows(origin) {
		// The browser reads the absence of headers; a backend's own must not speak for it.
		h.Remove = []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Expose-Headers"}
		if preflight {
			w.WriteHeader(http.StatusNoContent)
			return true
		}
		e.response = append(e.response, h)
		return false
	}
	if len(c.Origins) == 1 && c.Origins[0] == "*" && !c.Credentials {
		set("Access-Control-Allow-Origin", "*")
	} else {
		set("Access-Control-Allow-Origin", origin)
		h.Add = append(h.Add, Pair{Name: "Vary", Value: "Origin"})
	}
	if c.Credentials {
		set("Access-Control-Allow-Credentials", "true")
	}
	if len(c.Expose) > 0 {
		set("Access-Control-Expose-Headers", strings.Join(c.Expose, ", "))
	}
	if !preflight {
		e.response = append(e.response, h)
		return false
	}
	list := func(name string, allowed []string, asked string) {
		switch {
		case len(allowed) == 1 && allowed[0] == "*" && c.Credentials && asked != "":
			set(name, asked)
		case len(allowed) > 0:
			set(name, strings.Join(allowed, ", "))
		}
	}
	list("Access-Control-Allow-Methods", c.Methods, e.in.Header.Get("Access-Control-Request-Method"))
	list("Access-Control-Allow-Headers", c.Headers, e.in.Header.Get("Access-Control-Request-Headers"))
	if c.MaxAge > 0 {
		set("Access-Control-Max-Age", strconv.Itoa(c.MaxAge))
	}
	h.apply(w.Header())
	w.WriteHeader(http.StatusNoContent)
	return true
}

func (c *CORS) allows(origin string) bool {
	for _, o := range c.Origins {
		if o == "*" || strings.EqualFold(o, origin) {
			return true
		}
		// https://*.example.org
		if before, after, ok := strings.Cut(o, "*"); ok && len(origin) > len(o) && strings.HasPrefix(origin, before) && strings.HasSuffix(origin, after) {
			return true
		}
	}
	return false
}

// recorder remembers the code of a response.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 || r.code < 200 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush and hijack.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// failed answers a request that no backend answered.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	e := exchangeOf(r.Context())
	code := http.StatusBadGateway
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		code = 499 // the client went away and will not read it
	}
	if e != nil && code != 499 {
		slog.Debug("no answer", "route", e.action.Name, "backend", e.backend.Name, "err", err)
		e.changeResponse(w.Header())
	}
	w.WriteHeader(code)
}
