// Package outbound is the way out through a proxy, for the parts of a node that fetch things from elsewhere: image pulls, Helm
// charts and snapshots on S3. The Kubernetes parts in the same process must not see it, or webhooks, aggregated APIs and the nodes' own API would be
// asked through it; so Take takes the usual variables out of the environment.
package outbound

import (
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// Settings are a person's: which proxy, and for what none.
type Settings struct {
	HTTP, HTTPS, No string
}

// variables that Go's and others' libraries read.
var variables = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}

// Take gives the settings with what the environment says where they are silent, and takes it out of the environment. It must run
// before anything in the process asks over HTTP: Go reads the variables once. CONTAINERD_HTTP_PROXY and the like are K3s's; under
// SKERRY_HTTP_PROXY and the like they stay, where no library looks, for when the process starts itself anew.
func Take(s Settings) Settings {
	for _, v := range []struct {
		to   *string
		name string
	}{{&s.HTTP, "HTTP_PROXY"}, {&s.HTTPS, "HTTPS_PROXY"}, {&s.No, "NO_PROXY"}} {
		for _, name := range []string{kept + v.name, "CONTAINERD_" + v.name, v.name, strings.ToLower(v.name)} {
			if *v.to == "" {
				*v.to = os.Getenv(name)
			}
		}
		if *v.to != "" {
			_ = os.Setenv(kept+v.name, *v.to) // only an empty name is an error
		}
	}
	for _, v := range variables {
		for _, name := range []string{v, strings.ToLower(v), "CONTAINERD_" + v} {
			_ = os.Unsetenv(name)
		}
	}
	return s
}

const kept = "SKERRY_"

// Never lists what is never asked through a proxy: this machine, its addresses, and the cluster's networks and names.
func Never(networks []netip.Prefix, domain string, own []netip.Addr) []string {
	all := []string{"localhost", "127.0.0.0/8", "::1", ".svc"}
	if domain != "" {
		all = append(all, "."+domain)
	}
	for _, n := range networks {
		all = append(all, n.String())
	}
	for _, n := range own {
		all = append(all, n.String())
	}
	return all
}

// Func chooses the proxy for a URL; nil when there is none at all. others gives the addresses of other nodes as they are known at
// the time; it is asked about addresses alone, and may be nil.
func (s Settings) Func(never []string, others func() []netip.Addr) func(*url.URL) (*url.URL, error) {
	if s.HTTP == "" && s.HTTPS == "" {
		return nil
	}
	no := strings.Join(append(slices.Clone(never), s.No), ",")
	choose := (&httpproxy.Config{HTTPProxy: s.HTTP, HTTPSProxy: s.HTTPS, NoProxy: strings.Trim(no, ",")}).ProxyFunc()
	return func(u *url.URL) (*url.URL, error) {
		proxy, err := choose(u)
		if proxy != nil && others != nil {
			if ip, aerr := netip.ParseAddr(u.Hostname()); aerr == nil && slices.Contains(others(), ip.Unmap()) {
				return nil, nil
			}
		}
		return proxy, err
	}
}
