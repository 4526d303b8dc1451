package join

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Handler answers GET KubeconfigPath to whoever proves to know the token. token and kubeconfig are asked at each request,
// so that both may change while the server runs. It must be served over TLS 1.3, in front of any authentication.
func Handler(token func() string, kubeconfig func() ([]byte, error)) http.Handler {
	h := &handler{token: token, body: kubeconfig, failures: failures{window: time.Minute, limit: 10}}
	return h
}

type handler struct {
	token    func() string
	body     func() ([]byte, error)
	failures failures
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
		return
	}
	token := h.token()
	want, err := proof(token, clientWord, r.TLS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	who := source(r.RemoteAddr)
	if h.failures.tooMany(who) {
		w.Header().Set("Retry-After", "60")
		http.Error(w, "too many wrong tokens from this address; wait a minute and check cluster.token in the node config", http.StatusTooManyRequests)
		return
	}
	if !equal(r.Header.Get(proofHeader), want) {
		h.failures.add(who)
		http.Error(w, "the token is not this cluster's; use the cluster.token of the server's node config", http.StatusUnauthorized)
		return
	}
	mine, err := proof(token, serverWord, r.TLS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	body, err := h.body()
	if err != nil {
		http.Error(w, fmt.Sprintf("the kubeconfig is not there yet: %v", err), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set(proofHeader, mine)
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(body) // a client that went away is its own business
}

// failures counts wrong tokens per address in windows of time, so that guessing over the network is slow and a guesser
// shuts out only itself.
type failures struct {
	window time.Duration
	limit  int

	mu    sync.Mutex
	until time.Time
	count map[netip.Prefix]int
}

// manySources bounds the memory an attacker with many addresses can take; past it, newcomers share one count.
const manySources = 4096

func (f *failures) tooMany(who netip.Prefix) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current()[f.key(who)] >= f.limit
}

func (f *failures) add(who netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current()[f.key(who)]++
}

func (f *failures) current() map[netip.Prefix]int {
	if now := time.Now(); f.count == nil || now.After(f.until) {
		f.count, f.until = map[netip.Prefix]int{}, now.Add(f.window)
	}
	return f.count
}

func (f *failures) key(who netip.Prefix) netip.Prefix {
	if _, known := f.count[who]; !known && len(f.count) >= manySources {
		return netip.Prefix{}
	}
	return who
}

// source is who a request is counted against: an IPv4 address, or an IPv6 /64, since a host has all of one.
func source(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
