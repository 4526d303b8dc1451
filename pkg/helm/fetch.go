package helm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/registry"
	"helm.sh/helm/v4/pkg/repo/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// mostBytes bounds a chart and an index.
const mostBytes = 64 << 20

// origin says how to reach where a chart comes from.
type origin struct {
	proxy              func(*url.URL) (*url.URL, error)
	ca                 []byte // PEM; added to the system's
	insecure, plain    bool
	username, password string
	passOn             bool                                          // give the credentials to other hosts that an index names
	docker             func(host string) (username, password string) // of a dockerconfigjson Secret
}

// fetch gets a chart from wherever its spec says.
func fetch(ctx context.Context, s chartSpec, o origin) (*chartv2.Chart, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if s.ChartContent != "" {
		data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s.ChartContent), ""))
		if err != nil {
			return nil, fmt.Errorf("spec.chartContent: %w", err)
		}
		return load("spec.chartContent", data)
	}
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	if registry.IsOCI(s.Chart) || registry.IsOCI(s.Repo) {
		return pull(client, s, o)
	}
	where := s.Chart
	switch {
	case s.Chart == "":
		return nil, errors.New("spec: there is no chart and no chartContent")
	case s.Repo != "":
		if where, err = find(ctx, client, s, o); err != nil {
			return nil, err
		}
	case !strings.Contains(s.Chart, "://"):
		return nil, fmt.Errorf("spec.chart: %q is a name; say in spec.repo where it is, or write a URL", s.Chart)
	}
	data, err := o.get(ctx, client, where, s.Repo == "" || o.passOn || sameHost(where, s.Repo))
	if err != nil {
		return nil, err
	}
	return load(where, data)
}

func load(where string, data []byte) (*chartv2.Chart, error) {
	c, err := loader.LoadArchive(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: is not a chart: %w", where, err)
	}
	return c, nil
}

func (o origin) client() (*http.Client, error) {
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.insecure}, //nolint:gosec // the object says so
	}
	if o.proxy != nil {
		t.Proxy = func(r *http.Request) (*url.URL, error) { return o.proxy(r.URL) }
	}
	if len(o.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(o.ca) {
			return nil, errors.New("repoCA holds no certificate in PEM form")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: t}, nil
}

func (o origin) get(ctx context.Context, client *http.Client, where string, credentials bool) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	if o.username != "" && credentials {
		req.SetBasicAuth(o.username, o.password)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", where, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if len(data) > mostBytes {
		return nil, fmt.Errorf("%s: is bigger than %d bytes", where, mostBytes)
	}
	return data, nil
}

// find looks a chart up in a repository's index.
func find(ctx context.Context, client *http.Client, s chartSpec, o origin) (string, error) {
	base := strings.TrimSuffix(s.Repo, "/")
	data, err := o.get(ctx, client, base+"/index.yaml", true)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "helm-index-") // the library reads files
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	name := filepath.Join(dir, "index.yaml")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return "", err
	}
	index, err := repo.LoadIndexFile(name)
	if err != nil {
		return "", fmt.Errorf("%s/index.yaml: %w", base, err)
	}
	v, err := index.Get(s.Chart, s.Version)
	if err != nil {
		return "", fmt.Errorf("%s: %s %s: %w", base, s.Chart, s.Version, err)
	}
	if len(v.URLs) == 0 {
		return "", fmt.Errorf("%s: %s %s has no URL", base, s.Chart, v.Version)
	}
	return repo.ResolveReferenceURL(base, v.URLs[0])
}

func sameHost(a, b string) bool {
	u, err := url.Parse(a)
	v, err2 := url.Parse(b)
	return err == nil && err2 == nil && u.Host == v.Host && u.Scheme == v.Scheme
}

// pull gets a chart from a registry.
func pull(client *http.Client, s chartSpec, o origin) (*chartv2.Chart, error) {
	ref := s.Chart
	if registry.IsOCI(s.Repo) {
		ref = strings.TrimSuffix(s.Repo, "/") + "/" + s.Chart
	}
	ref = strings.TrimPrefix(ref, "oci://")
	authorizer := auth.Client{Client: client, Cache: auth.NewCache()}
	authorizer.Credential = func(_ context.Context, host string) (auth.Credential, error) {
		if o.username != "" {
			return auth.Credential{Username: o.username, Password: o.password}, nil
		}
		if o.docker != nil {
			if user, password := o.docker(host); user != "" {
				return auth.Credential{Username: user, Password: password}, nil
			}
		}
		return auth.EmptyCredential, nil
	}
	options := []registry.ClientOption{registry.ClientOptHTTPClient(client), registry.ClientOptAuthorizer(authorizer),
		registry.ClientOptCredentialsFile(filepath.Join(os.TempDir(), "no-credentials"))}
	if o.plain {
		options = append(options, registry.ClientOptPlainHTTP())
	}
	c, err := registry.NewClient(options...)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Version != "":
		ref += ":" + strings.ReplaceAll(s.Version, "+", "_")
	case !strings.Contains(ref[strings.LastIndex(ref, "/")+1:], ":"):
		tags, err := c.Tags(ref)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if len(tags) == 0 {
			return nil, fmt.Errorf("%s: has no version", ref)
		}
		ref += ":" + strings.ReplaceAll(tags[0], "+", "_") // the newest is first
	}
	result, err := c.Pull(ref, registry.PullOptWithChart(true))
	if err != nil {
		return nil, fmt.Errorf("oci://%s: %w", ref, err)
	}
	return load(ref, result.Chart.Data)
}

// dockerCredentials reads a kubernetes.io/dockerconfigjson Secret's data.
func dockerCredentials(data []byte) func(string) (string, string) {
	var file struct {
		Auths map[string]struct{ Username, Password, Auth string }
	}
	if json.Unmarshal(data, &file) != nil {
		return nil
	}
	return func(host string) (string, string) {
		for name, a := range file.Auths {
			name = strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
			if n, _, _ := strings.Cut(name, "/"); n != host {
				continue
			}
			if a.Username != "" {
				return a.Username, a.Password
			}
			text, _ := base64.StdEncoding.DecodeString(a.Auth)
			user, password, _ := strings.Cut(string(text), ":")
			return user, password
		}
		return "", ""
	}
}
