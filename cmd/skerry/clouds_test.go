package main

import (
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/skerry-os/skerry/image/cloud/aws/awstest"
	"github.com/skerry-os/skerry/image/cloud/azure/azuretest"
	"github.com/skerry-os/skerry/image/cloud/gcp/gcptest"
	"github.com/skerry-os/skerry/image/releasetest"
)

// Every command of CLOUDS.md works, in the order it stands there. The clouds are servers of awstest, azuretest and gcptest, the registry
// a real one; the
// release is there already, because building one takes minutes and a compiler.
func TestCloudsPage(t *testing.T) {
	text, err := os.ReadFile("../../image/cloud/CLOUDS.md")
	if err != nil {
		t.Fatal(err)
	}
	b := releasetest.New(t, 1<<20)
	for _, id := range []string{"aws", "azure", "gcp", "openstack", "proxmox"} {
		b.AddBoard(t, id)
	}
	for _, cloud := range []map[string]string{awstest.New(t).Env(), azuretest.New(t).Env(), gcptest.New(t).Env()} {
		for k, v := range cloud {
			t.Setenv(k, v)
		}
	}
	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(images.Close)
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("SKERRY_CACHE", filepath.Join(dir, "cache"))
	if err := os.Mkdir("out", 0o755); err != nil {
		t.Fatal(err)
	}
	agent := strings.Replace(releasetest.Config, "role: server\nhostname: north-1\n", "role: agent\n", 1)
	agent = strings.Replace(agent, "cluster: {", "cluster: {server: \"https://10.0.0.1:6443\", ", 1)
	for name, data := range map[string]string{"node.yaml": releasetest.Config, "agent.yaml": agent} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{b.Keys: "out/keys", b.Release: "out/release"} {
		if err := os.Symlink(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if code := run(t.Context(), []string{"keys", "roles", "out/keys"}, nil, io.Discard, os.Stderr); code != 0 { // the page's first command makes them
		t.Fatal("no keys")
	}
	commands := 0
	for line := range strings.Lines(string(text)) {
		words, ok := strings.CutPrefix(line, "    skerry ")
		if !ok || strings.HasPrefix(words, "keys new ") || strings.HasPrefix(words, "release build ") {
			continue
		}
		commands++
		words = strings.ReplaceAll(words, "registry.example.org", strings.TrimPrefix(images.URL, "http://"))
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(words), nil, &stdout, &stderr); code != 0 {
			t.Errorf("skerry %s: exit code %d\n%s%s", strings.TrimSpace(words), code, &stdout, &stderr)
		}
	}
	if commands < 22 {
		t.Errorf("only %d commands were found", commands)
	}
}
