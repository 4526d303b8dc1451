package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/skerry-os/skerry/e2e/nodes"
)

// podNet is a pod whose network the test itself is in: it dials and listens there.
type podNet struct {
	t         *testing.T
	name      string
	addresses []netip.Addr
	net       ns.NetNS
}

const podYAML = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
    - {name: pause, image: "skerry.local/pause:1", imagePullPolicy: Never, ports: [{name: http, containerPort: 8080}]}
`

// newPod runs a pod that does nothing on the node, and opens its network.
func newPod(t *testing.T, api, on *nodes.Node, name string) *podNet {
	t.Helper()
	api.Eventually("there is a service account", func() (bool, string) {
		out, err := api.Try("", "get", "serviceaccount", "default")
		return err == nil, fmt.Sprint(out, err)
	})
	api.Apply(fmt.Sprintf(podYAML, name, on.Name))
	api.Becomes("Running", "get", "pod", name, "-o", "jsonpath={.status.phase}")
	p := &podNet{t: t, name: name}
	for text := range strings.FieldsSeq(api.Kubectl("get", "pod", name, "-o", "jsonpath={.status.podIPs[*].ip}")) {
		p.addresses = append(p.addresses, netip.MustParseAddr(text))
	}
	uid := api.Kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
	all, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), "pod"+uid) {
			if p.net, err = ns.GetNS(filepath.Join(filepath.Dir(file), "ns/net")); err == nil {
				t.Cleanup(func() { _ = p.net.Close() })
				return p
			}
		}
	}
	t.Fatalf("pod %s: no process of it is found", name)
	return nil
}

// serve answers on TCP port 8080 with what it gets.
func (p *podNet) serve() {
	p.t.Helper()
	for _, network := range []string{"tcp4", "tcp6"} {
		var l net.Listener
		err := p.net.Do(func(ns.NetNS) (err error) { l, err = net.Listen(network, ":8080"); return err })
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	}
}

func (p *podNet) within(f func() error) error { return p.net.Do(func(ns.NetNS) error { return f() }) }

// dial connects from where within is, and says hello.
func dial(within func(func() error) error, to netip.Addr) (c net.Conn, err error) {
	err = within(func() error {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 8080).String(), 2*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := hello(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func hello(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	_, err := io.ReadFull(c, b)
	return err
}

func (p *podNet) String() string { return p.name }

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: far}
  ports: [{port: 8080}]
`

const denyFar = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: far}
spec:
  podSelector: {matchLabels: {app: far}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: http}]}]
`

// Pods of two nodes talk to each other, to Services and to the DNS, in both IP families, from the first pod on; streams survive
// the restart of both nodes' engines; policies hold across nodes.
func TestNodesPodNetwork(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	server := []string{"--cluster-cidr", "10.42.0.0/16,fd00:42::/56", "--service-cidr", "10.43.0.0/16,fd00:43::/112"}
	s.Start("server", server...)
	s.Ready()
	agent := []string{"--server", s.URL(), "--token", s.Token()}
	a.Start("agent", agent...)
	a.Ready()
	s.ReadyInAPI(s, a)
	near, far := newPod(t, s, s, "near"), newPod(t, s, a, "far")
	far.serve()
	if len(near.addresses) != 2 || len(far.addresses) != 2 {
		t.Fatalf("pods have %v and %v; want an address of each family", near.addresses, far.addresses)
	}
	s.Apply(webService)
	var services []netip.Addr
	s.Eventually("the Service has its addresses", func() (bool, string) {
		out := s.Kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")
		services = nil
		for text := range strings.FieldsSeq(out) {
			services = append(services, netip.MustParseAddr(text))
		}
		return len(services) == 2, out
	})
	works := func(when string) {
		t.Helper()
		for from, within := range map[string]func(func() error) error{"the pod": near.within, "its node": s.OnNode} {
			for _, to := range append(services, far.addresses...) {
				s.Eventually(fmt.Sprintf("%s: %s reaches %s", when, from, to), func() (bool, string) {
					c, err := dial(within, to)
					if err != nil {
						return false, err.Error()
					}
					_ = c.Close()
					return true, ""
				})
			}
		}
	}
	works("at first")

	// CoreDNS is on the server, or on the agent: one of the two asks across.
	dns := net.Resolver{PreferGo: true}
	for _, p := range []*podNet{near, far} {
		for _, at := range []string{"10.43.0.10:53", "[fd00:43::a]:53"} {
			dns.Dial = func(ctx context.Context, network, _ string) (c net.Conn, err error) {
				err = p.within(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, at); return err })
				return c, err
			}
			s.Eventually(fmt.Sprintf("%s asks the DNS at %s", p, at), func() (bool, string) {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				got, err := dns.LookupHost(ctx, "web.default.svc.cluster.local.")
				return len(got) == 2, fmt.Sprint(got, err)
			})
		}
	}

	stream, err := dial(near.within, far.addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // a test's
	goesOn := func(when string) {
		t.Helper()
		if err := hello(stream); err != nil {
			t.Errorf("%s: the stream broke: %v", when, err)
		}
	}
	for _, n := range []*nodes.Node{a, s} {
		n.Kill()
		goesOn(n.Name + " killed")
	}
	s.Start("server", server...)
	a.Start("agent", agent...)
	s.Ready()
	a.Ready()
	goesOn("both started again")
	works("after the start")

	s.Apply(denyFar)
	s.Eventually("a stranger is refused across nodes", func() (bool, string) {
		c, err := dial(near.within, far.addresses[0])
		if err == nil {
			_ = c.Close()
		}
		return err != nil, "it is not"
	})
	if c, err := dial(near.within, services[1]); err == nil {
		_ = c.Close()
		t.Error("a stranger gets in through the Service")
	}
	goesOn("with the policy")
	if c, err := dial(a.OnNode, far.addresses[1]); err != nil {
		t.Errorf("the pod's own node is refused: %v", err)
	} else {
		_ = c.Close()
	}
	friend := newPod(t, s, s, "friend")
	for _, to := range []netip.Addr{far.addresses[0], far.addresses[1], services[0]} {
		s.Eventually(fmt.Sprintf("a friend reaches %s", to), func() (bool, string) {
			c, err := dial(friend.within, to)
			if err != nil {
				return false, err.Error()
			}
			_ = c.Close()
			return true, ""
		})
	}
	s.Kubectl("delete", "networkpolicy", "far")
	works("without the policy")
}

// The same without a tunnel: no device, and pods may send what the wire takes.
func TestNodesHostGW(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	s.Start("server", "--flannel-backend", "host-gw")
	s.Ready()
	a.Start("agent", "--server", s.URL(), "--token", s.Token())
	a.Ready()
	near, far := newPod(t, s, s, "near"), newPod(t, s, a, "far")
	far.serve()
	for from, within := range map[string]func(func() error) error{"the pod": near.within, "its node": s.OnNode} {
		s.Eventually(from+" reaches the other node's pod", func() (bool, string) {
			c, err := dial(within, far.addresses[0])
			if err != nil {
				return false, err.Error()
			}
			_ = c.Close()
			return true, ""
		})
	}
	for _, n := range []*nodes.Node{s, a} {
		if err := n.OnNode(func() error {
			_, err := net.InterfaceByName("skerry-vx")
			return err
		}); err == nil {
			t.Errorf("%s has a VXLAN device", n.Name)
		}
	}
	if err := far.within(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil && link.MTU != 1500 {
			err = fmt.Errorf("MTU is %d", link.MTU)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
