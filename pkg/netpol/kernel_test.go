package netpol

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"
)

// bench is a node in a network namespace, with pods in theirs, and the real packet filter.
type bench struct {
	t    *testing.T
	node ns.NetNS
	nft  knftables.Interface
	e    *Engine
	pods map[string]ns.NetNS
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft; install Debian's package nftables")
	}
	b := &bench{t: t, node: newNS(t), e: NewEngine("one"), pods: map[string]ns.NetNS{}}
	b.on(b.node, func() {
		var err error
		b.nft, err = knftables.New(knftables.InetFamily, Table)
		check(t, err)
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			check(t, os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0o644))
		}
	})
	b.whole()
	return b
}

func newNS(t *testing.T) ns.NetNS {
	t.Helper()
	n, err := ns.TempNetNS()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = n.Close() })
	check(t, n.Do(func(ns.NetNS) error {
		lo, err := netlink.LinkByName("lo") // Go asks it once whether there is IPv6
		check(t, err)
		return netlink.LinkSetUp(lo)
	}))
	return n
}

func (b *bench) on(where ns.NetNS, f func()) {
	b.t.Helper()
	check(b.t, where.Do(func(ns.NetNS) error { f(); return nil }))
}

func (b *bench) whole() {
	b.t.Helper()
	b.on(b.node, func() { check(b.t, b.nft.Run(b.t.Context(), b.e.Whole(b.nft))) })
	b.e.Commit()
}

// commit sends what has changed, and says how long the packet filter took.
func (b *bench) commit() time.Duration {
	b.t.Helper()
	begin := time.Now()
	tx := b.e.Changes(b.nft)
	if tx == nil {
		return 0
	}
	b.on(b.node, func() {
		if err := b.nft.Run(b.t.Context(), tx); err != nil {
			b.t.Fatalf("%v\n%s", err, tx)
		}
	})
	b.e.Commit()
	return time.Since(begin)
}

// pod makes one with IPv4 10.42.0.n and IPv6 fd00:42::n, as the CNI plugin does.
func (b *bench) pod(name string, n int, ports ...Port) {
	b.t.Helper()
	pod := newNS(b.t)
	b.pods[name] = pod
	four, six := fmt.Sprintf("10.42.0.%d/32", n), fmt.Sprintf("fd00:42::%x/128", n)
	veth := fmt.Sprintf("veth%d", n)
	configure := func(link, address, to string, via bool) {
		l, err := netlink.LinkByName(link)
		check(b.t, err)
		a, err := netlink.ParseAddr(address)
		check(b.t, err)
		a.Flags = unix.IFA_F_NODAD
		check(b.t, netlink.AddrAdd(l, a))
		check(b.t, netlink.LinkSetUp(l))
		dst, err := netlink.ParseIPNet(to)
		check(b.t, err)
		check(b.t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
		if via {
			all := map[bool]string{false: "0.0.0.0/0", true: "::/0"}[strings.Contains(to, ":")]
			_, everywhere, _ := net.ParseCIDR(all)
			check(b.t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: everywhere, Gw: dst.IP}))
		}
	}
	b.on(b.node, func() {
		check(b.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: veth}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.Fd())}))
		configure(veth, "10.42.0.1/32", four, false)
		configure(veth, "fd00:42::1/128", six, false)
	})
	b.on(pod, func() {
		configure("eth0", four, "10.42.0.1/32", true)
		configure("eth0", six, "fd00:42::1/128", true)
	})
	b.e.SetPod(Pod{Namespace: "x", Name: name, Labels: labels.Set{"app": name}, Node: "one", Ports: ports, Created: time.Unix(int64(n), 0),
		Addresses: []netip.Addr{netip.MustParsePrefix(four).Addr(), netip.MustParsePrefix(six).Addr()}})
}

