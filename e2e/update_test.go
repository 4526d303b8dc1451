package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
)

var inUpdate = flag.Bool("update-vm", false, "update the image in QEMU; needs out/next, a newer release of the same tree")

// run runs a program of ours and gives what it printed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dying makes a release of another one whose kernel finds no init and panics: everything about it is signed and whole.
func dying(t *testing.T, from, keyDir, version string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dying")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	set, err := keys.Load(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := release.Open(os.DirFS(dir), []ed25519.PublicKey{set.ReleasePublic()})
	if err != nil {
		t.Fatal(err)
	}
	m := *rel.Manifest()
	m.Version = version
	board := m.Boards["x86-uefi"]
	name := filepath.Join(dir, filepath.FromSlash(board.Boot.Path))
	run(t, "sbattach", "--remove", name)
	kernel, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// Two arguments of the same length, so that nothing moves.
	if bytes.Count(kernel, []byte(" loglevel=4 ")) != 1 {
		t.Fatal("the command line is not what it was")
	}
	kernel, err = uki.Sign(bytes.Replace(kernel, []byte(" loglevel=4 "), []byte(" rdinit=/no "), 1), set.DB.Key, set.DB.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, kernel, 0o644); err != nil {
		t.Fatal(err)
	}
	if board.Boot, err = release.Describe(board.Boot.Path, bytes.NewReader(kernel)); err != nil {
		t.Fatal(err)
	}
	m.Boards = map[string]release.Board{"x86-uefi": board}
	manifest, sig, err := release.Sign(&m, set.Release)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{release.ManifestName: manifest, release.SignatureName: sig} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func versionOf(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, release.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	var m release.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m.Version
}

// A machine that looks at a web server gets a release whose kernel dies: it comes back by itself, says why, and does not try it
// again. Then a good one is published: the machine brings it, tries it and keeps it, and its pods are there.
func TestUpdateOverTheWire(t *testing.T) {
	if !*inUpdate {
		t.Skip("updates the image in QEMU: run make vm-update")
	}
	*inVM = true
	const long = 3 * patience // several starts, each on an emulated processor
	keyDir, repo := built(t, "keys"), filepath.Join(t.TempDir(), "repo")
	server := httptest.NewServer(http.FileServer(http.Dir(repo)))
	defer server.Close()
	skerry := built(t, "bin/skerry")
	publish := func(dir string) {
		t.Helper()
		t.Log(run(t, skerry, "update", "publish", "--keys", keyDir, "--release", dir, "--repo", repo))
	}
	config := filepath.Join(t.TempDir(), "node.yaml")
	text, err := os.ReadFile(built(t, "run/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	port := server.Listener.Addr().String()[strings.LastIndex(server.Listener.Addr().String(), ":")+1:]
	text = fmt.Appendf(text, "update: {source: \"http://10.0.2.2:%s\", interval: 30s, deadline: 30m}\n", port)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	o := machineOf(t)
	o.Image = filepath.Join(t.TempDir(), "update.img")
	run(t, skerry, "image", "build", "--board", "x86-uefi", "--release", built(t, "release"), "--keys", keyDir, "--config", config, "--secure-boot=false", "-o", o.Image)
	o.Restrict = false
	old, next := versionOf(t, built(t, "release")), versionOf(t, built(t, "next"))

	publish(dying(t, built(t, "release"), keyDir, "98.0.0"))
	n := power(t, o)
	n.expect(long, `skerry\| slot +a, Secure Boot off`)
	n.expect(long, `skerry: node: Ready`)
	n.expect(long, `skerry: restart: a restart was asked for`)
	for range 3 {
		n.expect(long, `\] Kernel panic - not syncing`)
	}
	why := n.expect(long, `skerry: update: (release 98.0.0 in slot b did not come up: .*)`)[1]
	t.Log(why)
	if !strings.Contains(why, "before it reached the data partition") || !strings.Contains(why, "went back to slot a") {
		t.Errorf("the reason is %q", why)
	}
	if text := n.Text(); !strings.Contains(text, "switch root: slot a, release "+old) {
		t.Errorf("slot a does not run %s", old)
	}
	n.expect(long, `skerry: node: Ready`)

	publish(built(t, "next"))
	n.expect(long, `skerry: restart: a restart was asked for`)
	began := time.Now()
	n.expect(long, `skerry: switch root: slot b, release `+next)
	n.expect(long, `skerry: judge slot: slot b is on trial`)
	n.expect(long, `skerry: update: slot b, release `+next+`, is kept`)
	t.Logf("from the restart to Keep: %v", time.Since(began).Round(time.Second))

	n.PowerCut()
	n = power(t, o)
	n.expect(long, `skerry: switch root: slot b, release `+next)
	n.expect(long, `skerry: node: Ready`)
	if text := n.Text(); strings.Contains(text, "(on trial)") {
		t.Error("a kept slot is on trial again")
	}
}
