package platform

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/platform/platformtest"
)

// space is a network namespace: do runs something in it, on a thread that is nobody else's.
type space struct {
	t    *testing.T
	work chan func() error
	done chan error
	fd   int
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, work: make(chan func() error), done: make(chan error)}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for f := range s.work {
			s.done <- f()
		}
	}()
	t.Cleanup(func() { close(s.work) })
	s.do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return errors.Join(err, up("lo"))
	})
	return s
}

func (s *space) do(f func() error) {
	s.t.Helper()
	s.work <- f
	if err := <-s.done; err != nil {
		s.t.Fatal(err)
	}
}

func up(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func route(name, to, via string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)})
}

// wire ties a namespace to the machine's own.
func (s *space) wire(here, there string) error {
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: there, PeerNamespace: netlink.NsFd(s.fd)})
}

// An instance whose hop limit is 1 gets answers that no router passes on. The machine asks on its own link and is answered; a pod,
// whose packets the machine passes on, is not. With a limit of 2, the pod would be.
func TestHopLimit(t *testing.T) {
	const env = "SKERRY_TEST_IN_POD"
	if os.Getenv(env) != "" {
		if _, err := aws(t.Context(), new(Place)); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !inNamespace(t) {
		return
	}
	cloud, pod := newSpace(t), newSpace(t)
	err := errors.Join(
		cloud.wire("eth0", "machine"), up("eth0", "10.77.0.2/24"), route("eth0", "169.254.169.254/32", "10.77.0.1"),
		pod.wire("cni0", "eth0"), up("cni0", "10.78.0.1/24"), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	cloud.do(func() error {
		return errors.Join(up("machine", "10.77.0.1/24", "169.254.169.254/32"), route("machine", "10.78.0.0/24", "10.77.0.2"))
	})
	pod.do(func() error { return errors.Join(up("eth0", "10.78.0.2/24"), route("eth0", "0.0.0.0/0", "10.78.0.1")) })

	for limit, answered := range map[int]bool{1: false, 2: true} {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, limit) })
			return errors.Join(cerr, err)
		}}
		c := new(platformtest.Cloud)
		s := &httptest.Server{Config: &http.Server{Handler: http.HandlerFunc(c.AWS)}}
		cloud.do(func() (err error) {
			s.Listener, err = lc.Listen(t.Context(), "tcp", platformtest.LinkLocal+":80")
			return err
		})
		s.Start()
		if i, err := aws(t.Context(), new(Place)); err != nil || i.ID != onAWS.ID {
			t.Errorf("limit %d: the machine: %+v, %v", limit, i, err)
		}
		inPod := exec.Command("/proc/self/exe", "-test.run=^TestHopLimit$", "-test.v")
		inPod.Env = append(os.Environ(), env+"=1")
		var out strings.Builder
		inPod.Stdout, inPod.Stderr = &out, &out
		pod.do(inPod.Start) // a process begins in the namespace of the thread that starts it
		if err := inPod.Wait(); (err == nil) != answered {
			t.Errorf("limit %d: the pod: %v\n%s", limit, err, &out)
		}
		s.Close()
	}
}
