package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// free is a port that nobody listens on.
func free(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // given away
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(l.Addr())
	}
	return a.AddrPort().Port()
}

func running(t testing.TB, c Config) *Server {
	t.Helper()
	s := New(Options{Address: netip.MustParseAddr("127.0.0.1")})
	if err := s.Apply(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
	})
	return s
}

// backend is a pod that answers with its name and what it was asked.
func backend(t testing.TB, name string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Backend", name)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", name, r.Method, r.Host, r.URL.RequestURI())
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s
}

func address(s *httptest.Server) string { return s.Listener.Addr().String() }

func plain(number uint16, routes ...Route) Config {
	return Config{Ports: []Port{{Number: number, Public: 80, Sites: []Site{{Listeners: []Listener{{Routes: routes}}}}}}}
}

func to(addresses ...string) *Action {
	return &Action{Name: "r", Backends: []Backend{{Name: "b", Weight: 1, Addresses: addresses}}}
}

func get(t testing.TB, number uint16, path string) (int, string, http.Header) {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", number, path))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b), r.Header
}

func TestAnswers(t *testing.T) {
	b := backend(t, "one")
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(slow.Close)
	n := free(t)
	with := func(a *Action, filters ...Filter) *Action { a.Filters = filters; return a }
	path := func(p string, a *Action) Route { return Route{Match: Match{Path: p}, Action: a} }
	late := to(address(slow))
	late.Timeout = 50 * time.Millisecond
	lateBackend := to(address(slow))
	lateBackend.BackendTimeout = 50 * time.Millisecond
	nobody := to(fmt.Sprintf("127.0.0.1:%d", free(t)))
	running(t, plain(n,
		path("/ok", to(address(b))),
		path("/invalid", &Action{Backends: []Backend{{Weight: 1, Invalid: true}}}),
		path("/none", &Action{}),
		path("/empty", to()),
		path("/weightless", &Action{Backends: []Backend{{Weight: 0, Addresses: []string{address(b)}}}}),
		path("/late", late),
		path("/later", lateBackend),
		path("/nobody", nobody),
		path("/second", to(fmt.Sprintf("127.0.0.1:%d", free(t)), address(b))),
		path("/rewrite", with(to(address(b)), Filter{Rewrite: &Rewrite{Hostname: "h.test", Path: &PathChange{Prefix: true, Value: "/new"}}})),
		path("/redirect", with(&Action{}, Filter{Redirect: &Redirect{Scheme: "https", Code: 301}})),
		path("/headers", with(to(address(b)), Filter{Response: &Headers{Set: []Pair{{Name: "X-Set", Value: "1"}}, Remove: []string{"X-Backend"}}})),
	))
	for path, want := range map[string]int{
		"/ok": 200, "/other": 404, "/invalid": 500, "/none": 500, "/empty": 503, "/weightless": 500, "/late": 504, "/later": 504, "/nobody": 502,
		"/second": 200, "/redirect": 301, "/headers": 200,
	} {
		if code, body, _ := get(t, n, path); code != want {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
	}
	if _, body, _ := get(t, n, "/rewrite/x?y=z"); body != "one GET h.test /new/x?y=z" {
		t.Errorf("rewritten: %q", body)
	}
	if _, _, h := get(t, n, "/redirect/x?y=z"); h.Get("Location") != "https://127.0.0.1/redirect/x?y=z" {
		t.Errorf("redirected to %q", h.Get("Location"))
	}
	if _, _, h := get(t, n, "/headers"); h.Get("X-Set") != "1" || h.Get("X-Backend") != "" {
		t.Errorf("headers are %v", h)
	}
}

// Clients that never stop asking see no failure while routes, endpoints and ports change a hundred times under them.
func TestChangesUnderLoad(t *testing.T) {
	a, b := backend(t, "a"), backend(t, "b")
	n, other := free(t), free(t)
	config := func(i int) Config {
		c := plain(n, Route{Match: Match{Path: "/"}, Action: to([]string{address(a), address(b)}[i%2])})
		if i%3 == 0 {
			c.Ports = append(c.Ports, Port{Number: other, Public: 81, Sites: c.Ports[0].Sites})
		}
		return c
	}
	s := running(t, config(0))
	stop := make(chan struct{})
	var asked, failed atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := client.Post(fmt.Sprintf("http://127.0.0.1:%d/x", n), "text/plain", strings.NewReader("body"))
				asked.Add(1)
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					_ = r.Body.Close()
					if r.StatusCode != 200 {
						err = fmt.Errorf("code %d", r.StatusCode)
					}
				}
				if err != nil {
					failed.Add(1)
					t.Error(err)
				}
			}
		})
	}
	for i := 1; i <= 100; i++ {
		for before := asked.Load(); asked.Load() < before+5; {
			time.Sleep(time.Millisecond)
		}
		if err := s.Apply(config(i)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	all.Wait()
	if asked.Load() < 500 || failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
}

// A server that ends answers what it was asked before.
func TestShutdownFinishes(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-finish
		_, _ = io.WriteString(w, "done")
	}))
	t.Cleanup(b.Close)
	n := free(t)
	s := running(t, plain(n, Route{Match: Match{Path: "/"}, Action: to(address(b))}))
	got := make(chan string, 1)
	go func() { _, body, _ := get(t, n, "/"); got <- body }()
	<-started
	ended := make(chan struct{})
	go func() { s.Shutdown(context.Background()); close(ended) }()
	for {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n))
		if err != nil {
			break // no new ones
		}
		_ = c.Close()
	}
	close(finish)
	if body := <-got; body != "done" {
		t.Errorf("got %q", body)
	}
	<-ended
}

