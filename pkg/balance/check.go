package balance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Ready makes a Check that asks a Kubernetes API whether it is ready. The certificate must be of caFile, which is read at every
// new connection, and valid for name; the connection is kept from one check to the next.
func Ready(caFile, name string) func(ctx context.Context, addr string) error {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ca, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		d := &tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13}}
		return d.DialContext(ctx, network, addr)
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy: nil, DialTLSContext: dial, MaxIdleConns: 4, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
	}}
	return func(ctx context.Context, addr string) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s is not ready: %s", addr, resp.Status)
		}
		return err
	}
}
