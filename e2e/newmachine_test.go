package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A server and its disk are lost. Another machine at its address, with a snapshot and the token, takes its place: the agent that had
// joined goes on without being touched, and Secrets can be read. The wrong token is refused in one line.
func TestNodesNewMachine(t *testing.T) {
	for kind, flags := range map[string][]string{"SQLite": nil, "etcd": {"--cluster-init"}} {
		t.Run(kind, func(t *testing.T) {
			w := newWire(t)
			s, a := w.Node("s1"), w.Node("a1")
			const token = "the-token-of-this-cluster"
			start := func(token string) { s.Start("server", append(flags, "--token", token, "--node-replace", "always")...) }
			start(token)
			s.Ready()
			a.Start("agent", "--server", s.URL(), "--token", s.Token())
			a.Ready()
			s.ReadyInAPI(s, a)
			lives := holds(s, a)
			s.Kubectl("create", "secret", "generic", "kept", "--from-literal=k=v")
			if code, out := s.Skerryd("secrets-encrypt", "rotate-keys", "--data-dir", s.DataDir()); code != 0 {
				t.Fatalf("rotate-keys: %d %s", code, out)
			}
			if code, out := s.Skerryd("snapshot", "save", "--data-dir", s.DataDir(), "--name", "kept"); code != 0 {
				t.Fatalf("snapshot: %d %s", code, out)
			}
			saved, _ := filepath.Glob(filepath.Join(s.DataDir(), "server/db/snapshots/kept-*"))
			if len(saved) != 1 {
				t.Fatalf("snapshots: %q", saved)
			}
			file := filepath.Join(s.Dir, "elsewhere"+filepath.Ext(saved[0]))
			data, err := os.ReadFile(saved[0])
			if err == nil {
				err = os.WriteFile(file, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			pid := a.PID()

			s.Reflash()
			code, out := s.Skerryd(append([]string{"server", "--cluster-reset", "--cluster-reset-restore-path", file, "--data-dir", s.DataDir(), "--node-name", "s1"}, flags...)...)
			if code != 0 {
				t.Fatalf("restore: %d %s", code, out)
			}
			start("another-token-of-somebody")
			if code := s.Exited(); code == 0 || !strings.Contains(s.Log(), "has another token than --token") {
				t.Errorf("with another token: %d\n%s", code, s.Tail(2000))
			}
			start(token)
			t.Logf("Ready %v on the new machine", s.Ready())
			s.ReadyInAPI(s, a)
			s.Becomes("dg==", "get", "secret", "kept", "-o", "jsonpath={.data.k}")
			lives("with the server on a new machine")
			if !a.Running() || a.PID() != pid && strings.Contains(a.Log(), "panic") {
				t.Errorf("the agent did not live through it\n%s", a.Tail(3000))
			}
		})
	}
}
