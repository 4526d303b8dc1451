package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// bench is a node's network namespace, and pods in namespaces of their own.
type bench struct {
	t    *testing.T
	node ns.NetNS
	dir  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft; install Debian's package nftables")
	}
	b := &bench{t: t, node: newNS(t), dir: t.TempDir()}
	b.onNode(func() {
		lo, err := netlink.LinkByName("lo")
		check(t, err)
		check(t, netlink.LinkSetUp(lo))
	})
	return b
}

func newNS(t *testing.T) ns.NetNS {
	t.Helper()
	n, err := ns.TempNetNS()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// nsPath names the namespace itself; its Path names whatever the thread that made it is in by now.
func nsPath(n ns.NetNS) string { return fmt.Sprintf("/proc/self/fd/%d", n.Fd()) }

func (b *bench) onNode(f func()) {
	b.t.Helper()
	check(b.t, b.node.Do(func(ns.NetNS) error { f(); return nil }))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) conf(plugin, extra string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"test","type":%q%s,"ipam":{"type":"host-local","dataDir":%q,
		"ranges":[[{"subnet":"10.42.0.0/24"}],[{"subnet":"fd00:42::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`, plugin, extra, b.dir)
}

// run calls a plugin on the node and gives what it printed.
func (b *bench) run(command func(*skel.CmdArgs) error, pod ns.NetNS, id string, conf []byte) (string, error) {
	b.t.Helper()
	var err error
	out := stdout(b.t, func() {
		b.onNode(func() {
			err = command(&skel.CmdArgs{ContainerID: id, Netns: nsPath(pod), IfName: "eth0", StdinData: conf})
		})
	})
	return out, err
}

func stdout(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	saved := os.Stdout
	os.Stdout = w
	f()
	os.Stdout = saved
	check(t, w.Close())
	data, err := io.ReadAll(r)
	check(t, err)
	return string(data)
}

func (b *bench) add(pod ns.NetNS, id string) *current.Result {
	b.t.Helper()
	out, err := b.run(ptpAdd, pod, id, b.conf("ptp", ""))
	check(b.t, err)
	result := &current.Result{}
	check(b.t, json.Unmarshal([]byte(out), result))
	return result
}

// echo answers on tcp port in the namespace, with the caller's address.
func echo(t *testing.T, where ns.NetNS, port int) {
	t.Helper()
	var l net.Listener
	check(t, where.Do(func(ns.NetNS) (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			_ = c.Close()
		}
	}()
}

// ask connects from the namespace and gives the address that the other side saw.
func ask(from ns.NetNS, address string) (string, error) {
	var answer []byte
	err := from.Do(func(ns.NetNS) error {
		c, err := net.DialTimeout("tcp", address, 3*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		answer, err = io.ReadAll(c)
		return err
	})
	return string(answer), err
}

// A pod reaches the node, other pods and itself; the node reaches it; and nothing is left when it is gone.
func TestPodNetwork(t *testing.T) {
	b := newBench(t)
	one, two := newNS(t), newNS(t)
	for _, pod := range []ns.NetNS{one, two} {
		_, err := b.run(loopbackAdd, pod, "x", []byte(`{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`))
		check(t, err)
	}
	r1, r2 := b.add(one, "one"), b.add(two, "two")
	if got := r1.IPs[0].Address.IP.String() + " " + r2.IPs[0].Address.IP.String() + " " + r1.IPs[0].Gateway.String(); got != "10.42.0.2 10.42.0.3 10.42.0.1" {
		t.Fatalf("addresses are %s", got)
	}
	echo(t, one, 8080)
	echo(t, b.node, 9090)
	for i, family := range []string{"IPv4", "IPv6"} {
		at := func(r *current.Result, port int) string {
			return net.JoinHostPort(r.IPs[i].Address.IP.String(), fmt.Sprint(port))
		}
		for name, c := range map[string]struct {
			from ns.NetNS
			to   string
			seen string
		}{
			"node to pod":   {b.node, at(r1, 8080), r1.IPs[i].Gateway.String()},
			"pod to pod":    {two, at(r1, 8080), r2.IPs[i].Address.IP.String()},
			"pod to itself": {one, at(r1, 8080), r1.IPs[i].Address.IP.String()},
			"pod to node":   {one, net.JoinHostPort(r1.IPs[i].Gateway.String(), "9090"), r1.IPs[i].Address.IP.String()},
		} {
			got, err := ask(c.from, c.to)
			if err != nil || got != c.seen {
				t.Errorf("%s, %s: the other side saw %q, %v; want %q", family, name, got, err, c.seen)
			}
		}
	}
	prev, err := json.Marshal(r1)
	check(t, err)
	if _, err := b.run(ptpCheck, one, "one", b.conf("ptp", `,"prevResult":`+string(prev))); err != nil {
		t.Errorf("check of a healthy pod: %v", err)
	}
	for range 2 { // a second delete is no error
		_, err := b.run(ptpDel, one, "one", b.conf("ptp", ""))
		check(t, err)
	}
	if _, err := b.run(ptpCheck, one, "one", b.conf("ptp", `,"prevResult":`+string(prev))); err == nil {
		t.Error("check of a deleted pod found no fault")
	}
	b.onNode(func() {
		links, err := netlink.LinkList()
		check(t, err)
		if len(links) != 2 { // lo and the other pod's
			t.Errorf("%d links are left; want 2", len(links))
		}
	})
	left, err := os.ReadDir(b.dir + "/test")
	check(t, err)
	for _, f := range left {
		if f.Name() == "10.42.0.2" {
			t.Error("the address of a deleted pod is still reserved")
		}
	}
}

// When a pod's link cannot be made its address goes back.
func TestFailedAddGivesAddressBack(t *testing.T) {
	b := newBench(t)
	pod := newNS(t)
	b.add(pod, "one")
	if _, err := b.run(ptpAdd, pod, "two", b.conf("ptp", "")); err == nil { // eth0 is there already
		t.Fatal("a second eth0 was made")
	}
	other := newNS(t)
	if r := b.add(other, "three"); r.IPs[0].Address.IP.String() == "" {
		t.Error("no address")
	}
	files, err := os.ReadDir(b.dir + "/test")
	check(t, err)
	addresses := 0
	for _, f := range files {
		if net.ParseIP(f.Name()) != nil {
			addresses++
		}
	}
	if addresses != 4 { // two pods, two families
		t.Errorf("%d addresses are reserved; want 4", addresses)
	}
}

func TestPortmap(t *testing.T) {
	b := newBench(t)
	pod, client := newNS(t), newNS(t)
	result := b.add(pod, "one")
	b.add(client, "two")
	echo(t, pod, 80)
	prev, err := json.Marshal(result)
	check(t, err)
	conf := fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"test","type":"portmap","backend":"nftables","capabilities":{"portMappings":true},
		"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]},"prevResult":%s}`, prev)
	out, err := b.run(portmapAdd, pod, "one", conf)
	check(t, err)
	if !bytes.Contains([]byte(out), []byte("10.42.0.2")) {
		t.Errorf("the previous result is not passed on: %s", out)
	}
	if _, err := b.run(portmapCheck, pod, "one", conf); err != nil {
		t.Errorf("check: %v", err)
	}
	for name, c := range map[string]struct {
		from ns.NetNS
		to   string
	}{
		"another pod to the node":  {client, "10.42.0.1:8080"},
		"another pod, IPv6":        {client, "[fd00:42::1]:8080"},
		"the node to itself":       {b.node, "127.0.0.1:8080"},
		"the pod through the node": {pod, "10.42.0.1:8080"},
	} {
		if got, err := ask(c.from, c.to); err != nil || got == "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for range 2 {
		_, err := b.run(portmapDel, pod, "one", conf)
		check(t, err)
	}
	if _, err := ask(b.node, "127.0.0.1:8080"); err == nil {
		t.Error("the port still answers after its pod is gone")
	}
	if _, err := b.run(portmapCheck, pod, "one", conf); err == nil {
		t.Error("check after delete found no fault")
	}
}

// What is not built is refused by name.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		run        func(*skel.CmdArgs) error
		conf, want string
	}{
		{ptpAdd, `{"name":"n","type":"ptp","ipMasq":true,"ipam":{"type":"host-local"}}`, `network "n": ipMasq: true is not supported`},
		{ptpAdd, `{"name":"n","type":"ptp"}`, "ipam.type is missing"},
		{portmapAdd, `{"name":"n","type":"portmap","backend":"iptables"}`, `backend "iptables"`},
		{portmapAdd, `{"name":"n","type":"portmap","conditionsV4":["-s","1.2.3.4"]}`, "conditionsV4"},
		{portmapAdd, `{"name":"n","type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1,"protocol":"tcp"}]}}`, "ports are 1 to 65535"},
		{portmapAdd, `{"name":"n","type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp; flush ruleset"}]}}`, "is none of tcp, udp, sctp"},
		{portmapAdd, `{"name":"n","type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp","hostIP":"x"}]}}`, "is not an IP address"},
		{portmapAdd, `{"name":"n","type":"portmap"}`, "must come after another plugin"},
		{portmapAdd, `{"name":`, "network configuration"},
	} {
		err := c.run(&skel.CmdArgs{ContainerID: "x", StdinData: []byte(c.conf)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.conf, err, c.want)
		}
	}
}
