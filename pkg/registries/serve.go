package registries

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// ServeHTTP answers containerd: a registry's API to read from, which registry is in "ns".
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.knows(r) {
		refuse(w, http.StatusForbidden, "DENIED", "this server answers containerd alone")
		return
	}
	src := s.load()
	if src.err != nil {
		refuse(w, http.StatusForbidden, "DENIED", src.err.Error())
		return
	}
	if r.URL.Path == tokenPath {
		src.token(w, r)
		return
	}
	registry := r.URL.Query().Get("ns")
	repository, rest, ok := split(r.URL.Path)
	if registry == "" || !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "only images are read here, each with its registry")
		return
	}
	src.fetch(w, r, registry, repository, rest)
}

// split takes /v2/<repository>/<manifests|blobs|referrers>/<which> apart.
func split(path string) (repository, rest string, ok bool) {
	path, ok = strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", false
	}
	for _, kind := range []string{"/manifests/", "/blobs/", "/referrers/"} {
		if i := strings.LastIndex(path, kind); i > 0 {
			return path[:i], path[i:], true
		}
	}
	return "", "", false
}

// fetch asks one target after the other and passes the first good answer on, or the last one's, whatever it is.
func (s *source) fetch(w http.ResponseWriter, r *http.Request, registry, repository, rest string) {
	targets := s.targets(registry, repository, s.mirrorsOnly)
	var faults []string
	for i, t := range targets {
		last := i == len(targets)-1
		resp, err := s.ask(r, t, rest, last && t.origin)
		if err != nil {
			if r.Context().Err() != nil {
				return
			}
			faults = append(faults, fmt.Sprintf("%s: %v", t.base.Host, err))
			continue
		}
		// A mirror's challenge goes no further: containerd would answer it with a pod's credentials.
		if resp.StatusCode >= 300 && !last || resp.StatusCode == http.StatusUnauthorized && !t.origin {
			faults = append(faults, fmt.Sprintf("%s: %s", t.base.Host, resp.Status))
			_ = resp.Body.Close()
			continue
		}
		if len(faults) > 0 {
			slog.Debug("registries: mirrors passed over", "image", registry+"/"+repository, "why", faults)
		}
		pass(w, r, resp, t)
		return
	}
	refuse(w, http.StatusForbidden, "DENIED", registry+"/"+repository+": "+strings.Join(faults, "; "))
}

// ask sends the request to one target, with the credentials that the file has for it. What the client itself has to say of who
// it is goes to the registry alone.
func (s *source) ask(r *http.Request, t target, rest string, origin bool) (*http.Response, error) {
	ctx := docker.WithScope(r.Context(), "repository:"+t.repository+":pull")
	c := s.clients.of(t.base.Host, t.host)
	u := *t.base
	u.Path += "/" + t.repository + rest
	var responses []*http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		for _, h := range []string{"Accept", "Range", "User-Agent", "If-None-Match"} {
			if v := r.Header.Values(h); len(v) > 0 {
				req.Header[h] = v
			}
		}
		theirs := r.Header.Get("Authorization")
		// Without credentials of ours for the registry, containerd asks for a token itself: it may have a pod's.
		ours := !origin || t.host.secret != "" && theirs == ""
		switch {
		case ours:
			if err := c.authorizer.Authorize(ctx, req); err != nil {
				return nil, err
			}
		case theirs != "":
			req.Header.Set("Authorization", theirs)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || !ours || len(responses) > 1 {
			return resp, nil
		}
		responses = append(responses, resp)
		if err := c.authorizer.AddResponses(ctx, responses); err != nil {
			return resp, nil //nolint:nilerr // the registry's own answer says more
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		_ = resp.Body.Close()
	}
}

// pass copies an answer. A challenge is made to lead here, so that the token is fetched as the file says too.
func pass(w http.ResponseWriter, r *http.Request, resp *http.Response, t target) {
	defer func() { _ = resp.Body.Close() }()
	for _, h := range []string{"Connection", "Transfer-Encoding", "Keep-Alive"} {
		resp.Header.Del(h)
	}
	maps.Copy(w.Header(), resp.Header)
	if resp.StatusCode == http.StatusUnauthorized {
		w.Header()["Www-Authenticate"] = leadHere(resp.Header.Values("Www-Authenticate"), r.Host, t.base.Host)
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler) // the client must see that this was not all
	}
}

// tokenPath is where tokens are fetched: ?realm=<the registry's> and &host=<whose settings>.
const tokenPath = "/token"

func leadHere(challenges []string, here, host string) []string {
	out := make([]string, len(challenges))
	for i, c := range challenges {
		before, after, ok := strings.Cut(c, `realm="`)
		realm, rest, closed := strings.Cut(after, `"`)
		if !ok || !closed || !strings.HasPrefix(strings.ToLower(strings.TrimSpace(c)), "bearer") {
			out[i] = c
			continue
		}
		q := url.Values{"realm": {realm}, "host": {host}}
		out[i] = before + `realm="http://` + here + tokenPath + "?" + q.Encode() + `"` + rest
	}
	return out
}

// token passes a request for a token on to a registry's realm.
func (s *source) token(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	realm, err := url.Parse(q.Get("realm"))
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		refuse(w, http.StatusBadRequest, "UNSUPPORTED", "there is no realm to ask")
		return
	}
	host := q.Get("host")
	q.Del("realm")
	q.Del("host")
	for k, v := range realm.Query() {
		q[k] = append(q[k], v...)
	}
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(r.Context(), r.Method, realm.String(), r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "UNSUPPORTED", err.Error())
		return
	}
	req.ContentLength = r.ContentLength
	for _, h := range []string{"Accept", "Authorization", "Content-Type", "User-Agent"} {
		if v := r.Header.Values(h); len(v) > 0 {
			req.Header[h] = v
		}
	}
	resp, err := s.clients.of(host, s.host(host)).http.Do(req)
	if err != nil {
		refuse(w, http.StatusBadGateway, "UNAVAILABLE", err.Error())
		return
	}
	pass(w, r, resp, target{base: realm})
}

// refuse answers with the error form of registries. With "forbidden" alone containerd reads the reason and has kubelet show it.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// clients keeps connections and tokens of each host.
type clients struct {
	proxy func(*url.URL) (*url.URL, error)

	mu  sync.Mutex
	all map[string]*client
}

type client struct {
	http       *http.Client
	authorizer docker.Authorizer
}

func newClients(proxy func(*url.URL) (*url.URL, error)) *clients {
	return &clients{proxy: proxy, all: map[string]*client{}}
}

func (c *clients) of(name string, h host) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.all[name]; have != nil {
		return have
	}
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   4,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true,          // what a registry sends is what its digest names
		TLSClientConfig:       h.tls.Clone(), // may be nil
	}
	if c.proxy != nil {
		t.Proxy = func(r *http.Request) (*url.URL, error) { return c.proxy(r.URL) }
	}
	hc := &http.Client{Transport: t}
	n := &client{http: hc, authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(hc), docker.WithAuthCreds(
		func(string) (string, string, error) { return h.username, h.secret, nil }))}
	c.all[name] = n
	return n
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.all {
		cl.http.CloseIdleConnections()
	}
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
