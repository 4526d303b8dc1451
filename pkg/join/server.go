package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Secret is one that opens the cluster.
type Secret struct {
	ID      string // for people: "server", or a made token's public part
	Text    string
	Server  bool   // opens everything; else a node may join with it
	Node    string // the only one that may use it, and for nothing but to join; "" for any
	Expired time.Time
}

// Caller is who asks to be taken in, as proven.
type Caller struct {
	Secret *Secret // or nil, and then:
	Node   string  // whose certificate was shown
	Key    []byte  // that certificate's public key
	Remote netip.Addr
}

// Server answers the requests of this package. It must be served over TLS 1.3, in front of any authentication.
type Server struct {
	Secrets    func(ctx context.Context) ([]Secret, error)
	Kubeconfig func() ([]byte, error)
	Admit      func(ctx context.Context, c Caller, r Request) (*Answer, error) // a *Refusal says why not
	ClientCA   func() (*x509.CertPool, error)
	NodeUser   string // in front of a node's name in its certificate

	// Refused is told of everybody who was not let in; node is the name that was asked for, "" if that is not known. It may be nil.
	Refused func(ctx context.Context, from netip.Addr, node string, why *Refusal)

	failures failures
}

// ServeHTTP answers at KubeconfigPath and Path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	method := map[string]string{KubeconfigPath: http.MethodGet, Path: http.MethodPost}[r.URL.Path]
	if r.Method != method {
		w.Header().Set("Allow", method)
		http.Error(w, fmt.Sprintf("only %s is answered here", method), http.StatusMethodNotAllowed)
		return
	}
	caller, err := s.caller(r)
	var body []byte
	var node string
	if err == nil {
		if caller.Secret != nil {
			mine, perr := proof(caller.Secret.Text, serverWord, r.TLS)
			if perr != nil {
				http.Error(w, perr.Error(), http.StatusForbidden)
				return
			}
			w.Header().Set(proofHeader, mine)
		}
		body, node, err = s.answer(r, caller)
	}
	if err == nil {
		_, _ = w.Write(body) // a client that went away is its own business
		return
	}
	refusal := &Refusal{Status: http.StatusServiceUnavailable, Message: err.Error()}
	if errors.As(err, &refusal) && s.Refused != nil {
		s.Refused(r.Context(), caller.Remote, node, refusal)
	}
	if refusal.Wait {
		w.Header().Set(waitHeader, "1")
	}
	if refusal.Status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "60")
	}
	http.Error(w, refusal.Message, refusal.Status)
}

// caller finds out who asks.
func (s *Server) caller(r *http.Request) (Caller, error) {
	who := source(r.RemoteAddr)
	c := Caller{Remote: who.Addr()}
	sent := r.Header.Get(proofHeader)
	if sent == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.URL.Path == Path {
		return s.node(c, r.TLS.PeerCertificates)
	}
	if r.TLS == nil || r.TLS.Version < tls.VersionTLS13 {
		return c, &Refusal{Status: http.StatusForbidden, Message: "the connection is not TLS 1.3, which the proof of the token needs"}
	}
	if s.failures.tooMany(who) {
		return c, &Refusal{Status: http.StatusTooManyRequests, Wait: true,
			Message: "too many wrong tokens from this address; wait a minute and check cluster.token in the node config, or --token"}
	}
	secrets, err := s.Secrets(r.Context())
	if err != nil {
		return c, fmt.Errorf("the tokens cannot be read yet: %w", err)
	}
	for i, secret := range secrets {
		if secret.Text == "" {
			continue
		}
		want, err := proof(secret.Text, clientWord, r.TLS)
		if err != nil {
			return c, &Refusal{Status: http.StatusForbidden, Message: err.Error()}
		}
		if equal(sent, want) {
			c.Secret = &secrets[i]
		}
	}
	switch {
	case c.Secret == nil:
		s.failures.add(who)
		return c, &Refusal{Status: http.StatusUnauthorized, Message: "the token is not this cluster's; use the cluster.token of the server's node config, the text in server/node-token " +
			"of its data folder, or one that skerryd token create makes (made tokens expire)"}
	case !c.Secret.Expired.IsZero():
		return c, &Refusal{Status: http.StatusUnauthorized, Message: fmt.Sprintf("the token %s expired on %s; make another with skerryd token create",
			c.Secret.ID, c.Secret.Expired.UTC().Format(time.RFC3339))}
	case r.URL.Path == KubeconfigPath && (!c.Secret.Server || c.Secret.Node != ""):
		return c, &Refusal{Status: http.StatusForbidden, Message: fmt.Sprintf("the token %s lets nodes join and opens nothing else; use the server's", c.Secret.ID)}
	}
	return c, nil
}

