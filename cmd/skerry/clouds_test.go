package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/skerry-os/skerry/image/cloud/aws/awstest"
	"github.com/skerry-os/skerry/image/cloud/azure/azuretest"
	"github.com/skerry-os/skerry/image/cloud/gcp/gcptest"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
)

// Every command of CLOUDS.md works, in the order it stands there, and its YAML is what it says. The clouds are servers of awstest,
// azuretest and gcptest, the registry a real one. `release build` alone is not run but has its flags looked at, and a small release
// takes the place of what it makes: it compiles Kubernetes and fetches Debian's packages. (make test-clouds does run it, with these
// flags.)
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
	if err := os.WriteFile("agent.yaml", []byte(agent), 0o600); err != nil {
		t.Fatal(err)
	}
	skerry := func(words ...string) (string, int) {
		var out bytes.Buffer
		code := run(t.Context(), words, nil, &out, &out)
		return out.String(), code
	}
	commands, blocks := 0, 0
	for _, block := range indented(string(text)) {
		if !strings.HasPrefix(block, "skerry ") {
			blocks++
			whole := strings.HasPrefix(block, "apiVersion:")
			c := machine.Layer{Name: "the page", Data: []byte(block)}
			if _, err := machine.DecodeLayers(machine.Facts{}, machine.Layer{Name: "image", Data: []byte(releasetest.Config)}, c); err != nil {
				t.Errorf("%v:\n%s", err, block)
			}
			if whole {
				if err := os.WriteFile("node.yaml", []byte(block), 0o600); err != nil { // its name is on the page
					t.Fatal(err)
				}
			}
			continue
		}
		for line := range strings.Lines(block) {
			commands++
			words := strings.Fields(strings.ReplaceAll(line, "registry.example.org", strings.TrimPrefix(images.URL, "http://")))[1:]
			build := strings.HasPrefix(line, "skerry release build ")
			if build {
				words = append(words, "--help") // flags that there are not are an error all the same
			}
			if out, code := skerry(words...); code != 0 {
				t.Fatalf("%s: exit code %d\n%s", strings.TrimSpace(line), code, out)
			}
			if build {
				standIn(t, b)
			}
		}
	}
	if commands < 28 || blocks < 2 {
		t.Errorf("only %d commands and %d blocks of YAML were found", commands, blocks)
	}
	// Those in the middle of a sentence are there, too.
	inline := regexp.MustCompile("`skerry ([^`…]+)`").FindAllStringSubmatch(string(text), -1)
	for _, m := range inline {
		if out, code := skerry(append(strings.Fields(m[1]), "--help")...); code != 0 || strings.Contains(out, "Available Commands:") && len(strings.Fields(m[1])) > 2 {
			t.Errorf("skerry %s: exit code %d\n%s", m[1], code, out)
		}
	}
	if len(inline) < 5 {
		t.Errorf("only %q were found", inline)
	}
}

// indented are the blocks of a page that stand four blanks in.
func indented(page string) (out []string) {
	var block strings.Builder
	for line := range strings.Lines(page + "\n\n") {
		if text, ok := strings.CutPrefix(line, "    "); ok {
			block.WriteString(text)
			continue
		}
		if block.Len() > 0 {
			out = append(out, block.String())
			block.Reset()
		}
	}
	return out
}

// standIn puts a small release where a build would, and the keys that it is signed with in the place of those just made, which are
// of the same kind.
func standIn(t *testing.T, b *releasetest.Bench) {
	t.Helper()
	want, err := fs.Glob(os.DirFS(b.Keys), "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range want {
		if _, err := os.Stat(filepath.Join("out/keys", name)); err != nil {
			t.Errorf("keys new made no %s", name)
		}
	}
	err = errors.Join(os.Rename("out/keys", "out/new"), os.Symlink(b.Keys, "out/keys"), os.Symlink(b.Release, "out/release"))
	if err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), []string{"keys", "roles", "out/keys"}, nil, io.Discard, os.Stderr); code != 0 { // keys new makes them, too
		t.Fatal("no keys")
	}
}
