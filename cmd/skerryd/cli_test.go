package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/server/bootstrapdata"
)

// skerryd runs a command that ends by itself.
func skerryd(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errs strings.Builder
	if code := run(t.Context(), args, &out, &errs); code != want {
		t.Fatalf("skerryd %s: %d, want %d: %s", strings.Join(args, " "), code, want, errs.String())
	}
	return out.String() + errs.String()
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := skerryd(t, 0, "completion", shell); !strings.Contains(out, "skerryd") {
			t.Errorf("%s: %.100q", shell, out)
		}
	}
	if out := skerryd(t, 0, "__complete", "snapshot", "re"); !strings.Contains(out, "restore") {
		t.Errorf("snapshot re completes to %q", out)
	}
}

// The flag --root stands before any command, and names a folder.
func TestRootFlag(t *testing.T) {
	skerryd(t, 2, "--root")
	skerryd(t, 2, "--root=")
	for _, args := range [][]string{{"--root", "/no/such/folder", "version"}, {"--root=/no/such/folder", "version"}, {"--root", "/no/such/folder", "crictl", "ps"}} {
		if out := skerryd(t, 2, args...); !strings.Contains(out, "/no/such/folder") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if out := skerryd(t, 0, "--help"); !strings.Contains(out, "skerry.local/host:1 --arguments-only -- update status") {
		t.Errorf("the help has no example:\n%s", out)
	}
	if os.Geteuid() != 0 {
		return
	}
	// What another root has is what is read: in a process of its own, for there is no way back.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.yaml"), []byte("no config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "SKERRYD_TEST_ARGS=--root "+dir+" server --config /node.yaml")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "/node.yaml") || strings.Contains(string(out), "no such file") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestMain is skerryd where a test asks for it.
func TestMain(m *testing.M) {
	if args := os.Getenv("SKERRYD_TEST_ARGS"); args != "" {
		os.Exit(run(context.Background(), strings.Fields(args), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// Certificate rotate takes all of a server's certificates away, etcd's among them, for the running server to make anew.
func TestCertificateRotate(t *testing.T) {
	dir := t.TempDir()
	c := pki.Config{DataDir: dir, NodeName: "s1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"), Domain: "cluster.local", Port: 6443, Etcd: true, Now: time.Now()}
	if _, err := pki.Ensure(c); err != nil {
		t.Fatal(err)
	}
	listed := func() (out map[string]pki.Status) {
		t.Helper()
		var all []pki.Status
		if err := json.Unmarshal([]byte(skerryd(t, 0, "certificate", "check", "--json", "--data-dir", dir)), &all); err != nil {
			t.Fatal(err)
		}
		out = map[string]pki.Status{}
		for _, s := range all {
			out[s.File] = s
		}
		return out
	}
	before := listed()
	if out := skerryd(t, 0, "certificate", "rotate", "--data-dir", dir); !strings.HasPrefix(out, "12 certificates are made anew") {
		t.Errorf("rotate says %q", out)
	}
	c.Now = c.Now.Add(time.Hour)
	if _, err := pki.Ensure(c); err != nil {
		t.Fatal(err)
	}
	for file, s := range listed() {
		if was := before[file]; s.CA != (s == was) {
			t.Errorf("%s: an authority %v, and the same as before %v", file, s.CA, s == was)
		}
	}
	skerryd(t, 2, "certificate", "rotate", "--data-dir", t.TempDir())
}

// Snapshots are saved, listed, pruned and restored on the command line.
func TestSnapshotCommands(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := machine.DefaultServer()
	s.DataDir = dir
	at, err := server.OpenStored(server.StoredConfig{Settings: s, NodeName: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- at.Store.Run(ctx, func() { close(up) }) }()
	<-up
	if d, err := bootstrapdata.Take(ctx, at.Store.Endpoint(), "the-clusters-own-token", nil); d != nil || err != nil {
		t.Errorf("in an empty datastore: %v, %v", d, err)
	}
	cancel()
	if err := <-out; err != nil {
		t.Fatal(err)
	}
	snapshot := func(want int, args ...string) string {
		t.Helper()
		return skerryd(t, want, append([]string{"snapshot", args[0], "--data-dir", dir, "--node-name", "s1"}, args[1:]...)...)
	}
	names := func() (out []string) {
		t.Helper()
		var all []struct{ Name string }
		if err := json.Unmarshal([]byte(snapshot(0, "list", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			out = append(out, e.Name)
		}
		return out
	}
	if got := names(); len(got) != 0 || got == nil && snapshot(0, "list", "--json") != "[]\n" {
		t.Errorf("at first there are %q", got)
	}
	for range 3 {
		snapshot(0, "save", "--name", "mine")
	}
	snapshot(0, "save")
	all := names()
	if len(all) != 4 {
		t.Fatalf("saved are %q", all)
	}
	if out := snapshot(0, "list"); !strings.Contains(out, all[0]) || !strings.Contains(out, filepath.Join(dir, "server", "db", "snapshots")) {
		t.Errorf("list says %q", out)
	}
	if out := snapshot(0, "prune", "--name", "mine", "--snapshot-retention", "1"); strings.Count(out, " removed from ") != 2 {
		t.Errorf("prune says %q", out)
	}
	left := names()
	if len(left) != 2 {
		t.Errorf("after prune there are %q", left)
	}
	if out := snapshot(0, "restore", left[0]); !strings.Contains(out, " restored\n") || !strings.Contains(out, "is kept as") {
		t.Errorf("restore says %q", out)
	}
	if out := snapshot(1, "restore", "nothing-like-it"); !strings.Contains(out, "there is no snapshot nothing-like-it; see skerryd snapshot list") {
		t.Errorf("restore of nothing says %q", out)
	}
	snapshot(2, "restore")
}
