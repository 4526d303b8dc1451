package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// forwarder passes requests on to pods and keeps the connections to them.
type forwarder struct {
	reverse *httputil.ReverseProxy
	mirrors chan struct{} // one for each on its way, so that a slow copy cannot fill the memory

	mu    sync.Mutex
	plain [2]*http.Transport // by Protocol
	tls   map[string]*http.Transport
}

const (
	dialTimeout   = 5 * time.Second
	maxMirrors    = 256
	maxRepeatable = 1 << 20 // a longer body is neither mirrored nor sent again
)

func newForwarder() *forwarder {
	f := &forwarder{tls: map[string]*http.Transport{}, mirrors: make(chan struct{}, maxMirrors)}
	f.plain[HTTP1] = newTransport(HTTP1, nil)
	f.plain[H2C] = newTransport(H2C, nil)
	f.reverse = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      f,
		ModifyResponse: modify,
		ErrorHandler:   failed,
		BufferPool:     &buffers{},
		ErrorLog:       log.New(io.Discard, "", 0), // clients that leave early are no news
	}
	return f
}

func newTransport(p Protocol, t *BackendTLS) *http.Transport {
	tr := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   128,
		IdleConnTimeout:       60 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // what the client asked for is the backend's to answer
		Protocols:             new(http.Protocols),
		ReadBufferSize:        8 << 10,
		WriteBufferSize:       8 << 10,
	}
	switch {
	case t != nil:
		tr.Protocols.SetHTTP1(true)
		tr.Protocols.SetHTTP2(p == H2C)
		tr.TLSClientConfig = t.config()
	case p == H2C:
		tr.Protocols.SetUnencryptedHTTP2(true)
	default:
		tr.Protocols.SetHTTP1(true)
	}
	return tr
}

func (t *BackendTLS) config() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, RootCAs: t.Roots}
	if t.Certificate != nil {
		c.Certificates = []tls.Certificate{*t.Certificate}
	}
	if len(t.SANs) > 0 {
		c.InsecureSkipVerify = true //nolint:gosec // verified below, by the names that the policy gives
		c.VerifyConnection = func(s tls.ConnectionState) error { return t.verify(s.PeerCertificates) }
	}
	return c
}

func (t *BackendTLS) verify(chain []*x509.Certificate) error {
	o := x509.VerifyOptions{Roots: t.Roots, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return err
	}
	for _, san := range t.SANs {
		if strings.Contains(san, "://") {
			if slices.ContainsFunc(chain[0].URIs, func(u *url.URL) bool { return u.String() == san }) {
				return nil
			}
		} else if chain[0].VerifyHostname(san) == nil {
			return nil
		}
	}
	return fmt.Errorf("the backend's certificate has none of the names %s", strings.Join(t.SANs, ", "))
}

// forward passes the request on.
func (e *exchange) forward(w http.ResponseWriter) {
	ctx := context.WithValue(e.in.Context(), exchangeKey{}, e)
	if e.action.Timeout > 0 && !upgrades(e.in) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, e.action.Timeout)
		defer cancel()
	}
	e.proxy.reverse.ServeHTTP(w, e.in.WithContext(ctx))
}

func upgrades(r *http.Request) bool { return r.Header.Get("Upgrade") != "" }

// rewrite makes the request that the backend sees.
func rewrite(p *httputil.ProxyRequest) {
	e := exchangeOf(p.In.Context())
	p.SetXForwarded()
	// What the client says of itself is in the address it has, not in a header it sends.
	p.Out.URL.Scheme = "http"
	if e.backend.TLS != nil {
		p.Out.URL.Scheme = "https"
	}
	p.Out.URL.Host = e.backend.Name
	if e.hostname != "" {
		p.Out.Host = e.hostname
	}
	if e.moved {
		p.Out.URL.Path, p.Out.URL.RawPath = e.path, e.rawPath
	}
	for _, h := range e.request {
		for _, pair := range h.Set {
			if strings.EqualFold(pair.Name, "Host") {
				p.Out.Host = pair.Value
			}
		}
		h.apply(p.Out.Header)
	}
}

func modify(r *http.Response) error {
	exchangeOf(r.Request.Context()).changeResponse(r.Header)
	return nil
}

