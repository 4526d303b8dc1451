package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tool runs a program of the release in the engine's network and fails the test if it does.
func (e *engine) tool(name string, args ...string) string {
	e.t.Helper()
	out, err := e.tryTool(name, args...)
	if err != nil {
		e.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func (e *engine) tryTool(name string, args ...string) (string, error) {
	all := e.inside(append([]string{filepath.Join(filepath.Dir(e.program), name)}, args...)...)
	cmd := exec.CommandContext(e.t.Context(), all[0], all[1:]...)
	cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT=unix://"+filepath.Join(e.runDir(), "containerd.sock"), "KUBECONFIG="+e.kubeconfig())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What people have in their fingers works: crictl, helm, a change of the key that secrets are stored with, and an end that
// leaves nothing behind.
func TestNativeTools(t *testing.T) {
	e := newEngine(t)
	e.start()
	c := e.cluster()
	c.ready()
	part := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			e.t, c.T = t, t // what fails there fails this part, and the next one runs
			f(t)
		})
		e.t, c.T = t, t
	}
	part("crictl", func(t *testing.T) { crictl(t, e, c) })
	part("a pod with the node's root", func(t *testing.T) {
		out := c.typed([]string{"--", "/host" + e.program, "--root", "/host"}, "crictl", "--runtime-endpoint", "unix://"+filepath.Join(e.runDir(), "containerd.sock"), "ps")
		if !strings.Contains(out, "POD ID") || !strings.Contains(out, "coredns") {
			t.Errorf("crictl ps: %s", out)
		}
	})
	part("helm", func(t *testing.T) { helm(t, e, c) })
	part("secrets-encrypt", func(t *testing.T) { rotateKeys(t, e, c) })
	part("killall", func(t *testing.T) { endAll(t, e) })
}

func crictl(t *testing.T, e *engine, c cluster) {
	id := e.tool("crictl", "ps", "-q", "--name", "coredns", "--state", "running")
	if len(id) != 64 {
		t.Fatalf("crictl ps -q: %q", id)
	}
	for _, want := range []string{"CONTAINER", "POD ID", "NAMESPACE", id[:13], "Running", "kube-system"} {
		if out := e.tool("crictl", "ps"); !strings.Contains(out, want) {
			t.Errorf("crictl ps has no %q:\n%s", want, out)
		}
	}
	var list struct {
		Containers []struct{ ID, PodSandboxID, State string }
	}
	if err := json.Unmarshal([]byte(e.tool("crictl", "ps", "-o", "json")), &list); err != nil || len(list.Containers) == 0 || list.Containers[0].State != "CONTAINER_RUNNING" {
		t.Errorf("crictl ps -o json: %+v, %v", list, err)
	}
	if out := e.tool("crictl", "logs", "--tail", "50", id[:13]); !strings.Contains(out, ".:53") {
		t.Errorf("crictl logs: %s", out)
	}
	if out := e.tool("crictl", "exec", id[:13], "/skerry-addons", "coredns", "-version"); !strings.Contains(out, "CoreDNS") {
		t.Errorf("crictl exec: %s", out)
	}
	if out, err := e.tryTool("crictl", "exec", id[:13], "/skerry-addons", "coredns", "-no-such-flag"); err == nil {
		t.Errorf("crictl exec of a command that fails is no failure: %s", out)
	}
	var info struct {
		Status struct{ ID string }
		Info   struct{ PID int }
	}
	if err := json.Unmarshal([]byte(e.tool("crictl", "inspect", id[:8])), &info); err != nil || info.Status.ID != id || info.Info.PID == 0 {
		t.Errorf("crictl inspect: %+v, %v", info, err)
	}
	pod := e.tool("crictl", "pods", "-q", "--name", "coredns")
	for _, args := range [][]string{{"inspectp", pod}, {"images"}, {"images", "--digests"}, {"inspecti", "skerry.local/pause:1"}, {"stats"}, {"stats", "-o", "json"}, {"statsp"}, {"info"}, {"version"}, {"imagefsinfo"}, {"rmi", "--prune"}} {
		if out := e.tool("crictl", args...); out == "" && args[0] != "rmi" {
			t.Errorf("crictl %v says nothing", args)
		}
	}
	if out := e.tool("crictl", "images"); !strings.Contains(out, "skerry.local/pause") {
		t.Errorf("prune took what the release brought:\n%s", out)
	}
	if out, err := e.tryTool("crictl", "rm", id); err == nil {
		t.Errorf("crictl rm took a container that runs: %s", out)
	}
	// Kubernetes brings back what is stopped below it.
	e.tool("crictl", "stop", id)
	c.eventually(patience, func(out string) bool { return out != "" && out != "0" }, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.containerStatuses[0].restartCount}")
}