// serve answers on TCP and UDP.
func (b *bench) serve(pod string, port int) {
	b.t.Helper()
	b.on(b.pods[pod], func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		check(b.t, err)
		b.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		check(b.t, err)
		b.t.Cleanup(func() { _ = u.Close() })
		go func() {
			for buf := make([]byte, 100); ; {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(buf[:n], from)
			}
		}()
	})
}

// ask says whether an answer comes back.
func (b *bench) ask(from ns.NetNS, network, to string) bool {
	var c net.Conn
	b.on(from, func() { c, _ = net.DialTimeout(network, to, 500*time.Millisecond) })
	if c == nil {
		return false
	}
	defer c.Close() //nolint:errcheck // a test's
	return echo(c)
}

func echo(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return false
	}
	buf := make([]byte, 5)
	_, err := io.ReadFull(c, buf)
	return err == nil && string(buf) == "hello"
}

func (b *bench) expect(when, from, network, to string, want bool) {
	b.t.Helper()
	ns := b.node
	if from != "node" {
		ns = b.pods[from]
	}
	got := b.ask(ns, network, to)
	for deadline := time.Now().Add(5 * time.Second); want && !got && time.Now().Before(deadline); { // new links lose packets
		got = b.ask(ns, network, to)
	}
	if got != want {
		b.t.Errorf("%s: %s to %s %s: %v; want %v", when, from, network, to, got, want)
	}
}

func policyOn(app string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "of-" + app}, Spec: spec}
}

func podsOf(app string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}
}

// Real packets, real rules, one change after the other.
func TestPackets(t *testing.T) {
	b := newBench(t)
	b.pod("web", 2, Port{"http", "tcp", 80})
	b.pod("friend", 3)
	b.pod("stranger", 4)
	b.serve("web", 80)
	b.serve("web", 81)
	b.commit()
	for _, from := range []string{"friend", "stranger", "node"} {
		for _, to := range []string{"10.42.0.2:80", "[fd00:42::2]:81"} {
			b.expect("without a policy", from, "tcp", to, true)
			b.expect("without a policy", from, "udp", to, true)
		}
	}
	var long net.Conn
	b.on(b.pods["stranger"], func() {
		var err error
		long, err = net.Dial("tcp", "10.42.0.2:80")
		check(t, err)
	})
	defer long.Close() //nolint:errcheck // a test's
	if !echo(long) {
		t.Fatal("no connection")
	}

	in := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	check(t, b.e.SetPolicy(policyOn("web", networkingv1.NetworkPolicySpec{PolicyTypes: in, Ingress: []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{podsOf("friend")}, Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}},
	}})))
	b.commit()
	const one = "friends, named port"
	b.expect(one, "friend", "tcp", "10.42.0.2:80", true)
	b.expect(one, "friend", "tcp", "[fd00:42::2]:80", true)
	b.expect(one, "friend", "udp", "10.42.0.2:80", false)
	b.expect(one, "friend", "tcp", "10.42.0.2:81", false)
	b.expect(one, "stranger", "tcp", "10.42.0.2:80", false)
	b.expect(one, "stranger", "tcp", "[fd00:42::2]:80", false)
	b.expect(one, "node", "tcp", "10.42.0.2:81", true)
	if !echo(long) {
		t.Error("a connection from before was cut")
	}

	b.pod("late", 5) // one that comes later is a friend by its label
	b.e.SetPod(Pod{Namespace: "x", Name: "late", Labels: labels.Set{"app": "friend"}, Node: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.5")}})
	b.commit()
	b.expect("a new friend", "late", "tcp", "10.42.0.2:80", true)
	b.e.SetPod(Pod{Namespace: "x", Name: "late", Labels: labels.Set{"app": "other"}, Node: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.5")}})
	b.commit()
	b.expect("a friend no more", "late", "tcp", "10.42.0.2:80", false)

	check(t, b.e.SetPolicy(policyOn("web", networkingv1.NetworkPolicySpec{PolicyTypes: in, Ingress: []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.42.0.0/24", Except: []string{"10.42.0.3/32"}}}, {IPBlock: &networkingv1.IPBlock{CIDR: "::/0"}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(70)), EndPort: new(int32(80))}}},
	}})))
	b.commit()
	const two = "blocks, range of ports"
	b.expect(two, "stranger", "tcp", "10.42.0.2:80", true)
	b.expect(two, "stranger", "tcp", "10.42.0.2:81", false)
	b.expect(two, "friend", "tcp", "10.42.0.2:80", false)
	b.expect(two, "friend", "tcp", "[fd00:42::2]:80", true)

	check(t, b.e.SetPolicy(policyOn("stranger", networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}})))
	b.commit()
	b.expect("the stranger may go nowhere", "stranger", "tcp", "10.42.0.2:80", false)
	b.expect("the stranger may go nowhere", "stranger", "tcp", "[fd00:42::2]:80", false)
	b.e.DeletePolicy("x", "of-web")
	b.e.DeletePolicy("x", "of-stranger")
	b.commit()
	b.expect("policies gone", "stranger", "udp", "10.42.0.2:81", true)
	b.on(b.node, func() {
		chains, err := b.nft.List(t.Context(), "chains")
		check(t, err)
		sets, err := b.nft.List(t.Context(), "sets")
		check(t, err)
		if len(chains) != 2 || len(sets) != 2 {
			t.Errorf("left: chains %v, sets %v", chains, sets)
		}
	})
}

