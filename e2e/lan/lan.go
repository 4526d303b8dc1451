// Package lan is a bridge in a network namespace of its own, for tests whose machines are cabled together. It needs root.
package lan

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const (
	Bridge  = "lan"
	Address = "10.11.12.1" // of this host at the bridge, in a network of 24 bits
)

// inside names the test that runs in a namespace.
const inside = "SKERRY_TEST_IN_NAMESPACE"

// LAN is the bridge.
type LAN struct {
	t    *testing.T
	taps int
}

// New lays the cable, and the test goes on in the namespace with it. Outside, New runs the test there, in a process with args as its
// flags, and gives nil when that has ended: the test returns then.
func New(t *testing.T, args ...string) *LAN {
	t.Helper()
	if os.Getenv(inside) != t.Name() {
		c := exec.Command("/proc/self/exe", append([]string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=0"}, args...)...)
		c.Env = append(os.Environ(), inside+"="+t.Name())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			t.Errorf("in the namespace: %v", err)
		}
		return nil
	}
	l := &LAN{t: t}
	l.IP("link set lo up", "link add "+Bridge+" type bridge", "address add "+Address+"/24 dev "+Bridge, "link set "+Bridge+" up")
	return l
}

// IP runs commands of iproute2's ip.
func (l *LAN) IP(commands ...string) {
	l.t.Helper()
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			l.t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
}

// Tap is a new place at the bridge for a machine's card.
func (l *LAN) Tap() string {
	l.t.Helper()
	l.taps++
	tap := fmt.Sprintf("tap%d", l.taps)
	l.IP("tuntap add "+tap+" mode tap", "link set "+tap+" master "+Bridge+" up")
	return tap
}
