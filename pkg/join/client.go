package join

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxBody bounds an answer: a kubeconfig is about 6 KiB.
const maxBody = 1 << 20

// FetchKubeconfig asks the server at addr (host:port of the Kubernetes API) for an administrator's kubeconfig. It returns
// only what a server that knows the token sent.
func FetchKubeconfig(ctx context.Context, addr, token string) ([]byte, error) {
	b, err := fetch(ctx, addr, KubeconfigPath, token)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return b, nil
}

func fetch(ctx context.Context, addr, path, token string) ([]byte, error) {
	// The certificate is not looked at: the proof below is what tells the right server from a wrong one, and it covers
	// this very connection, certificate included.
	dialer := tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // see above
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"http/1.1"},
	}}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := c.(*tls.Conn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	cs := conn.ConnectionState()
	mine, err := proof(token, clientWord, &cs)
	if err != nil {
		return nil, err
	}
	theirs, err := proof(token, serverWord, &cs)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(host, "")+path, nil)
	if err != nil {
		return nil, err
	}
	req.Host = addr
	req.Close = true
	req.Header.Set(proofHeader, mine)
	if err := req.Write(conn); err != nil {
		return nil, err
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
	case resp.StatusCode == http.StatusOK && equal(resp.Header.Get(proofHeader), theirs):
		return body, nil
	case resp.StatusCode == http.StatusOK:
		return nil, fmt.Errorf("the server does not know this cluster's token: it is another cluster, or somebody sits in between; nothing it sent was used")
	}
	// A refusal carries no proof; its text is shown to a person and used for nothing else.
	return nil, fmt.Errorf("%s: %s", resp.Status, firstLine(body))
}

// cause prefers the caller's reason over the deadline error that cutting the connection leaves behind.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// firstLine makes a stranger's text fit to be printed: one line, no control characters, not endless.
func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b[:min(len(b), 300)]), "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}
