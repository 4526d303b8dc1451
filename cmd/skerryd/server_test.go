package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server"
)

// K3s's own switches for a component mean what --disable means.
func TestDisabled(t *testing.T) {
	s := machine.DefaultServer()
	if got := disabled(s); len(got) > 0 {
		t.Errorf("nobody asked for it, and it is disabled: %q", got)
	}
	s.Disable, s.DisableHelmController, s.DisableNetworkPolicy = []string{"ingress"}, true, true
	got := disabled(s)
	slices.Sort(got)
	if !slices.Equal(got, []string{"helm-controller", "ingress", "network-policy"}) || len(s.Disable) != 1 {
		t.Errorf("disabled are %q", got)
	}
	for _, c := range got {
		if !slices.Contains(machine.Components, c) {
			t.Errorf("%s is no component", c)
		}
	}
}

func TestAgentTokenFile(t *testing.T) {
	s := machine.DefaultServer()
	if err := readAgentToken(&s); err != nil || s.AgentToken != "" {
		t.Errorf("without a file: %q, %v", s.AgentToken, err)
	}
	s.AgentTokenFile = filepath.Join(t.TempDir(), "token")
	for _, c := range []struct{ text, want string }{{"", "is empty"}, {"short", "agent-token: has 5 characters"}, {"sixteen-characters\n", ""}} {
		s.AgentToken = ""
		if err := os.WriteFile(s.AgentTokenFile, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := readAgentToken(&s)
		if c.want == "" && (err != nil || s.AgentToken != "sixteen-characters") {
			t.Errorf("%q: %q, %v", c.text, s.AgentToken, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), "--agent-token-file: ") || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v; want %q", c.text, err, c.want)
		}
	}
	if err := readAgentToken(&s); err == nil || !strings.Contains(err.Error(), "leave one out") {
		t.Errorf("a token and a file: %v", err)
	}
}

// What the servers say of kube-proxy, their agents do.
func TestDisableKubeProxy(t *testing.T) {
	s := machine.DefaultServer()
	for _, disabled := range []bool{false, true} {
		s.DisableKubeProxy = disabled
		seen, err := clusterOf(machine.DefaultAgent(), s.Shared())
		if err != nil {
			t.Fatal(err)
		}
		c, err := nodeConfig(seen, "north", nil, &pki.Files{})
		if err != nil || c.DisableKubeProxy != disabled {
			t.Errorf("an agent's kube-proxy is disabled: %v, %v; want %v", c.DisableKubeProxy, err, disabled)
		}
	}
}

// A server that is reset has the kind of datastore that it had among the others, also when its data is gone.
func TestAResetKeepsTheKind(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(s *machine.Server)
		etcd bool
	}{
		"the first":       {func(s *machine.Server) { s.ClusterInit = true }, true},
		"one that joined": {func(s *machine.Server) { s.Server = "https://192.0.2.5:6443" }, true},
		"one that joined a database": {func(s *machine.Server) {
			s.Server, s.DatastoreEndpoint = "https://192.0.2.5:6443", "postgres://u:p@h/d"
		}, false},
		"one alone": {func(*machine.Server) {}, false},
	} {
		s := machine.DefaultServer()
		s.DataDir = t.TempDir()
		c.set(&s)
		if s = byItself(s); s.Server != "" || server.UsesEtcd(s) != c.etcd {
			t.Errorf("%s: uses etcd: %v", name, server.UsesEtcd(s))
		}
	}
}
