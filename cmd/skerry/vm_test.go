package main

import (
	"bytes"
	"context"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/join"
)

func TestProgressShowsStagesAndStopsAtReady(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, time.Now())
	console := []string{
		"BdsDxe: starting Boot0001",
		"[    1.2] random kernel talk",
		"skerry: open verity: ok (0.2s)",
		"skerry: read config: ok",
		"Kernel panic - not syncing: but only for show",
		"skerry: node: waiting for the network",
	}
	for _, line := range console {
		if p.line(line) {
			t.Fatalf("took %q for Ready", line)
		}
	}
	if !p.line("skerry: node: Ready") {
		t.Error("did not see Ready")
	}
	got := regexp.MustCompile(` *\d+\.\d s `).ReplaceAllString(out.String(), "")
	want := "+ firmware, boot loader and kernel\n+ open verity  0.2s\n+ read config\n! Kernel panic - not syncing: but only for show\n  node: waiting for the network\n+ node: Ready\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if last := lastStep(strings.Join(console, "\n")); last != "node: waiting for the network" {
		t.Errorf("last step %q", last)
	}
}

// The whole command against a real TLS server: the file has the address that was asked, the right mode, and is not written
// when the token is wrong.
func TestKubeconfigCommand(t *testing.T) {
	const token = "a-token-of-this-tests-own"
	kubeconfig := `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"skerry","cluster":{"server":"https://10.0.2.15:6443","certificate-authority-data":"QQ=="}}],"users":[]}`
	s := httptest.NewTLSServer(&join.Server{
		Secrets: func(context.Context) ([]join.Secret, error) {
			return []join.Secret{{ID: "server", Text: token, Server: true}}, nil
		},
		Kubeconfig: func() ([]byte, error) { return []byte(kubeconfig), nil },
	})
	defer s.Close()
	addr := s.Listener.Addr().(*net.TCPAddr).String()
	dir := t.TempDir()
	file := filepath.Join(dir, "kubeconfig")
	fetch := func(token string) (int, string) {
		config := filepath.Join(dir, "node.yaml")
		text := "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\ncluster: {token: " + token + "}\n"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		code := run(t.Context(), []string{"kubeconfig", "--server", addr, "--config", config, "-o", file}, nil, &stderr, &stderr)
		return code, stderr.String()
	}
	if code, said := fetch("another-token-than-that"); code == 0 || !strings.Contains(said, "cluster.token") {
		t.Errorf("a wrong token: %d %q", code, said)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a file was written for a wrong token")
	}
	if code, said := fetch(token); code != 0 {
		t.Fatalf("%d %q", code, said)
	}
	got, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(got), "server: https://"+addr) || !strings.Contains(string(got), "certificate-authority-data: QQ==") {
		t.Errorf("%v\n%s", err, got)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestPointAtRefusesWhatIsNoKubeconfig(t *testing.T) {
	for _, text := range []string{"", "clusters: []", "clusters: [1]", "clusters: [{name: x}]", ":"} {
		if _, err := pointAt([]byte(text), "https://x:1"); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
