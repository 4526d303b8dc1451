package join

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/token"
)

// maxBody bounds an answer and a request: a kubeconfig is about 6 KiB, what servers share about 20.
const maxBody = 1 << 20

// Refusal is a server's no.
type Refusal struct {
	Status  int
	Message string
	Wait    bool // it may become a yes without anybody changing this node's settings
}

func (r *Refusal) Error() string { return r.Message }

// FetchKubeconfig asks the server at addr (host:port of the Kubernetes API) for an administrator's kubeconfig. It returns
// only what a server that knows the token sent.
func FetchKubeconfig(ctx context.Context, addr, text string) ([]byte, error) {
	t, err := token.Parse(text)
	if err != nil {
		return nil, err
	}
	b, err := exchange{addr: addr, method: http.MethodGet, path: KubeconfigPath, token: t}.do(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return b, nil
}

// Join asks the server at addr to take this node in. It believes nothing but the answer of a server that knows the token and,
// if the token names a CA, shows a certificate of it.
func Join(ctx context.Context, addr string, t token.Token, r Request) (*Answer, error) {
	return ask(ctx, exchange{addr: addr, method: http.MethodPost, path: Path, token: t}, r)
}

// Renew asks again, as the node that the pair (certificate and key, PEM) names; the pair may have expired. serverCA is the
// file whose certificates the server's must be of.
func Renew(ctx context.Context, addr string, pair, serverCA []byte, r Request) (*Answer, error) {
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(serverCA) {
		return nil, errors.New("the stored CA holds no certificate")
	}
	return ask(ctx, exchange{addr: addr, method: http.MethodPost, path: Path, own: &cert, roots: roots}, r)
}

// Serves asks whether the server at addr belongs to the cluster whose CA the pin names. A Refusal says that somebody else answers.
func Serves(ctx context.Context, addr, pin string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: exchange{token: token.Token{Pin: pin}}.tls()}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", addr, cause(ctx, err))
	}
	return c.Close()
}

// Look asks, as the node that the pair names, what its cluster shares now; nothing is made for it.
func Look(ctx context.Context, addr string, pair, serverCA []byte, r Request) (*Answer, error) {
	r.Look, r.Keys = true, nil
	return Renew(ctx, addr, pair, serverCA, r)
}

func ask(ctx context.Context, e exchange, r Request) (*Answer, error) {
	var err error
	if e.body, err = json.Marshal(r); err != nil {
		return nil, err
	}
	b, err := e.do(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.addr, err)
	}
	var a Answer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("%s: its answer: %w", e.addr, err)
	}
	return &a, nil
}

// exchange is one connection with one request, proven by a token or by certificates.
type exchange struct {
	addr, method, path string
	body               []byte

	token token.Token

	own   *tls.Certificate
	roots *x509.CertPool
}

// serverName is a name that every API server's certificate has, and no kubelet's.
const serverName = "kubernetes.default.svc"

func (e exchange) tls() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, ServerName: serverName}
	if e.own != nil {
		c.RootCAs, c.Certificates = e.roots, []tls.Certificate{*e.own}
		return c
	}
	// Whoever has only a token cannot check the certificate the usual way. The proof below is what tells the right server from a
	// wrong one, and it covers this very connection, certificate included. A pin is checked as well, before a byte is sent.
	c.InsecureSkipVerify = true //nolint:gosec // see above
	if e.token.Pin != "" {
		c.VerifyConnection = func(cs tls.ConnectionState) error { return checkPin(e.token.Pin, cs.PeerCertificates, time.Now()) }
	}
	return c
}

// checkPin accepts a chain that has the authority in it that pin names, and leads to it. While an authority is replaced, both
// are there.
func checkPin(pin string, chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 {
		return &Refusal{Message: "the server shows no CA: it is not a server of the token's cluster; check --server"}
	}
	roots, between, found := x509.NewCertPool(), x509.NewCertPool(), false
	for _, c := range chain[1:] {
		if token.Pin(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})) == pin {
			roots.AddCert(c)
			found = true
		} else {
			between.AddCert(c)
		}
	}
	if !found {
		return &Refusal{Message: "the server belongs to another cluster than the token, or the cluster has had a new CA since; check --server and --token"}
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, DNSName: serverName})
	return clock(err, now)
}

// clock says of a certificate that is not valid now what to do.
func clock(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil {
		return &Refusal{Wait: true, Message: fmt.Sprintf("this machine's clock says %s, and the server's certificate is valid from %s to %s; set the clock",
			now.Format(time.DateOnly), invalid.Cert.NotBefore.Format(time.DateOnly), invalid.Cert.NotAfter.Format(time.DateOnly))}
	}
	return err
}

func (e exchange) do(ctx context.Context) ([]byte, error) {
	c, err := (&tls.Dialer{Config: e.tls()}).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, cause(ctx, err)
	}
	conn := c.(*tls.Conn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	req, err := http.NewRequestWithContext(ctx, e.method, "https://"+serverName+e.path, bytes.NewReader(e.body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	theirs := ""
	if e.own == nil {
		cs := conn.ConnectionState()
		mine, err := proof(e.token.Secret, clientWord, &cs)
		if err != nil {
			return nil, err
		}
		if theirs, err = proof(e.token.Secret, serverWord, &cs); err != nil {
			return nil, err
		}
		req.Header.Set(proofHeader, mine)
	}
	if err := req.Write(conn); err != nil {
		return nil, cause(ctx, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxBody)), req)
	if err != nil {
		return nil, cause(ctx, fmt.Errorf("reading the answer: %w", err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, cause(ctx, fmt.Errorf("reading the answer: %w", err))
	}
	switch {
	case resp.StatusCode == http.StatusOK && (e.own != nil || equal(resp.Header.Get(proofHeader), theirs)):
		return body, nil
	case resp.StatusCode == http.StatusOK:
		return nil, &Refusal{Message: "the server does not know this cluster's token: it is another cluster, or somebody sits in between; nothing it sent was used"}
	}
	// A refusal's text is shown to a person and used for nothing else.
	return nil, &Refusal{
		Status:  resp.StatusCode,
		Message: fmt.Sprintf("%s: %s", resp.Status, firstLine(body)),
		Wait:    resp.Header.Get(waitHeader) != "" || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests,
	}
}

// cause prefers the caller's reason over the deadline error that cutting the connection leaves behind.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var network *net.OpError
	if errors.As(err, &network) && network.Op == "dial" {
		return fmt.Errorf("does not answer: %w", network.Err)
	}
	return clock(err, time.Now())
}

// firstLine makes a stranger's text fit to be printed: one line, no control characters, not endless.
func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b[:min(len(b), 500)]), "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}
