package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-os/skerry/pkg/notify"
)

// engine is skerryd as a server on this host, in a network of its own, so that it meets no other.
type engine struct {
	t       *testing.T
	dir     string
	netns   string
	program string
	token   string
	flags   []string // more of them

	cmd   *exec.Cmd
	began time.Time // the last start
	done  chan error
	log   *os.File
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	if !*onHost {
		t.Skip("runs skerryd on this host as root: add -native (or run make test)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("skerryd needs root")
	}
	e := engineHere(t)
	e.netns = "skerry-e2e-" + fmt.Sprint(os.Getpid())
	e.must("ip", "netns", "add", e.netns)
	for _, args := range []string{
		"link set lo up", "link add wire type veth peer name far", "link set wire up", "link set far up",
		"address add 192.0.2.2/24 dev wire", "route add default via 192.0.2.1",
	} {
		e.must("ip", append([]string{"-n", e.netns}, strings.Fields(args)...)...)
	}
	return e
}

// engineHere is one in the network that the test is in.
func engineHere(t *testing.T) *engine {
	t.Helper()
	// Not t.TempDir: it is long, and containerd's sockets below it must be short.
	dir, err := os.MkdirTemp("", "skerry-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, dir: dir, program: built(t, "amd64/usr/bin/skerryd"), token: "e2e-token-e2e-token"}
	t.Cleanup(func() { e.remove() })
	return e
}

func (e *engine) must(name string, args ...string) {
	e.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		e.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// inside runs a command in the engine's network and else on this host: ip netns exec would hide the cgroups.
func (e *engine) inside(args ...string) []string {
	if e.netns == "" { // the test is in it
		return args
	}
	return append([]string{"nsenter", "--net=/run/netns/" + e.netns}, args...)
}

// start runs the server until it says that its node is Ready, and returns how long that took.
func (e *engine) start() (took time.Duration) {
	e.t.Helper()
	socket := filepath.Join(e.dir, "notify.sock")
	l, err := notify.Listen(socket)
	if err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	e.log, err = os.OpenFile(filepath.Join(e.dir, "skerryd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	args := e.inside(e.program, "server", "--data-dir", filepath.Join(e.dir, "data"), "--write-kubeconfig", e.kubeconfig(), "--token", e.token, "--node-name", "e2e")
	args = append(args, e.flags...)
	e.cmd = exec.Command(args[0], args[1:]...)
	e.cmd.Env = append(os.Environ(), notify.SocketEnv+"="+socket)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	e.began = time.Now()
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.done = make(chan error, 1)
	go func() { e.done <- e.cmd.Wait() }()
	ready := make(chan error, 1)
	go func() {
		for {
			m, err := l.Next()
			if err != nil || m.Ready() {
				ready <- err
				return
			}
		}
	}()
	select {
	case err := <-ready:
		if err != nil {
			e.t.Fatal(err)
		}
	case err := <-e.done:
		e.done = nil
		e.t.Fatalf("skerryd ended: %v\n%s", err, e.tail())
	case <-time.After(patience):
		e.t.Fatalf("not Ready within %v\n%s", patience, e.tail())
	}
	return time.Since(e.began)
}

func (e *engine) kubeconfig() string { return filepath.Join(e.dir, "kubeconfig") }

func (e *engine) tail() string {
	b, err := os.ReadFile(filepath.Join(e.dir, "skerryd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// stop asks it to end and waits until it has.
func (e *engine) stop() {
	e.t.Helper()
	if e.done == nil {
		return
	}
	for range 2 { // some senders send two at once
		if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			e.t.Fatal(err)
		}
	}
	select {
	case err := <-e.done:
		if err != nil {
			e.t.Errorf("skerryd ended with %v\n%s", err, e.tail())
		}
	case <-time.After(time.Minute):
		_ = e.cmd.Process.Kill()
		e.t.Errorf("skerryd did not end within a minute of SIGTERM: %v\n%s", <-e.done, e.tail())
	}
	e.done = nil
	_ = e.log.Close()
}

func (e *engine) cluster() cluster {
	kubectl := filepath.Join(filepath.Dir(e.program), "kubectl")
	return cluster{T: e.t, kubectl: append(e.inside(kubectl), "--kubeconfig", e.kubeconfig()), programs: filepath.Dir(e.program)}
}

// runDir is where the engine keeps what does not outlive the machine: pkg/agent names it after the data folder.
func (e *engine) runDir() string {
	sum := sha256.Sum256([]byte(e.data()))
	return "/run/skerry-" + hex.EncodeToString(sum[:4])
}

// shims lists the processes that hold this engine's pods.
func (e *engine) shims() []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(b), "containerd-shim-runc-v2") && strings.Contains(string(b), e.runDir()+"/") {
			var pid int
			if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// remove takes away what the server left on the host: pods live on without it by design.
func (e *engine) remove() {
	if e.t.Failed() {
		e.t.Logf("the end of skerryd's log:\n%s", e.tail())
	}
	if e.done != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		_, _ = e.cluster().try(ctx, "", "delete", "pods", "-A", "--all", "--force", "--grace-period=0")
		cancel()
	}
	e.stop()
	for _, pid := range e.shims() {
		killTree(pid)
	}
	if e.netns != "" {
		_ = exec.Command("ip", "netns", "delete", e.netns).Run()
	}
	for _, dir := range []string{e.dir, e.runDir()} {
		unmountBelow(dir)
		if err := os.RemoveAll(dir); err != nil {
			e.t.Error(err)
		}
	}
	removeEmptyCgroups()
}

// killTree ends a shim and the containers that are its children.
func killTree(pid int) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range children {
		b, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(b)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				killTree(child)
			}
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// removeEmptyCgroups takes away what kubelet made, deepest first. Those of pods that still run, of whatever cluster, are not
// empty and stay.
func removeEmptyCgroups() {
	tops, _ := filepath.Glob("/sys/fs/cgroup/kubepods*")
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods*")
	for _, top := range append(tops, v1...) {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			_ = os.Remove(dir)
		}
	}
}

func unmountBelow(dir string) {
	b, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = exec.Command("umount", "-l", f[1]).Run()
		}
	}
}

// A server on a plain host: Ready, pods from images it brought, and all of it again after a stop, with the pods never
// having noticed.
func TestNativeServer(t *testing.T) {
	e := newEngine(t)
	t.Logf("Ready %v after the first start", e.start())
	c := e.cluster()
	c.ready()
	c.mutates()
	c.described()
	c.start()
	before := c.works()
	holders := e.shims()
	if len(holders) == 0 {
		t.Error("no process holds the pods")
	}
	if fi, err := os.Stat(e.kubeconfig()); err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("kubeconfig: mode %v, %v", fi.Mode(), err)
	}
	e.stop()
	if got := e.shims(); len(got) != len(holders) {
		t.Errorf("pods were held by %v and are by %v: they should outlive the server", holders, got)
	}
	t.Logf("Ready %v after the second start", e.start())
	c.same(before, c.works())
	if restarts := c.eventually(patience, func(string) bool { return true }, "-n", "e2e", "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(restarts, "0 ") != "" {
		t.Errorf("containers restarted: %s", restarts)
	}
}