// RoundTrip sends a request to one of the backend's pods, and to another one when that pod cannot be reached at all: nothing was
// sent then, whatever the method. An answer that the rule says to try again is asked for again if the body can be.
func (f *forwarder) RoundTrip(r *http.Request) (*http.Response, error) {
	e := exchangeOf(r.Context())
	b := e.backend
	t := f.transport(b)
	retry := e.action.Retry
	var body []byte
	if retry != nil && r.Body != nil && r.Body != http.NoBody {
		var whole bool
		if body, whole = repeatable(r); !whole {
			retry = nil
		}
	}
	at := b.turn.next(len(b.Addresses))
	for unreachable, again := 0, 0; ; {
		r.URL.Host = b.Addresses[at]
		if body != nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		resp, err := attempt(t, r, e.action.BackendTimeout)
		switch {
		case err == nil && (retry == nil || again >= retry.Attempts || !slices.Contains(retry.Codes, resp.StatusCode)):
			return resp, nil
		case err != nil && r.Context().Err() != nil:
			return nil, err
		case err != nil && notSent(err) && unreachable+1 < min(len(b.Addresses), 4):
			unreachable++
		case retry != nil && again < retry.Attempts:
			again++
			if resp != nil {
				_ = resp.Body.Close()
			}
			if err := sleep(r.Context(), retry.Backoff); err != nil {
				return nil, err
			}
		default:
			return resp, err
		}
		at = (at + 1) % len(b.Addresses)
	}
}

// notSent says whether a request failed before anything of it went out.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt is one try, ended after timeout, the reading of the answer included.
func attempt(t http.RoundTripper, r *http.Request, timeout time.Duration) (*http.Response, error) {
	if timeout <= 0 || upgrades(r) {
		return t.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	resp, err := t.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &cancelling{resp.Body, cancel}
	return resp, nil
}

type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *cancelling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

func (f *forwarder) transport(b *Backend) *http.Transport {
	if b.TLS == nil {
		return f.plain[b.Protocol]
	}
	key := fmt.Sprint(b.Protocol, b.TLS.Key)
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.tls[key]
	if !ok {
		t = newTransport(b.Protocol, b.TLS)
		f.tls[key] = t
	}
	return t
}

// keep closes what no backend uses any more.
func (f *forwarder) keep(used map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, t := range f.tls {
		if !used[key] {
			t.CloseIdleConnections()
			delete(f.tls, key)
		}
	}
}

// repeatable reads a body so that it can be sent more than once, and says whether that is all of it.
func repeatable(r *http.Request) ([]byte, bool) {
	if r.ContentLength > maxRepeatable {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRepeatable+1))
	if err != nil || len(body) > maxRepeatable {
		r.Body = &joined{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
		return nil, false
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, true
}

type joined struct {
	io.Reader
	io.Closer
}

const mirrorTimeout = 10 * time.Second

// mirror sends a copy of the request and does not wait for the answer.
func (f *forwarder) mirror(e *exchange, m *Mirror) {
	b := m.Backend
	if b == nil || b.Invalid || len(b.Addresses) == 0 || upgrades(e.in) || rand.IntN(m.Denominator) >= m.Numerator { //nolint:gosec // sampling
		return
	}
	body, whole := []byte(nil), true
	if e.in.Body != nil && e.in.Body != http.NoBody {
		body, whole = repeatable(e.in)
	}
	if !whole {
		slog.Debug("request not mirrored: its body is too long", "route", e.action.Name)
		return
	}
	select {
	case f.mirrors <- struct{}{}:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.in.Context()), mirrorTimeout)
	out := e.in.Clone(ctx)
	out.RequestURI, out.URL.Scheme = "", "http"
	if b.TLS != nil {
		out.URL.Scheme = "https"
	}
	out.URL.Host = b.Addresses[b.turn.next(len(b.Addresses))]
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	for _, name := range hopByHop {
		out.Header.Del(name)
	}
	for _, h := range e.request {
		h.apply(out.Header)
	}
	t := f.transport(b)
	go func() {
		defer func() { cancel(); <-f.mirrors }()
		if resp, err := t.RoundTrip(out); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxRepeatable))
			_ = resp.Body.Close()
		}
	}()
}

var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// buffers are those that bodies are copied through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
