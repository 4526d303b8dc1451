package enrol

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/token"
)

// serves is a server of the cluster that these files are of.
func serves(t *testing.T, files map[string][]byte) (url string) {
	t.Helper()
	dir := t.TempDir()
	if err := keepShared(dir, files, pki.Shared()); err != nil {
		t.Fatal(err)
	}
	f, err := pki.Ensure(pki.Config{DataDir: dir, NodeName: "s2", NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		Domain: "cluster.local", Port: 6443, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(f.APIServerPair, f.APIServerPair)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(nil)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	return "https://" + s.Listener.Addr().String()
}

func clusterFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := pki.NewCluster(time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files["server/token"] = []byte("the-cluster's-own\n")
	return files
}

// A first server whose card was written again, or that took another's place, joins the cluster that there is. It begins one if nobody
// serves, and neither if somebody serves who is no server of its cluster. What it found it remembers over a restart.
func TestElsewhere(t *testing.T) {
	files := clusterFiles(t)
	running := serves(t, files)
	nobody := "https://127.0.0.1:1"
	plant := func(servers ...string) string {
		t.Helper()
		dir := t.TempDir()
		data, err := (&seed.Seed{Fleet: "home", Files: files, Tokens: []seed.Token{{Secret: "aaaaaa.bbbbbbbbbbbbbbbb", Node: "a1"}}, Servers: servers}).Marshal()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, seed.Name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	ask := func(dir string) (string, string) {
		t.Helper()
		server, text, err := Elsewhere(t.Context(), dir, 0, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		return server, text
	}
	for name, dir := range map[string]string{"no fleet": t.TempDir(), "one server": plant(), "a new fleet": plant(nobody, nobody)} {
		if server, text := ask(dir); server != "" || text != "" {
			t.Errorf("%s: joins %s", name, server)
		}
	}

	dir := plant(nobody, running)
	server, text := ask(dir)
	parsed, err := token.Parse(text)
	if server != running || err != nil || parsed.Secret != "the-cluster's-own" || parsed.Pin == "" {
		t.Fatalf("joins %q with a token of pin %q, %v", server, parsed.Pin, err)
	}
	// It lost power before it had joined, and the others are off now: it waits for them.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	again := plant(nobody)
	if err := os.WriteFile(filepath.Join(again, throughName), []byte(running+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if server, _, err := Elsewhere(ctx, again, 0, func(string) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cluster that was found once: goes on with %q, %v", server, err)
	}
	// It has joined, and its datastore may have no member yet: it must not begin one.
	if err := keepShared(dir, files, pki.Shared()); err != nil {
		t.Fatal(err)
	}
	if server, text := ask(dir); server != running || text != "" {
		t.Errorf("after the join: %q %q", server, text)
	}
	if err := TakeSeed(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, seed.Name)); err == nil {
		t.Error("the seed of a cluster that was joined is still there")
	}

	said := ""
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if server, _, err := Elsewhere(ctx, plant(serves(t, clusterFiles(t))), 0, func(s string) {
		if said = s; strings.Contains(s, "another cluster") {
			cancel()
		}
	}); err == nil || !strings.Contains(said, "another cluster") {
		t.Errorf("another cluster: %q, %v; it says %q", server, err, said)
	}
}
