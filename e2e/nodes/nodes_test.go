package nodes_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
)

var onHost = flag.Bool("nodes", false, "make nodes in namespaces of this host; needs root")

// What the tests of clusters take for granted: machines that reach each other, unless told otherwise, and see only themselves.
func TestNodesAreMachines(t *testing.T) {
	if !*onHost {
		t.Skip("makes namespaces, as root: add -args -nodes (or run make test)")
	}
	w := nodes.New(t, t.TempDir())
	a, b := w.Node("a"), w.Node("b")
	output := func(n *nodes.Node, script string) string {
		t.Helper()
		out, err := n.Command(t.Context(), "sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return strings.TrimSpace(string(out))
	}

	// Processes that lost their parent end: the machine goes on and keeps none of them.
	output(a, "for i in 1 2 3 4 5; do (sleep 0.0$i &); done")
	a.Within(10*time.Second, "orphans are gone", func() (bool, string) {
		left := output(a, "grep -lE '^State:.(Z|S)' /proc/[0-9]*/status | while read -r f; do grep -l '^Name:.sleep' $f; done; echo .")
		return left == ".", left
	})

	l := make(map[*nodes.Node]net.Listener)
	for _, n := range []*nodes.Node{a, b} {
		if err := n.OnNode(func() (err error) { l[n], err = net.Listen("tcp", ":7000"); return err }); err != nil {
			t.Fatal(err)
		}
		defer l[n].Close() //nolint:errcheck // nothing was sent
	}
	reaches := func(n *nodes.Node, to netip.Addr) bool {
		err := n.OnNode(func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(to.String(), "7000"), 300*time.Millisecond)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		return err == nil
	}
	soon := func(want bool, n *nodes.Node, to netip.Addr) {
		t.Helper()
		n.Within(10*time.Second, n.Name+" and "+to.String(), func() (bool, string) { return reaches(n, to) == want, "" })
	}
	for _, to := range []netip.Addr{b.IP, b.IP6()} {
		soon(true, a, to)
		a.Partition(b)
		soon(false, a, to)
		a.Partition()
		soon(false, b, a.IP)
		a.Heal()
		soon(true, a, to)
		b.Unplug()
		soon(false, a, to)
		b.Heal()
		soon(true, a, to)
	}
	a.Lose(100)
	soon(false, b, a.IP)
	a.Heal()
	soon(true, b, a.IP)
	for range 2 { // a second call replaces the first
		a.Lag(100*time.Millisecond, 20*time.Millisecond, 10)
	}
	var far net.Listener
	if err := a.OnNode(func() (err error) { far, err = net.Listen("tcp", ":7001"); return err }); err != nil {
		t.Fatal(err)
	}
	defer far.Close() //nolint:errcheck // all was read
	began := time.Now()
	received := make(chan []byte, 1)
	go func() {
		c, err := far.Accept()
		if err != nil {
			received <- nil
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		b, _ := io.ReadAll(c)
		_ = c.Close()
		received <- b
	}()
	sent := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
	if err := b.OnNode(func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(a.IP.String(), "7001"))
		if err != nil {
			return err
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("a long wire answers after %v", took)
		}
		_, err = c.Write(sent)
		return errors.Join(err, c.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-received, sent) {
		t.Error("what came over a bad wire is not what was sent")
	}
	a.Lag(0, 0, 100)
	soon(false, b, a.IP)
	a.Heal()
	soon(true, b, a.IP)
	if c, err := w.Dial("tcp", a.IP.String()+":7000"); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	old := a.IP
	a.SetIP(netip.MustParseAddr("10.98.7.7"))
	soon(true, b, a.IP)
	soon(false, b, old)

	if got := output(a, "hostname; cat /etc/machine-id") + "\n"; !strings.HasPrefix(got, "a\n") || got == output(b, "echo a; cat /etc/machine-id")+"\n" {
		t.Errorf("a is %q, b has the same machine-id", got)
	}
	if got := output(a, "cut -d: -f3 /proc/self/cgroup | sort -u"); got != "/" && got != "/\n/machine" && got != "/machine" {
		t.Errorf("a process of a node sees itself in the cgroups %q", got)
	}
	if got := output(a, "touch /run/of-a; ls /run/of-a"); got != "/run/of-a" || output(b, "ls /run") == output(a, "ls /run") {
		t.Errorf("/run is not a's own: %q", got)
	}

	mark := filepath.Join(a.Dir, "data")
	if err := os.Mkdir(mark, 0o700); err != nil {
		t.Fatal(err)
	}
	sleeper := a.Command(t.Context(), "sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	id := output(a, "cat /etc/machine-id")
	l[a].Close() //nolint:errcheck,gosec // its network goes
	a.PullThePlug()
	if err := sleeper.Wait(); err == nil {
		t.Error("a process outlived its machine")
	}
	a.PowerOn()
	if _, err := os.Stat(mark); err != nil || output(a, "cat /etc/machine-id") != id {
		t.Errorf("after a power cycle: %v, or another machine", err)
	}
	a.Reflash()
	if _, err := os.Stat(mark); err == nil || output(a, "cat /etc/machine-id") == id {
		t.Error("a machine is the same after it was flashed")
	}
}