func helm(t *testing.T, e *engine, c cluster) {
	program := filepath.Join(t.TempDir(), "helm")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", program, "helm.sh/helm/v4/cmd/helm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building helm: %v\n%s", err, out)
	}
	run := func(args ...string) string {
		t.Helper()
		all := e.inside(append([]string{program}, args...)...)
		cmd := exec.CommandContext(t.Context(), all[0], all[1:]...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+e.kubeconfig(), "HELM_CACHE_HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("helm %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("install", "greeter", "testdata/chart", "--wait", "--timeout", "3m")
	run("upgrade", "greeter", "testdata/chart", "--set", "greeting=goodbye", "--wait", "--timeout", "3m")
	if out := run("list"); !strings.Contains(out, "greeter") || !strings.Contains(out, "deployed") {
		t.Errorf("helm list: %s", out)
	}
	c.eventually(patience, func(out string) bool { return out == "goodbye" }, "get", "configmap", "greeter", "-o", "jsonpath={.data.greeting}")
	run("rollback", "greeter", "1", "--wait", "--timeout", "3m")
	c.eventually(patience, func(out string) bool { return out == "hello" }, "get", "configmap", "greeter", "-o", "jsonpath={.data.greeting}")
	run("uninstall", "greeter", "--wait", "--timeout", "3m")
}

// rotateKeys changes the key under a running server; afterwards the old key is in no file and no stored secret, and all
// secrets are what they were, after a restart too.
func rotateKeys(t *testing.T, e *engine, c cluster) {
	if _, err := c.try(t.Context(), "", "create", "secret", "generic", "kept", "--from-literal=word=skerry-was-here"); err != nil {
		t.Fatal(err)
	}
	secretIs := func(word string) {
		t.Helper()
		c.eventually(patience, func(out string) bool { return out == word }, "get", "secret", "kept", "-o", `go-template={{.data.word | base64decode}}`)
	}
	type status struct {
		Enabled, Loaded           bool
		Stage, ActiveKey, Problem string
		Keys                      []string
	}
	ask := func() (s status) {
		t.Helper()
		if err := json.Unmarshal([]byte(e.tool("skerryd", "secrets-encrypt", "status", "--data-dir", e.data(), "--json")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := ask(); !s.Enabled || !s.Loaded || s.Stage != "start" || s.ActiveKey != "key1" {
		t.Fatalf("at first: %+v", s)
	}
	command := func(name string) string {
		t.Helper()
		return e.tool("skerryd", "secrets-encrypt", name, "--data-dir", e.data())
	}
	// One step, as if the command had been cut short, and then the rest.
	command("prepare")
	if s := ask(); s.Stage != "prepare" || !slices.Equal(s.Keys, []string{"key1", "key2"}) || !s.Loaded {
		t.Fatalf("prepared: %+v", s)
	}
	if out, err := e.tryTool("skerryd", "secrets-encrypt", "prepare", "--data-dir", e.data()); err == nil {
		t.Errorf("prepared twice: %s", out)
	}
	t.Log(command("rotate-keys"))
	if s := ask(); s.Stage != "start" || !slices.Equal(s.Keys, []string{"key2"}) || !s.Loaded {
		t.Fatalf("rotated: %+v", s)
	}
	secretIs("skerry-was-here")
	e.stop()
	e.start()
	secretIs("skerry-was-here")
	// Off, the word stands in the database; on again, it does not stay there.
	command("disable")
	if s := ask(); s.Enabled {
		t.Errorf("disabled: %+v", s)
	}
	secretIs("skerry-was-here")
	command("enable")
	if s := ask(); !s.Enabled || s.Stage != "start" {
		t.Errorf("enabled: %+v", s)
	}
	secretIs("skerry-was-here")
}

// endAll ends the pods that outlive the server, refuses while it runs, and removes the folder.
func endAll(t *testing.T, e *engine) {
	if out, err := e.tryTool("skerryd", "killall", "--data-dir", e.data()); err == nil || !strings.Contains(out, "another skerryd uses this folder") {
		t.Errorf("killall under a running server: %v: %s", err, out)
	}
	e.stop()
	if len(e.shims()) == 0 {
		t.Fatal("no pod outlived the server")
	}
	t.Log(e.tool("skerryd", "killall", "--data-dir", e.data()))
	if left := e.shims(); len(left) > 0 {
		t.Errorf("pods are still held by %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, e.dir) || strings.Contains(line, e.runDir()+"/") {
			t.Errorf("still mounted: %s", line)
		}
	}
	if _, err := os.Stat(e.runDir()); !os.IsNotExist(err) {
		t.Errorf("%s: %v", e.runDir(), err)
	}
	tables, err := exec.CommandContext(t.Context(), "nsenter", "--net=/run/netns/"+e.netns, "nft", "list", "tables").Output()
	if err != nil || strings.TrimSpace(string(tables)) != "" {
		t.Errorf("rules are left: %v\n%s", err, tables)
	}
	// The node comes back as it was.
	e.start()
	e.cluster().ready()
	e.stop()
	if out, err := e.tryTool("skerryd", "uninstall", "--data-dir", e.data()); err == nil || !strings.Contains(out, "nothing was done") {
		t.Errorf("uninstall without an answer: %v: %s", err, out)
	}
	e.tool("skerryd", "uninstall", "--data-dir", e.data(), "--yes")
	if _, err := os.Stat(e.data()); !os.IsNotExist(err) {
		t.Errorf("the data folder: %v", err)
	}
}