// The kernel takes what random histories make of the table, step by step.
func TestKernelTakesChanges(t *testing.T) {
	b := newBench(t)
	d := newDice(4)
	w := newWorld()
	for step := range 150 {
		d.turn(t, w, map[string]*Engine{"one": b.e}, step)
		if d.IntN(2) == 0 {
			b.commit()
		}
	}
	b.commit()
	b.on(b.node, func() { check(t, remove(t.Context(), b.nft)) })
}

// A thousand pods and a hundred policies: what a change costs.
func TestScale(t *testing.T) {
	b := newBench(t)
	pod := func(i int) Pod {
		node := "one"
		if i%20 > 0 { // fifty of them here
			node = "two"
		}
		return Pod{Namespace: fmt.Sprintf("ns-%d", i%10), Name: fmt.Sprintf("pod-%d", i), Node: node, Created: time.Unix(int64(i), 0),
			Labels: labels.Set{"app": fmt.Sprintf("app-%d", i/10%10), "tier": fmt.Sprint(i % 3)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)})}}
	}
	for n := range 10 {
		b.e.SetNamespace(fmt.Sprintf("ns-%d", n), labels.Set{"kubernetes.io/metadata.name": fmt.Sprintf("ns-%d", n)})
	}
	for i := range 100 {
		check(t, b.e.SetPolicy(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%10), Name: fmt.Sprintf("policy-%d", i)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i/10)}},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{
					From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": fmt.Sprintf("ns-%d", i/10)}}},
						podsOf(fmt.Sprintf("app-%d", (i+1)%10))},
					Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(80))}},
				}},
			},
		}))
	}
	for i := range 1000 {
		b.e.SetPod(pod(i))
	}
	timed := func(what string, most time.Duration, f func()) {
		begin := time.Now()
		f()
		took := time.Since(begin)
		t.Logf("%s: %v", what, took.Round(100*time.Microsecond))
		if took > most {
			t.Errorf("%s took %v; want less than %v", what, took, most)
		}
	}
	timed("the whole table", 20*time.Second, b.whole)
	timed("a pod more", time.Second, func() { b.e.SetPod(pod(1000)); b.commit() })
	timed("100 pods, one after the other", 30*time.Second, func() {
		for i := range 50 {
			b.e.DeletePod(pod(i).Namespace, pod(i).Name)
			b.commit()
			b.e.SetPod(pod(i))
			b.commit()
		}
	})
	timed("a policy less", 5*time.Second, func() { b.e.DeletePolicy("ns-0", "policy-0"); b.commit() })
}
