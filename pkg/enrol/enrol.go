// Package enrol is a node's half of membership: it joins a cluster once, keeps what it was given in one file, and asks for new
// certificates long before the old ones end. With the file a node needs no token ever again, whatever happens to the one it
// joined with; a node that was off until its certificates ended asks with the ended one.
package enrol

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"crypto/x509"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/token"
)

// Config is who asks, and where.
type Config struct {
	DataDir   string
	Server    string // URLs, joined by commas
	Token     string
	NodeName  string
	Addresses func(shared map[string]any) ([]netip.Addr, error) // of this node, in a cluster of these settings
	Machine   join.Machine
	Tell      func(status string) // what is waited for, for whoever started us

	// Known gives the shared settings as this version reads them: those it does not know are gone, those that are missing are there.
	// A server of another version is then no reason to start anew. nil: they are taken as they come.
	Known func(shared map[string]any) (map[string]any, error)

	keys map[string]pki.NodeKey // the same in each attempt of a join, so that a server knows whose answer got lost
}

// State is what a node was given. It is one file, so that it is there whole or not at all.
type State struct {
	Node      string            `json:"node"`
	Addresses []string          `json:"addresses"`
	Settings  map[string]any    `json:"settings"`
	Servers   []string          `json:"servers"`
	ServerCA  []byte            `json:"serverCA"`
	ClientCA  []byte            `json:"clientCA"`
	Pairs     map[string][]byte `json:"pairs"` // certificate and key, PEM
}

// File is where the state is.
func File(dataDir string) string { return filepath.Join(dataDir, "agent", "join.json") }

// Load reads the state; nil if this node has never joined.
func Load(dataDir string) (*State, error) {
	name := File(dataDir)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w; delete it and give the node a token, so that it joins again", name, err)
	}
	if _, _, err := s.life(); err != nil {
		return nil, fmt.Errorf("%s: %w; delete it and give the node a token, so that it joins again", name, err)
	}
	return &s, nil
}

func (s *State) save(dataDir string) error {
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(File(dataDir)), 0o711); err != nil {
		return err
	}
	return atomicfile.Write(File(dataDir), data, 0o600)
}

// Files writes the components' files from the state. server is the URL under which they find the API.
func (s *State) Files(dataDir, server string) (*pki.Files, error) {
	return pki.NodeFiles(dataDir, server, s.ServerCA, s.ClientCA, s.Pairs)
}

// life is when the first of the certificates begins and ends.
func (s *State) life() (from, until time.Time, err error) {
	for _, use := range []string{pki.KubeletClient, pki.KubeletServing, pki.KubeProxy} {
		b, _ := pem.Decode(s.Pairs[use])
		if b == nil {
			return from, until, fmt.Errorf("holds no certificate for %s", use)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return from, until, fmt.Errorf("%s: %w", use, err)
		}
		if until.IsZero() || c.NotAfter.Before(until) {
			from, until = c.NotBefore.Add(pki.Backdate), c.NotAfter
		}
	}
	return from, until, nil
}

// Until is when the first of the certificates ends.
func (s *State) Until() time.Time {
	_, until, _ := s.life()
	return until
}

// Lifetime is that of the certificates.
func (s *State) Lifetime() time.Duration {
	from, until, _ := s.life()
	return until.Sub(from)
}

// due says whether the certificates are in the last third of their life, or do not fit the node any more.
func (s *State) due(now time.Time, addresses []string) bool {
	from, until, err := s.life()
	return err != nil || now.Add(pki.Margin(until.Sub(from))).After(until) || !slices.Equal(s.Addresses, addresses)
}

// Pauses between attempts: nobody may be near a node that waits for its server.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
	attempt    = 20 * time.Second
)

// Ensure gives the state of a node that belongs to the cluster. A node that has none joins, and tries until it succeeds or is
// told something that waiting does not change. One whose certificates have ended gets new ones first.
func Ensure(ctx context.Context, c Config) (*State, error) {
	s, err := Load(c.DataDir)
	if err != nil {
		return nil, err
	}
	if s != nil && s.Node != c.NodeName {
		slog.Info("this node has another name than when it joined; joining again", "before", s.Node, "now", c.NodeName)
		s = nil
	}
	if s != nil && time.Now().Before(s.Until()) {
		return c.refresh(ctx, s)
	}
	if s != nil {
		slog.Info("the node's certificates have ended while it was off; asking for new ones", "ended", s.Until().Format(time.RFC3339))
	}
	var t token.Token
	if s == nil {
		if t, err = token.Parse(c.Token); err != nil {
			return nil, err
		}
		if c.keys, err = pki.NewNodeKeys(); err != nil {
			return nil, err
		}
	}
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		now, err := c.once(ctx, s, t)
		if err == nil {
			return now, nil
		}
		var no *join.Refusal
		if ctx.Err() != nil || errors.As(err, &no) && !no.Wait {
			return nil, fmt.Errorf("joining %w", err)
		}
		if err.Error() != said {
			slog.Warn("joining is tried again until it works", "err", err)
			said = err.Error()
		}
		c.Tell("joining " + err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("joining %w", err)
		}
	}
}

