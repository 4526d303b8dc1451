package join_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/join"
)

const (
	token = "correct horse battery staple"
	body  = "apiVersion: v1\nkind: Config\n"
)

// serve runs h on a real TLS server and returns its host:port.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true // as kube-apiserver does; the client must still get its one HTTP/1.1 connection
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// handler answers for a kubeconfig alone.
func handler(token string, kubeconfig func() ([]byte, error)) http.Handler {
	return &join.Server{
		Secrets: func(context.Context) ([]join.Secret, error) {
			return []join.Secret{{ID: "server", Text: token, Server: true}}, nil
		},
		Kubeconfig: kubeconfig,
	}
}

func server(t *testing.T, token string) string {
	t.Helper()
	return serve(t, handler(token, func() ([]byte, error) { return []byte(body), nil }))
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
	if strings.Contains(err.Error(), token) {
		t.Errorf("error %q shows the token", err)
	}
}

func TestTheRightTokenGetsTheKubeconfig(t *testing.T) {
	got, err := join.FetchKubeconfig(t.Context(), server(t, token), token)
	if err != nil || string(got) != body {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestAWrongTokenIsRefusedWithARemedy(t *testing.T) {
	_, err := join.FetchKubeconfig(t.Context(), server(t, token), token+"x")
	wantError(t, err, "401", "cluster.token")
}

func TestAnEmptyTokenNeverMatches(t *testing.T) {
	_, err := join.FetchKubeconfig(t.Context(), server(t, ""), token)
	wantError(t, err, "not this cluster's")
	_, err = join.FetchKubeconfig(t.Context(), server(t, token), "")
	wantError(t, err, "token is empty")
}

func TestGuessingIsSlowedDown(t *testing.T) {
	addr := server(t, token)
	for range 10 {
		_, err := join.FetchKubeconfig(t.Context(), addr, "a wrong guess at it")
		wantError(t, err, "401")
	}
	_, err := join.FetchKubeconfig(t.Context(), addr, token)
	wantError(t, err, "429", "wait a minute")
}

// A server that does not know the token cannot give the client anything, whatever it answers.
func TestAForgedServerIsNotBelieved(t *testing.T) {
	for name, forge := range map[string]http.HandlerFunc{
		"no proof":      func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) },
		"client's back": func(w http.ResponseWriter, r *http.Request) { echo(w, r.Header.Get("Skerry-Proof")) },
		"invented":      func(w http.ResponseWriter, _ *http.Request) { echo(w, strings.Repeat("0", 64)) },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := join.FetchKubeconfig(t.Context(), serve(t, forge), token)
			wantError(t, err, "does not know this cluster's token")
			if got != nil {
				t.Errorf("took %q", got)
			}
		})
	}
}

func echo(w http.ResponseWriter, proof string) {
	w.Header().Set("Skerry-Proof", proof)
	_, _ = io.WriteString(w, body)
}

// relay ends TLS on both sides and copies the plain text, as somebody on the wire would. The second result waits for the
// connection's end and tells what the client sent.
func relay(t *testing.T, to string, cert tls.Certificate) (addr string, seen func() string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	heard := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		defer func() { heard <- b.String() }()
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := tls.Dial("tcp", to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			_ = in.Close()
			return
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			_, _ = io.Copy(in, out)
			_ = in.Close()
		}()
		_, _ = io.Copy(io.MultiWriter(&b, out), in)
		_ = out.Close()
		<-answered
	}()
	return l.Addr().String(), func() string { return <-heard }
}

// The relay holds both ends' plain text, knows everything but the token, and gets neither the kubeconfig nor the token.
func TestARelayInTheMiddleGetsNothing(t *testing.T) {
	var asked atomic.Int32
	s := httptest.NewUnstartedServer(handler(token, func() ([]byte, error) {
		asked.Add(1)
		return []byte(body), nil
	}))
	s.StartTLS()
	t.Cleanup(s.Close)
	addr, seen := relay(t, s.Listener.Addr().String(), s.TLS.Certificates[0])
	_, err := join.FetchKubeconfig(t.Context(), addr, token)
	wantError(t, err, "401")
	if asked.Load() != 0 {
		t.Error("the kubeconfig left the server")
	}
	if sent := seen(); !strings.Contains(sent, "Skerry-Proof") || strings.Contains(sent, token) {
		t.Errorf("the relay saw %q", sent)
	}
}

func TestPlainAndOldTLSAreRefused(t *testing.T) {
	h := handler(token, func() ([]byte, error) { return []byte(body), nil })
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, join.KubeconfigPath, nil))
	if rec.Code != http.StatusForbidden || !strings.Contains(rec.Body.String(), "TLS 1.3") {
		t.Errorf("plain: %d %q", rec.Code, rec.Body)
	}
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, join.KubeconfigPath, nil))
	if rec.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", rec.Code)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, err := join.FetchKubeconfig(t.Context(), s.Listener.Addr().String(), token)
	wantError(t, err, "protocol version")
}

func TestANotYetReadyServerSaysSo(t *testing.T) {
	addr := serve(t, handler(token, func() ([]byte, error) { return nil, errors.New("certificates are being made") }))
	_, err := join.FetchKubeconfig(t.Context(), addr, token)
	wantError(t, err, "503", "certificates are being made")
}

// A server that never answers does not hold the caller past its deadline.
func TestTheCallersDeadlineHolds(t *testing.T) {
	release := make(chan struct{})
	addr := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := join.FetchKubeconfig(ctx, addr, token)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	_, err = join.FetchKubeconfig(t.Context(), closedPort(t), token)
	wantError(t, err, "refused")
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}