// node accepts a certificate of the cluster's whatever the date: the TLS handshake has shown that its key is there.
func (s *Server) node(c Caller, chain []*x509.Certificate) (Caller, error) {
	roots, err := s.ClientCA()
	if err != nil {
		return c, err
	}
	cert := chain[0]
	now := time.Now()
	if now.After(cert.NotAfter) {
		now = cert.NotAfter
	}
	if now.Before(cert.NotBefore) {
		now = cert.NotBefore
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] { // the cross-signed one of an authority that this server has not heard of yet
		between.AddCert(c)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	name, ok := strings.CutPrefix(cert.Subject.CommonName, s.NodeUser)
	if err != nil || !ok {
		return c, &Refusal{Status: http.StatusUnauthorized, Message: "the certificate is not one of this cluster's nodes; join again with a token"}
	}
	c.Node, c.Key = name, cert.RawSubjectPublicKeyInfo
	return c, nil
}

// skew is how far a node's clock may be off: certificates are valid from a day before they are made.
const skew = 23 * time.Hour

// answer also gives the name of the node that asks.
func (s *Server) answer(r *http.Request, c Caller) ([]byte, string, error) {
	if r.URL.Path == KubeconfigPath {
		body, err := s.Kubeconfig()
		if err != nil {
			return nil, "", fmt.Errorf("the kubeconfig is not there yet: %w", err)
		}
		return body, "", nil
	}
	var q Request
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody)).Decode(&q); err != nil {
		return nil, "", &Refusal{Status: http.StatusBadRequest, Message: fmt.Sprintf("the request cannot be read: %v", err)}
	}
	if c.Node != "" && q.Node != c.Node {
		return nil, q.Node, &Refusal{Status: http.StatusForbidden, Message: fmt.Sprintf("the certificate is node %s's and the request node %q's; to give a node another name, let it join again with a token", c.Node, q.Node)}
	}
	if d := time.Since(q.Time); d.Abs() > skew {
		return nil, q.Node, &Refusal{Status: http.StatusBadRequest, Wait: true, Message: fmt.Sprintf("the node's clock says %s and this server's %s; set the wrong one",
			q.Time.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))}
	}
	a, err := s.Admit(r.Context(), c, q)
	if err != nil {
		return nil, q.Node, err
	}
	body, err := json.Marshal(a)
	return body, q.Node, err
}

// failures counts wrong tokens per address in windows of time, so that guessing over the network is slow and a guesser
// shuts out only itself.
type failures struct {
	mu    sync.Mutex
	until time.Time
	count map[netip.Prefix]int
}

const (
	failureWindow = time.Minute
	failureLimit  = 10
)

// manySources bounds the memory an attacker with many addresses can take; past it, newcomers share one count.
const manySources = 4096

func (f *failures) tooMany(who netip.Prefix) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current()[f.key(who)] >= failureLimit
}

func (f *failures) add(who netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current()[f.key(who)]++
}

func (f *failures) current() map[netip.Prefix]int {
	if now := time.Now(); f.count == nil || now.After(f.until) {
		f.count, f.until = map[netip.Prefix]int{}, now.Add(failureWindow)
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