// once asks every server that is known, until one answers.
func (c Config) once(ctx context.Context, s *State, t token.Token) (*State, error) {
	servers := []string{}
	if s != nil {
		servers = append(servers, s.Servers...)
	}
	servers, err := c.withOwn(servers)
	if err != nil {
		return nil, err
	}
	var last error
	for _, addr := range servers {
		now, err := c.ask(ctx, addr, s, t)
		if err == nil {
			return now, nil
		}
		last = err
		var no *join.Refusal
		if errors.As(err, &no) && !no.Wait {
			break
		}
	}
	return nil, last
}

// ask makes keys, has them signed, and keeps both.
func (c Config) ask(ctx context.Context, addr string, s *State, t token.Token) (*State, error) {
	var shared map[string]any
	if s != nil {
		shared = s.Settings
	}
	ips, err := c.Addresses(shared)
	if err != nil {
		return nil, err
	}
	keys := c.keys
	if keys == nil {
		if keys, err = pki.NewNodeKeys(); err != nil {
			return nil, err
		}
	}
	r := join.Request{Node: c.NodeName, Machine: c.Machine, Addresses: texts(ips), Time: time.Now(), Keys: map[string][]byte{}}
	for use, k := range keys {
		r.Keys[use] = k.Public
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	var a *join.Answer
	if s == nil {
		a, err = join.Join(ctx, addr, t, r)
	} else {
		a, err = join.Renew(ctx, addr, s.Pairs[pki.KubeletClient], s.ServerCA, r)
	}
	if err != nil {
		return nil, err
	}
	now := &State{
		Node: c.NodeName, Addresses: r.Addresses, Settings: a.Settings, Servers: a.Servers,
		ServerCA: a.ServerCA, ClientCA: a.ClientCA, Pairs: map[string][]byte{},
	}
	for use, k := range keys {
		now.Pairs[use] = append(slices.Clone(a.Certificates[use]), k.Private...)
	}
	if _, _, err := now.life(); err != nil {
		return nil, fmt.Errorf("%s: its answer: %w", addr, err)
	}
	return now, now.save(c.DataDir)
}

// Renew asks once for new certificates. The servers to ask are the caller's to know.
func Renew(ctx context.Context, c Config, s *State, servers []string) (*State, error) {
	var last error
	for _, addr := range servers {
		now, err := c.ask(ctx, addr, s, token.Token{})
		if err == nil {
			return now, nil
		}
		last = err
	}
	return nil, last
}

// Keep renews what s holds for as long as ctx runs, and calls renewed after each time. It asks every minute what the cluster's
// nodes share, and returns an error with supervise.ErrAgain when the node must start anew with what it has learned: other settings,
// or other authorities. Any other error is a server's word that the node was removed from the cluster.
func Keep(ctx context.Context, c Config, s *State, servers func() []string, renewed func(*State) error) error {
	started := s
	pause := time.Duration(0)
	for {
		now, err := c.news(ctx, s, servers(), attempt)
		if removed(err) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			slog.Debug("the cluster's news are not known", "err", err) // that no server works is said elsewhere
		}
		if now != nil {
			s = now
		}
		ips, err := c.Addresses(s.Settings)
		if err == nil && s.due(time.Now(), texts(ips)) {
			var now *State
			if now, err = Renew(ctx, c, s, servers()); err == nil {
				s = now
				slog.Info("the node's certificates are renewed", "until", s.Until().Format(time.RFC3339))
				err = renewed(s)
			}
		}
		if why := c.unlike(s, started); why != "" && err == nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", why, supervise.ErrAgain)
		}
		from, until, _ := s.life()
		every := min(lookEvery, max(until.Sub(from)/50, time.Second))
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // a stop is no fault
		case err == nil:
			pause = every/2 + rand.N(every) // so that not all nodes ask, or start anew, at once
		default:
			pause = min(max(2*pause, every), time.Hour)
			slog.Warn("the node's certificates are not renewed; trying again", "until", until.Format(time.RFC3339), "in", pause, "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// withOwn adds the servers that a person named to those that are known.
func (c Config) withOwn(servers []string) ([]string, error) {
	own, err := Addresses(c.Server)
	for _, addr := range own {
		if !slices.Contains(servers, addr) {
			servers = append(servers, addr)
		}
	}
	return servers, err
}

// Addresses are the host:port of the setting server, which may name several; of none if it is empty.
func Addresses(server string) (out []string, err error) {
	for _, s := range machine.ServerURLs(server) {
		addr, err := Address(s)
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	return out, nil
}

// Address is the host:port of a server's URL.
func Address(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("%q is not a server; write https://HOST:6443", server)
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

func texts(ips []netip.Addr) []string {
	out := []string{}
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}
