package nodes

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-os/skerry/pkg/notify"
)

// Patience is how long anything may take on a busy machine.
const Patience = 5 * time.Minute

// Node is a machine of the test: switched on from the start, with nothing running on it.
type Node struct {
	Name string
	IP   netip.Addr
	Dir  string // the node's own, on the host and on the node under the same name

	w     *Network
	link  string // the bridge's end of the wire
	id    string // machine-id
	space *space
	lag   *relay // or nil

	run *running // skerryd, or nil
}

// running is one run of skerryd.
type running struct {
	outer *exec.Cmd // nsenter, which waits for it
	pid   int       // skerryd's own
	began time.Time
	ready chan struct{} // closed when it says READY
	took  time.Duration // until then
	done  chan struct{} // closed when it has ended
	code  int
	bell  *notify.Listener
}

// Node adds a machine to the wire. Its name is its host name and must be short, as "s1".
func (w *Network) Node(name string) *Node {
	w.t.Helper()
	i := len(w.nodes) + 1
	n := &Node{Name: name, IP: netip.AddrFrom4([4]byte{10, 98, byte(i >> 8), byte(i)}), Dir: filepath.Join(w.dir, name), w: w, link: fmt.Sprintf("to%d", i)}
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.nodes = append(w.nodes, n)
	n.newMachineID()
	n.PowerOn()
	return n
}

// newMachineID is what makes it another machine.
func (n *Node) newMachineID() {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	n.id = hex.EncodeToString(b)
	if err := os.WriteFile(n.machineIDFile(), []byte(n.id+"\n"), 0o444); err != nil {
		n.w.t.Fatal(err)
	}
}

func (n *Node) machineIDFile() string { return filepath.Join(n.Dir, "machine-id") }

// boot turns the holder's namespaces into a machine: $1 its name, $2 the file of its machine-id. Version 1's hierarchies are
// mounted anew, so that the node sees its own cgroup as the root of each. In version 2 a cgroup with processes cannot give
// controllers to those below, so the node's processes are one level down.
const boot = `set -e
hostname "$1"
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
if [ -e /etc/machine-id ]; then mount --bind "$2" /etc/machine-id; fi
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  umount -l /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/machine
  echo 0 >/sys/fs/cgroup/machine/cgroup.procs
else
  awk '$3 == "cgroup" { print $2, $4 }' /proc/mounts | while read -r at options; do
    umount "$at"; c=$(basename "$at"); if [ "$c" = systemd ]; then c=none,name=systemd; fi; mount -t cgroup -o "$c" cgroup "$at"
  done
fi
` + hold

// PowerOn makes the machine of an off node anew, with its old folder and address.
func (n *Node) PowerOn() {
	n.w.t.Helper()
	if n.space != nil {
		n.w.t.Fatalf("%s is on", n.Name)
	}
	join := strings.Builder{}
	for _, dir := range n.cgroups("") {
		if err := makeCgroup(dir); err != nil {
			n.w.t.Fatal(err)
		}
		fmt.Fprintf(&join, "echo $$ >%s/cgroup.procs; ", dir)
	}
	cmd := exec.Command("sh", "-c", join.String()+`exec unshare --mount --pid --cgroup --uts --ipc --net --fork --kill-child --mount-proc bash -c "$0" boot "$@"`,
		boot, n.Name, n.machineIDFile())
	var err error
	if n.space, err = start(cmd, true); err != nil {
		n.w.t.Fatalf("%s: %v", n.Name, err)
	}
	n.w.ip("link add %s master bridge type veth peer name eth0 netns %d", n.link, n.space.pid)
	n.w.ip("link set %s up", n.link)
	n.ip("link set lo up")
	n.address()
}

func (n *Node) address() {
	n.w.t.Helper()
	n.ip("addr flush dev eth0")
	n.ip("addr add %s/16 dev eth0", n.IP)
	b := n.IP.As4()
	n.ip("addr add fd98::%x/64 dev eth0 nodad", int(b[2])<<8|int(b[3]))
	n.ip("link set eth0 up")
	n.ip("route replace default via %s", Gateway)
	n.ip("-6 route replace default via fd98::ffff")
}

// IP6 is the node's second address.
func (n *Node) IP6() netip.Addr {
	b := n.IP.As4()
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x98, 14: b[2], 15: b[3]})
}

