// Package nodes runs the nodes of a cluster on one Linux host, for tests: each in network, mount, process, host-name, IPC and
// cgroup namespaces of its own, with a private /run and machine-id, wired to one bridge that stands in a network namespace of
// its own too. So any number of clusters run side by side, none meets the host's network, and a test whose process is killed
// leaves no process behind.
//
// skerryd is not the namespaces' first process: it can be killed, and its pods live on, as on a machine. Node.PullThePlug is
// the other kind of end.
//
// It needs root, and of the programs on the host: unshare, nsenter, ip, nft, mount. Nothing in it sleeps; what takes time is
// waited for with Node.Eventually.
package nodes

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Gateway is the address of the bridge, where Network.Command's programs are found. Nodes have 10.98.0.1, 10.98.0.2, …, and
// fd98::1, fd98::2, …
var Gateway = netip.AddrFrom4([4]byte{10, 98, 255, 254})

// Network is a wire with nodes on it.
type Network struct {
	t        testing.TB
	programs string // folder of skerryd and kubectl
	dir      string
	bridge   *space
	nodes    []*Node
}

// New makes the wire. programs is the folder with skerryd and kubectl in it; everything else is found from there, as on the
// image. All that the test makes is removed at its end, however it ends.
func New(t testing.TB, programs string) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("nodes in namespaces need root")
	}
	raiseInotify(t)
	sweep()
	// Not t.TempDir: it is long, and containerd's sockets below it must be short.
	dir, err := os.MkdirTemp("", "skn-")
	if err != nil {
		t.Fatal(err)
	}
	w := &Network{t: t, programs: programs, dir: dir}
	t.Cleanup(w.remove)
	if w.bridge, err = newSpace("--net"); err != nil {
		t.Fatal(err)
	}
	w.ip("link set lo up")
	w.ip("link add bridge type bridge")
	w.ip("link set bridge up")
	w.ip("addr add %s/16 dev bridge", Gateway)
	w.ip("addr add fd98::ffff/64 dev bridge nodad")
	return w
}

// raiseInotify gives the nodes what init gives each machine of its own: all nodes here share one kernel's allowance for root.
func raiseInotify(t testing.TB) {
	t.Helper()
	const file, want = "/proc/sys/fs/inotify/max_user_instances", 8192
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && have >= want {
		return
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0); err != nil {
		t.Fatal(err)
	}
}

func (w *Network) remove() {
	for _, n := range w.nodes {
		n.remove()
	}
	w.bridge.end()
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}

// Command is a program of this host that runs on the wire, at Gateway: a database, a relay, curl.
func (w *Network) Command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(w.t.Context(), "nsenter", w.bridge.enter("--net", name, args)...)
}

// Within runs f on a thread that is on the wire, at Gateway, so that the test itself can dial and listen there. Connections
// made there go on working elsewhere.
func (w *Network) Within(f func() error) error { return w.bridge.within(f) }

// Dial is net.Dial on the wire.
func (w *Network) Dial(network, address string) (conn net.Conn, err error) {
	err = w.Within(func() error { conn, err = net.Dial(network, address); return err })
	return conn, err
}

// Listen is net.Listen on the wire, at Gateway.
func (w *Network) Listen(network, address string) (l net.Listener, err error) {
	err = w.Within(func() error { l, err = net.Listen(network, address); return err })
	return l, err
}

func (w *Network) ip(format string, a ...any) {
	w.t.Helper()
	if err := w.bridge.run("ip", strings.Fields(fmt.Sprintf(format, a...))...); err != nil {
		w.t.Fatal(err)
	}
}

// space is a set of namespaces and the process that holds them open. The process waits for the end of its standard input,
// which comes at the latest when this one ends.
type space struct {
	cmd   *exec.Cmd
	stdin io.Closer
	pid   int // of the first process in it, as this host counts
}

// hold is a space's first process. It says when it is there, and waits. Processes that lost their parent become its children:
// bash takes leave of each that ends and reads on, where other shells would stop reading, and the space would end.
const hold = `echo up; read -r _ || :`

// newSpace makes the namespaces of unshare's flags.
func newSpace(flags ...string) (*space, error) {
	return start(exec.Command("unshare", append(flags, "bash", "-c", hold)...), false)
}

// start runs cmd, whose process (or that one's child) is the holder, until it says that it is up.
func start(cmd *exec.Cmd, child bool) (*space, error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &space{cmd: cmd, stdin: stdin, pid: cmd.Process.Pid}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "up\n" {
		s.end()
		return nil, fmt.Errorf("namespaces: %q, %w: %s", line, err, stderr.String())
	}
	if child {
		if s.pid, err = onlyChild(s.pid); err != nil {
			s.end()
			return nil, err
		}
	}
	return s, nil
}

func onlyChild(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) != 1 {
		return 0, fmt.Errorf("process %d has %d children instead of one", pid, len(f))
	}
	return strconv.Atoi(f[0])
}

// end ends every process in the space, if it has a process namespace, and waits for it.
func (s *space) end() {
	if s == nil {
		return
	}
	_ = s.stdin.Close()
	if s.pid != s.cmd.Process.Pid {
		_ = unix.Kill(s.pid, unix.SIGKILL) // with the first process the kernel ends all others
	}
	_ = s.cmd.Wait()
}

// enter is nsenter's command line.
func (s *space) enter(flags, name string, args []string) []string {
	return append(append([]string{"--target", strconv.Itoa(s.pid)}, strings.Fields(flags)...), append([]string{"--", name}, args...)...)
}

func (s *space) run(name string, args ...string) error {
	out, err := exec.Command("nsenter", s.enter("--net", name, args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// within runs f on a thread in the space's network. The thread ends with it, since it cannot be used for anything else.
func (s *space) within(f func() error) error {
	out := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		out <- err
	}()
	return <-out
}

// cgroupPrefix begins the cgroups' names; the process that made them follows.
const cgroupPrefix = "skn-"

// cgroupRoots are the folders in which a node gets a cgroup: the hierarchies of version 1, or the one of version 2.
func cgroupRoots() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	var roots []string
	all, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, name := range all {
		if dir := filepath.Dir(name); filepath.Base(dir) != "unified" {
			roots = append(roots, dir)
		}
	}
	return roots
}

// sweep removes the cgroups of tests that were killed; their processes ended with them.
func sweep() {
	for _, root := range cgroupRoots() {
		all, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
		for _, dir := range all {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				removeCgroup(dir)
			}
		}
	}
}

// removeCgroup removes a cgroup and those below it, deepest first.
func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}