func TestUpgrade(t *testing.T) {
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil || r.Header.Get("Upgrade") != "websocket" {
			return
		}
		defer c.Close() //nolint:errcheck // the test's end
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, rw)
	}))
	t.Cleanup(b.Close)
	n := free(t)
	action := to(address(b))
	action.Timeout = time.Millisecond // is for requests, not for what they become
	running(t, plain(n, Route{Match: Match{Path: "/"}, Action: action}))
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test's end
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	for range 3 {
		_, _ = io.WriteString(c, "hello\n")
		if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
}

// gRPC with its trailers and streams goes through, from a client without TLS to a server without TLS.
func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	h := health.NewServer()
	healthpb.RegisterHealthServer(server, h)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	n := free(t)
	action := to(l.Addr().String())
	action.Backends[0].Protocol = H2C
	running(t, plain(n, Route{Match: Match{Path: "/grpc.health.v1.Health", GRPC: true}, Action: action}))
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", n), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client := healthpb.NewHealthClient(conn)
	if r, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "none"}); err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("the status in the trailer became %v", err)
	}
	stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		m, err := stream.Recv()
		if err != nil || m.GetStatus() != want {
			t.Fatalf("%v, %v; want %v", m, err, want)
		}
		h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
}

func pair(t testing.TB, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Each name gets its certificate; names that nobody has get none; a connection to one name is no way to another; HTTP/2 is spoken.
func TestTLS(t *testing.T) {
	b := backend(t, "tls")
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	own := pair(t, "raw.test")
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the test's end
				_, _ = io.WriteString(tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*own}}), "raw")
			}()
		}
	}()
	n := free(t)
	routes := []Route{{Match: Match{Path: "/"}, Action: to(address(b))}}
	running(t, Config{Ports: []Port{{Number: n, Public: 443, TLS: true, Sites: []Site{{Listeners: []Listener{
		{Hostname: "a.test", Certificates: []Certificate{{Pair: pair(t, "a.test")}}, Routes: routes},
		{Hostname: "*.b.test", Certificates: []Certificate{{Pair: pair(t, "*.b.test")}, {Hostname: "x.b.test", Pair: pair(t, "x.b.test")}}, Routes: routes},
		{Hostname: "raw.test", TLSRoutes: []TLSRoute{{Hostnames: []string{"raw.test"}, Backends: []Backend{{Weight: 1, Addresses: []string{raw.Addr().String()}}}}}},
	}}}}}})
	dial := func(name string) (*tls.Conn, error) {
		return tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n), &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // looked at below
	}
	for name, want := range map[string]string{"a.test": "a.test", "y.b.test": "*.b.test", "x.b.test": "x.b.test", "raw.test": "raw.test"} {
		c, err := dial(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%s: certificate of %s, want %s", name, got, want)
		}
		if name == "raw.test" {
			if text, err := io.ReadAll(c); string(text) != "raw" {
				t.Errorf("passed on: %q, %v", text, err)
			}
		}
		_ = c.Close()
	}
	if c, err := dial("none.test"); err == nil {
		t.Errorf("none.test: certificate of %s", c.ConnectionState().PeerCertificates[0].Subject)
	}
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{ServerName: "a.test", InsecureSkipVerify: true}}} //nolint:gosec // a test
	for host, want := range map[string]int{"a.test": 200, "y.b.test": 421} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/", n), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want || resp.ProtoMajor != 2 {
			t.Errorf("%s over a.test's connection: %s %s, want %d", host, resp.Proto, resp.Status, want)
		}
	}
}

func TestRetryAndMirror(t *testing.T) {
	var asked atomic.Int64
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); string(body) != "body" {
			w.WriteHeader(http.StatusBadRequest)
		} else if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(b.Close)
	copied := make(chan string, 1)
	m := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copied <- string(body)
	}))
	t.Cleanup(m.Close)
	n := free(t)
	action := to(address(b))
	action.Retry = &Retry{Codes: []int{503}, Attempts: 2, Backoff: time.Millisecond}
	action.Filters = []Filter{{Mirror: &Mirror{Backend: &Backend{Addresses: []string{address(m)}}, Numerator: 1, Denominator: 1}}}
	running(t, plain(n, Route{Match: Match{Path: "/"}, Action: action}))
	r, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/", n), "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != 200 || asked.Load() != 3 {
		t.Errorf("%s after %d tries", r.Status, asked.Load())
	}
	select {
	case got := <-copied:
		if got != "body" {
			t.Errorf("the copy is %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("no copy")
	}
}

// A port that somebody else has is an error and keeps no other from being served.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test's end
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(l.Addr())
	}
	b, n := backend(t, "b"), free(t)
	c := plain(n, Route{Match: Match{Path: "/"}, Action: to(address(b))})
	c.Ports = append([]Port{{Number: a.AddrPort().Port()}}, c.Ports...)
	s := New(Options{Address: netip.MustParseAddr("127.0.0.1")})
	var op *net.OpError
	if err := s.Apply(c); !errors.As(err, &op) {
		t.Errorf("error is %v", err)
	}
	if code, _, _ := get(t, n, "/"); code != 200 {
		t.Errorf("code %d", code)
	}
	s.Shutdown(t.Context())
}