// cgroups are the node's own; inner is "machine" for where its processes are in version 2.
func (n *Node) cgroups(inner string) (dirs []string) {
	for _, root := range cgroupRoots() {
		dir := filepath.Join(root, fmt.Sprintf("%s%d-%s", cgroupPrefix, os.Getpid(), n.Name))
		if root == "/sys/fs/cgroup" {
			dir = filepath.Join(dir, inner)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// makeCgroup also fills a cpuset of version 1, which takes no process while it is empty.
func makeCgroup(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "" {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// PullThePlug ends every process of the node at once, pods too. What the kernel was told to write is kept, unlike on a machine.
func (n *Node) PullThePlug() {
	n.w.t.Helper()
	r := n.run
	n.endLag()
	n.w.ip("link del %s", n.link) // the kernel would take it away too, but later
	n.space.end()
	n.space = nil
	if r != nil {
		<-r.done
		n.run = nil
	}
	n.removeCgroups()
}

// Reflash is a new machine in the old one's place: same name and address, nothing kept.
func (n *Node) Reflash() {
	n.w.t.Helper()
	n.PullThePlug()
	if err := os.RemoveAll(n.DataDir()); err != nil {
		n.w.t.Fatal(err)
	}
	if err := os.Remove(n.machineIDFile()); err != nil {
		n.w.t.Fatal(err)
	}
	n.newMachineID()
	n.PowerOn()
}

func (n *Node) remove() {
	if n.w.t.Failed() && n.run != nil {
		n.w.t.Logf("the end of %s's log:\n%s", n.Name, n.Tail(6000))
	}
	if n.space != nil {
		n.PullThePlug()
	}
	n.removeCgroups()
}

func (n *Node) removeCgroups() {
	for _, dir := range n.cgroups("") {
		removeCgroup(dir)
	}
}

func (n *Node) ip(format string, a ...any) {
	n.w.t.Helper()
	if err := n.space.run("ip", strings.Fields(fmt.Sprintf(format, a...))...); err != nil {
		n.w.t.Fatalf("%s: %v", n.Name, err)
	}
}

// DataDir is skerryd's --data-dir.
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "data") }

// Kubeconfig is the administrator's, on a server.
func (n *Node) Kubeconfig() string { return filepath.Join(n.Dir, "kubeconfig") }

// URL is for --server of others.
func (n *Node) URL() string { return "https://" + n.IP.String() + ":6443" }

// Token is the text that lets others join this server.
func (n *Node) Token() string {
	n.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.DataDir(), "server", "node-token"))
	if err != nil {
		n.w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Log is all that skerryd wrote, in all its runs.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail is the end of Log.
func (n *Node) Tail(bytes int) string {
	log := n.Log()
	return log[max(0, len(log)-bytes):]
}

func (n *Node) logFile() string { return filepath.Join(n.Dir, "skerryd.log") }

// Command is a program on the node, with its processes and files around it.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	var into strings.Builder
	for _, dir := range n.cgroups("machine") {
		fmt.Fprintf(&into, "echo $$ >%s/cgroup.procs; ", dir)
	}
	inner := n.space.enter("--mount --uts --ipc --net --pid --cgroup", name, args)
	return exec.CommandContext(ctx, "sh", append([]string{"-c", into.String() + `exec nsenter "$@"`, "sh"}, inner...)...)
}

// Skerryd runs skerryd with a command that ends by itself, as "token list", and returns its exit code and what it wrote.
func (n *Node) Skerryd(args ...string) (code int, output string) {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(n.w.t.Context(), Patience)
	defer cancel()
	cmd := n.Command(ctx, n.program("skerryd"), args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		n.w.t.Fatalf("%s: skerryd %s: %v\n%s", n.Name, strings.Join(args, " "), err, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func (n *Node) program(name string) string { return filepath.Join(n.w.programs, name) }

// Start runs skerryd as "server" or "agent" (role) with the flags, and does not wait for it. Name, data folder and the place of
// the kubeconfig are set; flags of the same name win.
func (n *Node) Start(role string, flags ...string) {
	n.w.t.Helper()
	if n.run != nil {
		n.w.t.Fatalf("%s: skerryd runs", n.Name)
	}
	socket := filepath.Join(n.Dir, "notify.sock")
	bell, err := notify.Listen(socket)
	if err != nil {
		n.w.t.Fatal(err)
	}
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.w.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the process has a copy
	args := []string{role, "--data-dir", n.DataDir(), "--node-name", n.Name}
	if role == "server" {
		args = append(args, "--write-kubeconfig", n.Kubeconfig())
	}
	cmd := n.Command(context.WithoutCancel(n.w.t.Context()), n.program("skerryd"), append(args, flags...)...)
	cmd.Env = append(os.Environ(), notify.SocketEnv+"="+socket)
	cmd.Stdout, cmd.Stderr = log, log
	r := &running{outer: cmd, began: time.Now(), bell: bell, ready: make(chan struct{}), done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		n.w.t.Fatal(err)
	}
	n.run = r
	go r.listen()
	go func() {
		_ = cmd.Wait() // the code says it all
		r.code = cmd.ProcessState.ExitCode()
		_ = bell.Close()
		close(r.done)
	}()
	n.Eventually("skerryd has started", func() (bool, string) {
		pid, err := onlyChild(cmd.Process.Pid) // of nsenter, which the shell has become
		if err != nil {
			return r.ended(), err.Error()
		}
		r.pid = pid
		return true, ""
	})
}

func (r *running) listen() {
	for said := false; ; {
		m, err := r.bell.Next()
		if err != nil {
			return
		}
		if m.Ready() && !said { // and read on: a full queue would hold skerryd up
			said = true
			r.took = time.Since(r.began)
			close(r.ready)
		}
	}
}

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// Ready waits until skerryd says that the node is, and returns how long that took from its start.
func (n *Node) Ready() time.Duration {
	n.w.t.Helper()
	select {
	case <-n.run.ready:
	case <-n.run.done:
		n.w.t.Fatalf("%s: skerryd ended with %d\n%s", n.Name, n.run.code, n.Tail(6000))
	case <-time.After(Patience):
		n.w.t.Fatalf("%s: not ready within %v\n%s", n.Name, Patience, n.Tail(6000))
	}
	return n.run.took
}

// Exited waits until skerryd ends by itself and returns its exit code.
func (n *Node) Exited() int {
	n.w.t.Helper()
	select {
	case <-n.run.done:
	case <-time.After(Patience):
		n.w.t.Fatalf("%s: skerryd has not ended within %v\n%s", n.Name, Patience, n.Tail(6000))
	}
	code := n.run.code
	n.run = nil
	return code
}

// Running says whether skerryd runs.
func (n *Node) Running() bool { return n.run != nil && !n.run.ended() }

// PID is skerryd's, as this host counts.
func (n *Node) PID() int { return n.run.pid }

// Stop asks skerryd to end and waits; pods live on. It is an error of the test if it does not end well.
func (n *Node) Stop() {
	n.w.t.Helper()
	n.signal(syscall.SIGTERM)
	if code := n.Exited(); code != 0 {
		n.w.t.Errorf("%s: skerryd ended with %d after SIGTERM\n%s", n.Name, code, n.Tail(3000))
	}
}

// Kill is kill -9; pods live on.
func (n *Node) Kill() {
	n.w.t.Helper()
	n.signal(syscall.SIGKILL)
	n.Exited()
}

func (n *Node) signal(s syscall.Signal) {
	n.w.t.Helper()
	if n.run == nil {
		n.w.t.Fatalf("%s: skerryd does not run", n.Name)
	}
	if err := syscall.Kill(n.run.pid, s); err != nil {
		n.w.t.Fatalf("%s: skerryd ended by itself: %v\n%s", n.Name, err, n.Tail(6000))
	}
}

// Try runs kubectl on the node, as its administrator.
func (n *Node) Try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.w.t.Context(), Patience)
	defer cancel()
	cmd := n.Command(ctx, n.program("kubectl"), append([]string{"--kubeconfig", n.Kubeconfig(), "--request-timeout=60s"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: kubectl %s: %w: %s%s", n.Name, strings.Join(args, " "), err, stderr.String(), stdout.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Kubectl is Try that must succeed.
func (n *Node) Kubectl(args ...string) string {
	n.w.t.Helper()
	out, err := n.Try("", args...)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return out
}

// Apply makes the objects of a YAML text, once the API takes them.
func (n *Node) Apply(yaml string) {
	n.w.t.Helper()
	n.Eventually("kubectl apply", func() (bool, string) {
		out, err := n.Try(yaml, "apply", "-f", "-")
		if err != nil {
			return false, err.Error()
		}
		return true, out
	})
}

// Becomes asks kubectl until it answers what is wanted.
func (n *Node) Becomes(want string, args ...string) {
	n.w.t.Helper()
	n.Eventually("kubectl "+strings.Join(args, " ")+" says "+want, func() (bool, string) {
		out, err := n.Try("", args...)
		if err != nil {
			return false, err.Error()
		}
		return out == want, out
	})
}

// ReadyInAPI waits until the API says that all of these nodes are Ready.
func (n *Node) ReadyInAPI(nodes ...*Node) {
	n.w.t.Helper()
	for _, other := range nodes {
		n.Becomes("True", "get", "node", other.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	}
}

// Eventually asks until f says yes, and fails the test with f's last state if it never does.
func (n *Node) Eventually(what string, f func() (done bool, state string)) {
	n.w.t.Helper()
	n.Within(Patience, what, f)
}

// Within is Eventually with a limit of its own.
func (n *Node) Within(limit time.Duration, what string, f func() (done bool, state string)) {
	n.w.t.Helper()
	end := time.After(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		done, state := f()
		if done {
			return
		}
		select {
		case <-end:
			n.w.t.Fatalf("%s: not within %v: %s; last: %s\n%s", n.Name, limit, what, state, n.Tail(6000))
		case <-tick.C:
		}
	}
}

// Interrupt asks skerryd to end, with whatever code: one that still waits to join has not succeeded.
func (n *Node) Interrupt() {
	n.w.t.Helper()
	n.signal(syscall.SIGTERM)
	n.Exited()
}
