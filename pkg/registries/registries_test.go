package registries

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"

	"github.com/skerry-os/skerry/pkg/outbound/outboundtest"
)

// upstream is a real registry with one image, which may want a user.
type upstream struct {
	*httptest.Server
	mu       sync.Mutex
	user     string // "name:password"; basic, or with realm bearer
	bearer   bool
	requests []string
	tokens   int
}

func (u *upstream) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(u.URL, "https://"), "http://")
}

func newUpstream(t *testing.T, secure bool, repositories ...string) *upstream {
	t.Helper()
	u := &upstream{}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.requests = append(u.requests, r.Method+" "+r.URL.Path)
		name, password, _ := r.BasicAuth()
		known := u.user == name+":"+password
		switch {
		case r.URL.Path == "/token":
			if !known {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			u.tokens++
			_, _ = fmt.Fprintf(w, `{"token":"ticket for %s"}`, r.URL.Query().Get("scope"))
			return
		case u.user == "":
		case u.bearer && !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ticket for repository:"):
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="registry"`, u.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		case !u.bearer && !known:
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	})
	if secure {
		u.Server = httptest.NewTLSServer(h)
	} else {
		u.Server = httptest.NewServer(h)
	}
	t.Cleanup(u.Close)
	for _, r := range repositories {
		u.push(t, r)
	}
	return u
}

func (u *upstream) push(t *testing.T, repository string) {
	t.Helper()
	image, err := random.Image(2048, 2)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		u.put(t, http.MethodPost, repository+"/blobs/uploads/?digest=", data)
	}
	u.put(t, http.MethodPost, repository+"/blobs/uploads/?digest=", config)
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	u.put(t, http.MethodPut, repository+"/manifests/1", manifest)
}

func (u *upstream) put(t *testing.T, method, path string, data []byte) {
	t.Helper()
	if strings.HasSuffix(path, "=") {
		path += fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	}
	req, err := http.NewRequestWithContext(t.Context(), method, u.URL+"/v2/"+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
	resp, err := u.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

func (u *upstream) require(user string, bearer bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.user, u.bearer, u.requests = user, bearer, nil
}

func (u *upstream) saw(path string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range u.requests {
		if strings.Contains(r, path) {
			return true
		}
	}
	return false
}

// bench is a Server with its file, and containerd's own resolver in front of it.
type bench struct {
	*testing.T
	cfg  Config
	user func(string) (string, string, error) // a pod's
	seq  int
}

func newBench(t *testing.T, proxy func(*url.URL) (*url.URL, error)) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{T: t, cfg: Config{File: filepath.Join(dir, "registries.yaml"), Hosts: filepath.Join(dir, "certs.d"), Proxy: proxy}}
	return b
}

func (b *bench) run() {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() { done <- New(b.cfg).Run(ctx, func() { once.Do(func() { close(ready) }) }) }()
	select {
	case <-ready:
	case err := <-done:
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// write changes the file; each time its date differs, as a person's edits do.
func (b *bench) write(format string, a ...any) {
	b.Helper()
	if err := os.WriteFile(b.cfg.File, fmt.Appendf(nil, format, a...), 0o600); err != nil {
		b.Fatal(err)
	}
	b.seq++
	at := time.Now().Add(time.Duration(b.seq) * time.Second)
	if err := os.Chtimes(b.cfg.File, at, at); err != nil {
		b.Fatal(err)
	}
}

// pull fetches an image whole, as containerd does: its resolver, its reading of config_path.
func (b *bench) pull(ref string) error {
	ctx := b.Context()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: hosts.ConfigureHosts(ctx, hosts.HostOptions{
		HostDir: hosts.HostDirFromRoot(b.cfg.Hosts), Credentials: b.user,
	})})
	named, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	fetcher, err := resolver.Fetcher(ctx, named)
	if err != nil {
		return err
	}
	r, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil {
		return err
	}
	m, err := v1.ParseManifest(strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	for _, l := range append(m.Layers, m.Config) {
		d := desc
		d.MediaType, d.Digest, d.Size = string(l.MediaType), digest.Digest(l.Digest.String()), l.Size
		r, err := fetcher.Fetch(ctx, d)
		if err != nil {
			return err
		}
		got, hash, err := size(r)
		if err != nil || got != l.Size || hash != l.Digest.String() {
			return fmt.Errorf("layer %s: %d bytes, %s, %w", l.Digest, got, hash, err)
		}
	}
	return nil
}

func size(r io.ReadCloser) (int64, string, error) {
	defer func() { _ = r.Close() }()
	h, n, err := v1.SHA256(r)
	return n, h.String(), err
}

func (b *bench) want(ref string) {
	b.Helper()
	if err := b.pull(ref); err != nil {
		b.Errorf("%s: %v", ref, err)
	}
}

func (b *bench) refused(ref, why string) {
	b.Helper()
	if err := b.pull(ref); err == nil || !strings.Contains(err.Error(), why) {
		b.Errorf("%s: %v; want %q in it", ref, err, why)
	}
}

func caFile(t *testing.T, u *upstream) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Mirrors in their order, with rewrites, the wildcard, and what the file says changing between two pulls.
func TestMirrors(t *testing.T) {
	b := newBench(t, nil)
	empty, full := newUpstream(t, false), newUpstream(t, false, "library/busybox", "cache/hub/library/redis", "proxy/quay/app")
	b.write("mirrors:\n  docker.io:\n    endpoint: [%q, %q]\n", empty.URL, full.URL)
	b.run()
	b.want("docker.io/library/busybox:1")
	if !empty.saw("busybox") {
		t.Error("the first endpoint was not asked first")
	}
	b.write("mirrors:\n  docker.io:\n    endpoint: [%q]\n    rewrite: {\"^library/(.*)\": \"cache/hub/library/$1\"}\n", full.URL)
	b.want("docker.io/library/redis:1")
	// A path in an endpoint is the API's root there.
	b.write("mirrors:\n  \"*\": {endpoint: [%q]}\n", full.URL+"/v2/proxy/quay")
	b.want("quay.example.org/app:1")
	b.write("mirrors:\n  other.example.org: {endpoint: [%q]}\n", full.URL)
	b.want(full.host() + "/library/busybox:1") // not a mirror's business
}

// A registry's own user, in all the ways to write it, by basic and by token, over TLS that only the file makes good.
func TestUsersAndTLS(t *testing.T) {
	b := newBench(t, nil)
	u := newUpstream(t, true, "app")
	ca := caFile(t, u)
	b.write("configs: {}\n")
	b.run()
	ref := u.host() + "/app:1"
	// httptest's address is a loopback one: its scheme must be told.
	mirror := fmt.Sprintf("mirrors:\n  %q: {endpoint: [%q]}\n", u.host(), u.URL)
	b.write("%s", mirror)
	b.refused(ref, "certificate")
	b.write("%sconfigs:\n  %q: {tls: {ca_file: %q}}\n", mirror, u.host(), ca)
	b.want(ref)
	for _, bearer := range []bool{false, true} {
		u.require("north:secret", bearer)
		b.write("%sconfigs:\n  %q: {tls: {ca_file: %q}, auth: {username: north, password: wrong}}\n", mirror, u.host(), ca)
		b.refused(ref, "")
		for _, auth := range []string{"username: north, password: secret", "auth: bm9ydGg6c2VjcmV0"} {
			b.write("%sconfigs:\n  %q: {tls: {ca_file: %q}, auth: {%s}}\n", mirror, u.host(), ca, auth)
			b.want(ref)
		}
		b.write("%sconfigs:\n  \"*\": {tls: {insecure_skip_verify: true}, auth: {username: north, password: secret}}\n", mirror)
		b.want(ref)
		// A pod's own user; its token is fetched over the same TLS.
		b.write("%sconfigs:\n  %q: {tls: {ca_file: %q}}\n", mirror, u.host(), ca)
		b.refused(ref, "")
		b.user = func(string) (string, string, error) { return "north", "secret", nil }
		b.want(ref)
		b.user = nil
	}
}

// A pod's user is for the registry and no mirror.
func TestPodsUserStaysWithTheRegistry(t *testing.T) {
	b := newBench(t, nil)
	mirror, origin := newUpstream(t, false), newUpstream(t, false, "app")
	origin.require("north:secret", false)
	var leaked string
	inner := mirror.Config.Handler
	mirror.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked += r.Header.Get("Authorization")
		inner.ServeHTTP(w, r)
	})
	b.write("mirrors:\n  %q: {endpoint: [%q]}\n", origin.host(), mirror.URL)
	b.user = func(string) (string, string, error) { return "north", "secret", nil }
	b.run()
	b.want(origin.host() + "/app:1")
	if leaked != "" || !mirror.saw("/app/") {
		t.Errorf("the mirror was told %q", leaked)
	}
}

// With MirrorsOnly a registry that has mirrors is not asked, nor told who a pod is, and neither are the mirrors; one without is,
// and one that stands among its own endpoints.
func TestMirrorsOnly(t *testing.T) {
	b := newBench(t, nil)
	b.cfg.MirrorsOnly = true
	mirror, origin := newUpstream(t, false, "mirrored"), newUpstream(t, false, "app", "mirrored")
	origin.require("north:secret", true)
	b.user = func(string) (string, string, error) { return "north", "secret", nil }
	b.write("mirrors:\n  %q: {endpoint: [%q]}\n", origin.host(), mirror.URL)
	b.run()
	b.want(origin.host() + "/mirrored:1")
	b.refused(origin.host()+"/app:1", "not found")
	b.write("mirrors:\n  \"*\": {endpoint: [%q]}\n", mirror.URL)
	b.refused(origin.host()+"/app:1", "not found")
	for _, bearer := range []bool{false, true} { // a mirror that would take the pod's user
		mirror.require("north:secret", bearer)
		b.refused(origin.host()+"/mirrored:1", "401")
	}
	if origin.saw("/") || mirror.tokens > 0 {
		t.Errorf("the registry was asked, %q, or the mirror gave %d tokens", origin.requests, mirror.tokens)
	}
	for _, text := range []string{
		"mirrors:\n  %[1]q: {endpoint: [%[2]q, %[3]q]}\n",
		"mirrors:\n  other.example.org: {endpoint: [%[2]q]}\n%.0[1]s%.0[3]s",
		"mirrors:\n  %[1]q: {rewrite: {a: b}}\n%.0[2]s%.0[3]s",
	} {
		b.write(text, origin.host(), mirror.URL, origin.URL)
		b.want(origin.host() + "/app:1")
	}
	for registry, want := range map[string]string{"docker.io": "index.docker.io", "example.org": "example.org"} {
		c, err := parse("r.yaml", []byte("mirrors: {\"*\": {endpoint: [m.example.org, "+want+"]}}\nconfigs: {"+registry+": {auth: {username: u, password: p}}}\n"))
		if err != nil {
			t.Fatal(err)
		}
		if all := c.targets(registry, "x", true); len(all) != 2 || all[0].origin || !all[1].origin || all[1].base.Host != want || all[1].host.username != "u" {
			t.Errorf("%s: %+v", registry, all)
		}
	}
}

// A fault stops pulls and says where it is; mended, they go on. The file may also come and go.
func TestFaults(t *testing.T) {
	b := newBench(t, nil)
	u := newUpstream(t, false, "app")
	b.write("mirrors:\n  docker.io:\n    endpoints: [x]\n")
	b.run()
	b.refused("docker.io/app:1", "registries.yaml:3:5: unknown key")
	b.write("mirrors:\n  docker.io: {endpoint: [%q]}\n", u.URL)
	b.want("docker.io/app:1")
	for text, want := range map[string]string{
		"mirrors:\n  a: {endpoint: [\"ftp://x\"]}\n":          "r.yaml:2:18: \"ftp://x\" is not an endpoint",
		"mirrors:\n  a: {rewrite: {\"(\": x}}\n":              "missing closing )",
		"configs:\n  a: {auth: {password: x}}\n":              "no username",
		"configs:\n  a: {auth: {auth: x}}\n":                  "in base64",
		"configs:\n  a: {tls: {ca_file: /nowhere}}\n":         "ca_file",
		"configs:\n  a: {tls: {cert_file: /nowhere}}\n":       "go together",
		"mirrors:\n  a: {}\n  a: {}\n":                        "twice",
		"configs:\n  a: {auth: {username: x, passwort: y}}\n": "passwort",
	} {
		if _, err := parse("r.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
}

// Strangers on the machine cannot use the node's credentials.
func TestStrangers(t *testing.T) {
	b := newBench(t, nil)
	u := newUpstream(t, false, "app")
	b.write("mirrors:\n  docker.io: {endpoint: [%q]}\n", u.URL)
	b.run()
	hostsFile := filepath.Join(b.cfg.Hosts, "_default", "hosts.toml")
	data, err := os.ReadFile(hostsFile)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(hostsFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	address, _, _ := strings.Cut(strings.TrimPrefix(string(data), `server = "`), `"`)
	for _, path := range []string{"/v2/app/manifests/1?ns=docker.io", "/token?realm=" + u.URL + "/token"} {
		resp, err := http.Get(address + path) //nolint:gosec,noctx // a test's own server
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// Without a file and a proxy containerd asks by itself; with a proxy alone, everything goes through it.
func TestProxy(t *testing.T) {
	b := newBench(t, nil)
	b.run()
	if _, err := os.Stat(filepath.Join(b.cfg.Hosts, "_default")); err == nil {
		t.Error("containerd is led here for nothing")
	}
	u := newUpstream(t, true, "app")
	proxy := outboundtest.New(t, u.host())
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	b = newBench(t, func(*url.URL) (*url.URL, error) { return address, nil })
	b.write("configs:\n  \"*\": {tls: {insecure_skip_verify: true}}\n")
	b.run()
	b.want("registry.example.org/app:1")
	if through := proxy.Asked(); len(through) == 0 || through[0] != "CONNECT registry.example.org:443" {
		t.Errorf("through the proxy went %q", through)
	}
}
