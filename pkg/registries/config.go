package registries

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// The file's parts; a node config has them too.
type (
	File   = machine.Registries
	Mirror = machine.Mirror
	Host   = machine.RegistryHost
	Auth   = machine.RegistryAuth
	TLS    = machine.RegistryTLS
)

const wildcard = "*"

// config is a File that has been checked and made ready for use.
type config struct {
	mirrors map[string]mirror
	hosts   map[string]host
}

type mirror struct {
	endpoints []*url.URL
	rewrites  []rewrite
}

type rewrite struct {
	from *regexp.Regexp
	to   string
}

type host struct {
	username, secret string // an empty username with a secret is a token
	tls              *tls.Config
}

// parse reads a File. All faults are told at once, with their places.
func parse(name string, data []byte) (*config, error) {
	var f File
	doc, err := strictyaml.Decode(name, data, &f)
	if err != nil {
		return nil, err
	}
	c := &config{mirrors: map[string]mirror{}, hosts: map[string]host{}}
	var faults []error
	fault := func(err error, path ...any) { faults = append(faults, doc.At(err.Error(), path...)) }
	for name, m := range f.Mirrors {
		var out mirror
		for i, e := range m.Endpoint {
			u, err := endpoint(e)
			if err != nil {
				fault(err, "mirrors", name, "endpoint", i)
				continue
			}
			out.endpoints = append(out.endpoints, u)
		}
		for _, from := range slices.Sorted(maps.Keys(m.Rewrite)) { // the first that fits is used
			to := m.Rewrite[from]
			expr, err := regexp.Compile(from)
			if err != nil {
				fault(err, "mirrors", name, "rewrite", from)
				continue
			}
			out.rewrites = append(out.rewrites, rewrite{expr, to})
		}
		c.mirrors[name] = out
	}
	for name, a := range f.Auths {
		u, err := endpoint(name)
		if err != nil {
			fault(err, "auths", name)
			continue
		}
		h := f.Configs[u.Host]
		if h.Auth == (Auth{}) {
			h.Auth = a
		}
		if f.Configs == nil {
			f.Configs = map[string]Host{}
		}
		f.Configs[u.Host] = h
	}
	for name, h := range f.Configs {
		var out host
		if out.username, out.secret, err = readAuth(h.Auth); err != nil {
			fault(err, "configs", name, "auth")
		}
		if out.tls, err = readTLS(h.TLS); err != nil {
			fault(err, "configs", name, "tls")
		}
		c.hosts[strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")] = out
	}
	return c, errors.Join(faults...)
}

// endpoint reads a URL; without a path it means the root of a registry's API, /v2.
func endpoint(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not an endpoint; write https://HOST or https://HOST/PATH, and who you are under configs", text)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if u.Path == "" {
		u.Path = "/v2"
	}
	return u, nil
}

func readAuth(a Auth) (username, secret string, err error) {
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.Auth != "":
		data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Auth))
		name, password, ok := strings.Cut(strings.TrimRight(string(data), "\x00\n"), ":")
		if err != nil || !ok {
			return "", "", errors.New("auth is not USER:PASSWORD in base64")
		}
		return name, password, nil
	case a.Password != "":
		return "", "", errors.New("there is a password and no username")
	}
	return "", "", nil
}

func readTLS(t TLS) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify} //nolint:gosec // the operator says so; registries are not all new
	if t.CAFile != "" {
		data, err := os.ReadFile(filepath.Clean(t.CAFile))
		if err != nil {
			return c, fmt.Errorf("ca_file: %w", err)
		}
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			c.RootCAs = x509.NewCertPool()
		}
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return c, fmt.Errorf("ca_file: %s holds no certificate in PEM form", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return c, errors.New("cert_file and key_file go together")
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return c, fmt.Errorf("cert_file, key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// target is one place to ask for a repository of a registry.
type target struct {
	base       *url.URL // up to and with /v2
	repository string
	host       host
	origin     bool // the registry itself
}

// targets lists where a registry's repository may be, in the order to try. The registry itself is the last, if nobody lists it
// before; with mirrorsOnly it is not asked when it has mirrors.
func (c *config) targets(registry, repository string, mirrorsOnly bool) []target {
	var all []target
	m, ok := c.mirrors[registry]
	if !ok {
		m = c.mirrors[wildcard]
	}
	origin := originOf(registry)
	direct := false
	for _, e := range m.endpoints {
		r := repository
		for _, w := range m.rewrites {
			if w.from.MatchString(r) {
				r = w.from.ReplaceAllString(r, w.to)
				break
			}
		}
		t := target{base: e, repository: r, host: c.host(e.Host), origin: e.Host == origin.Host || registry == "docker.io" && e.Host == "index.docker.io"}
		if t.origin && t.host.empty() {
			t.host = c.host(registry) // "docker.io" for registry-1.docker.io
		}
		all = append(all, t)
		direct = direct || t.origin
	}
	if !direct && (!mirrorsOnly || len(all) == 0) {
		h := c.host(origin.Host)
		if h.empty() {
			h = c.host(registry)
		}
		all = append(all, target{base: origin, repository: repository, host: h, origin: true})
	}
	return all
}

func (h host) empty() bool { return h.username == "" && h.secret == "" && h.tls == nil }

func (c *config) host(name string) host {
	bare, _, _ := strings.Cut(name, ":")
	for _, n := range []string{name, bare, wildcard} {
		if h, ok := c.hosts[n]; ok {
			return h
		}
	}
	return host{}
}

// originOf is a registry's own address.
func originOf(registry string) *url.URL {
	if registry == "docker.io" {
		registry = "registry-1.docker.io"
	}
	u := &url.URL{Scheme: "https", Host: registry, Path: "/v2"}
	if isLocal(u.Hostname()) && u.Port() != "" && u.Port() != "443" {
		u.Scheme = "http" // as containerd has it
	}
	return u
}
