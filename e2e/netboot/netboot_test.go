// Package netboot holds the promises of starting machines over the network, on whole machines: QEMU with an empty disk at a
// bridge, and skerry pxe serve at the other end.
package netboot

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/e2e/lan"
	"github.com/skerry-os/skerry/e2e/vm"
)

var (
	run    = flag.Bool("netboot", false, "start machines over the network in QEMU; needs root, a release and skerry in -out")
	outDir = flag.String("out", "../../out", "the Makefile's out folder")
)

// patience is for a busy machine without KVM.
const patience = 20 * time.Minute

// network is a bridge in a namespace of its own, and the server at it.
type network struct {
	*lan.LAN
	t     *testing.T
	out   string
	state string
	fleet string
	stop  func()

	beside bool // another DHCP server gives the addresses
}

// newNetwork returns nil in the process outside the namespace, where the test has run already.
func newNetwork(t *testing.T) *network {
	t.Helper()
	if !*run {
		t.Skip("starts machines: add -netboot (or run make test-pxe)")
	}
	out, err := filepath.Abs(*outDir)
	if err != nil {
		t.Fatal(err)
	}
	l := lan.New(t, "-netboot", "-out", out)
	if l == nil {
		return nil
	}
	return &network{LAN: l, t: t, out: *outDir, state: t.TempDir(), fleet: t.TempDir()}
}

func (n *network) skerry(args ...string) string {
	n.t.Helper()
	out, err := exec.Command(filepath.Join(n.out, "bin/skerry"), args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("skerry %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// serve starts the server, or starts it again with other flags.
func (n *network) serve(flags ...string) {
	n.t.Helper()
	if n.stop != nil {
		n.stop()
	}
	args := append([]string{"pxe", "serve", "--interface", "lan", "--fleet", n.fleet, "--state", n.state}, flags...)
	if filepath.Ext(n.fleet) == "" { // a folder says neither
		args = append(args, "--release", filepath.Join(n.out, "release"), "--keys", filepath.Join(n.out, "keys"))
	}
	if !n.beside {
		args = append(args, "--dhcp", "10.11.12.100-10.11.12.200")
	}
	cmd := exec.Command(filepath.Join(n.out, "bin/skerry"), args...)
	said, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	up, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(said); lines.Scan(); {
			fmt.Println("pxe| " + lines.Text())
			if strings.Contains(lines.Text(), "status page") {
				close(up)
			}
		}
		_, _ = io.Copy(io.Discard, said)
		_ = cmd.Wait()
	}()
	n.stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM); <-ended }
	n.t.Cleanup(func() { n.stop() })
	select {
	case <-up:
	case <-ended:
		n.t.Fatal("the server ended")
	case <-time.After(time.Minute):
		n.t.Fatal("the server does not start")
	}
}

// config puts a node config into the fleet.
func (n *network) config(mac, text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.fleet, strings.ReplaceAll(mac, ":", "-")+".yaml"), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

const token = "0123456789abcdef0123456789abcdef"

func server(name, more string) string {
	return "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\nhostname: " + name + "\ncluster: {token: \"" + token + "\"}\nntp: {servers: []}\n" + more
}

// machine is an empty one at the bridge, whose firmware tries the network first.
func (n *network) machine(number int, change func(*vm.Options)) *guest {
	return n.machineOf("", number, change)
}

func (n *network) machineOf(board string, number int, change func(*vm.Options)) *guest {
	n.t.Helper()
	b, err := boards.Load(cmp.Or(board, "x86-uefi"))
	if err != nil {
		n.t.Fatal(err)
	}
	empty := filepath.Join(n.t.TempDir(), "empty.img")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 8<<30)); err != nil {
		n.t.Fatal(err)
	}
	o := vm.Options{Dir: n.t.TempDir(), Image: empty, Board: *b.QEMU, Tap: n.Tap(), MAC: mac(number), NetFirst: true}
	if change != nil {
		change(&o)
	}
	return n.power(o)
}

func mac(number int) string { return fmt.Sprintf("52:54:00:0b:0c:%02x", number) }

type guest struct {
	n *network
	o vm.Options
	*vm.VM
}

// power turns a machine on; its console goes where the test's output goes.
func (n *network) power(o vm.Options) *guest {
	n.t.Helper()
	v, err := vm.Start(n.t.Context(), o)
	if err != nil {
		n.t.Fatal(err)
	}
	g := &guest{n, o, v}
	n.t.Cleanup(func() {
		v.PowerCut()
		if text := v.Text(); n.t.Failed() {
			fmt.Printf("the end of %s's console:\n%s\n", o.MAC, text[max(0, len(text)-6000):])
		}
	})
	return g
}

func (g *guest) expect(expr string) string {
	g.n.t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeoutCause(g.n.t.Context(), patience, fmt.Errorf("waited %v for %s", patience, expr))
	defer cancel()
	found, err := g.WaitConsole(ctx, expr)
	if err != nil {
		fmt.Println(g.n.skerry("pxe", "list", "--state", g.n.state))
		g.n.t.Fatal(err)
	}
	fmt.Printf("%s after %v: %s\n", g.o.MAC, time.Since(begin).Round(time.Second), found[0])
	return found[0]
}

// An empty machine starts by UEFI PXE, is installed, starts from its disk although the network comes first, and becomes Ready;
// so it is after a lost plug, and it is not installed again.
func TestUEFIPXE(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.config(mac(1), server("pxe-1", ""))
	n.serve()
	g := n.machine(1, nil)
	n.installed(g)
	g.PowerCut()
	g = n.power(g.o)
	g.expect(`skerry: switch root: slot a`)
	g.expect(`skerry: node: Ready.*`)
	text := g.Text()
	if strings.Contains(text, "netboot: install: writing") {
		t.Error("it was installed again")
	}
	if _, six, ok := strings.Cut(text, ">>Start PXE over IPv6."); !ok || !strings.HasPrefix(strings.TrimSpace(six), "PXE-E21: Remote boot cancelled.") { // E16 is for silence
		t.Errorf("its firmware does not ask by IPv6, or is not told that there is nothing: %.60q", six)
	}
}

// installed follows a machine from its firmware to Ready.
func (n *network) installed(g *guest) {
	n.t.Helper()
	g.expect(`skerry: netboot: the server is https://10.11.12.1.*`)
	g.expect(`skerry: netboot: install: writing /dev/vda.*`)
	g.expect(`skerry: netboot: installed on /dev/vda; restart.*`)
	g.expect(`skerry: switch root: slot a.*`)
	g.expect(`skerry: node: Ready.*`)
	if list := n.skerry("pxe", "list", "--state", n.state); !strings.Contains(list, "installed") {
		n.t.Errorf("the list: %s", list)
	}
}

// The same by UEFI HTTP boot; then it is installed anew because a person says so, with Secure Boot on: the first start from the
// disk has enrolled the keys.
func TestUEFIHTTPAndSecureBoot(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.config(mac(2), server("http-2", ""))
	n.serve("--no-pxe")
	g := n.machine(2, nil)
	n.installed(g)
	g.expect(`skerry\| slot +a, Secure Boot on`)
	n.skerry("pxe", "approve", mac(2), "--reinstall", "--state", n.state)
	g.PowerCut()
	g = n.power(g.o)
	n.installed(g)
}

// A machine with a BIOS, whose network card has iPXE, and without a disk runs from memory.
func TestBIOSFromMemory(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.config(mac(3), server("memory-3", "install: {diskless: true}\n"))
	n.serve()
	g := n.machine(3, func(o *vm.Options) {
		o.Board.Machine, o.Board.Firmware, o.Board.Args, o.Memory = "q35", vm.BIOS, nil, 3<<30
	})
	g.expect(`skerry: netboot: run from memory: release .*`)
	g.expect(`skerry: switch root: slot none.*`)
	g.expect(`skerry: mount data: in memory.*`)
	g.expect(`skerry: node: Ready.*`)
}

// What a BIOS without iPXE is given starts by its card's own driver. QEMU's cards have iPXE alone: on its command line the file is
// fetched as any other PXE ROM would do it, and iPXE in that file leads the machine to the installer.
func TestBIOSWithoutIPXE(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.serve()
	g := n.machine(8, func(o *vm.Options) {
		o.Board.Machine, o.Board.Firmware, o.Board.Args = "q35,graphics=off", vm.BIOS, nil // the BIOS's own screen is the serial port
	})
	keys, err := g.Keyboard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	typed := func(text, until string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); !strings.Contains(g.Text(), until); time.Sleep(time.Second) {
			if err := keys.Type(text); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(end) {
				t.Fatalf("after %q the machine does not say %q", text, until)
			}
		}
	}
	typed("\x02", "iPXE> ") // Ctrl-B, while the ROM's banner is there
	if err := keys.Type("\rifopen net0 && dhcp && chain tftp://10.11.12.1/undionly.kpxe\r"); err != nil {
		t.Fatal(err)
	}
	g.expect(`net0: 52:54:00:0b:0c:08 using undionly`)
	if err := keys.Close(); err != nil {
		t.Fatal(err)
	}
	g.expect(`skerry: netboot: the server is https://10.11.12.1.*`)
	g.expect(`skerry: netboot: waiting: nobody knows this machine.*`)
}

// A machine with a BIOS is installed like one with UEFI, with the board that its BIOS starts.
func TestBIOSToDisk(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.config(mac(7), server("bios-7", ""))
	n.serve()
	g := n.machineOf("x86-bios", 7, nil)
	n.installed(g)
	if text := g.Text(); !strings.Contains(text, "Skerry: slot a, trial , tries left ") {
		t.Error("another boot loader started it")
	}
}

// A fleet of which nothing but its file exists: a server, an agent that starts by UEFI HTTP boot, one of another architecture, one
// whose BIOS starts its disk, and one with a BIOS that runs from memory. Switched on, they become one cluster. The one that keeps
// nothing is the same machine to it after a lost plug, and so is the one that is installed anew.
func TestEveryWayIntoOneCluster(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	out, err := filepath.Abs(n.out)
	if err != nil {
		t.Fatal(err)
	}
	n.fleet = filepath.Join(n.fleet, "fleet.yaml")
	text := "apiVersion: skerry/v1alpha1\nkind: Fleet\nname: pxe\nkeys: " + out + "/keys\nreleases: {amd64: " + out + "/release, arm64: " + out + "/release-arm64}\n" +
		"gateway: 10.11.12.1\nconfig: {network: {nameservers: [10.11.12.1]}, ntp: {servers: []}, server: {disable: [ingress, local-storage, metrics-server, servicelb]}}\nnodes:\n"
	for number, node := range map[int]string{
		11: "name: server-1, role: server, board: x86-uefi", 12: "name: http-1, role: agent, board: x86-uefi", 13: "name: arm-1, role: agent, board: arm64-uefi",
		14: "name: memory-1, role: agent, board: x86-uefi, config: {install: {diskless: true}}", 15: "name: bios-1, role: agent, board: x86-bios",
	} {
		text += fmt.Sprintf("  - {%s, mac: %q, address: 10.11.12.%d/24}\n", node, mac(number), number)
	}
	if err := os.WriteFile(n.fleet, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	installed := func(g *guest) {
		t.Helper()
		g.expect(`skerry: netboot: install: writing /dev/vda.*`)
		g.expect(`skerry: netboot: installed on /dev/vda; restart.*`)
		g.expect(`skerry: switch root: slot a.*`)
	}
	n.serve("--no-pxe") // and the cluster's keys are made
	n.skerry("fleet", "kubeconfig", "-o", kubeconfig, n.fleet)
	installed(n.machine(12, nil)) // an agent may be there before its server
	n.serve()
	server := n.machine(11, nil)
	installed(server)
	server.expect(`skerry: node: Ready.*`)
	installed(n.machineOf("arm64-uefi", 13, nil))
	bios := n.machineOf("x86-bios", 15, nil)
	installed(bios)
	memory := n.machine(14, func(o *vm.Options) {
		o.Board.Machine, o.Board.Firmware, o.Board.Args, o.Memory = "q35", vm.BIOS, nil, 3<<30
	})
	memory.expect(`skerry: netboot: run from memory: release .*`)
	n.nodes(kubeconfig, "amd64 amd64 amd64 amd64 arm64 True True True True True")
	// Both come back without a word from anybody, while the cluster still takes them for alive. "Ready" on the console is of this start.
	memory.PowerCut()
	n.power(memory.o).expect(`skerry: node: Ready.*`)
	n.skerry("pxe", "approve", mac(15), "--reinstall", "--state", n.state)
	bios.PowerCut()
	bios = n.power(bios.o)
	installed(bios)
	bios.expect(`skerry: node: Ready.*`)
	n.nodes(kubeconfig, "amd64 amd64 amd64 amd64 arm64 True True True True True")
}

// nodes waits until the cluster's nodes are of these architectures and in these states.
func (n *network) nodes(kubeconfig, want string) {
	n.t.Helper()
	var got string
	for end := time.Now().Add(patience); got != want; time.Sleep(5 * time.Second) {
		if time.Now().After(end) {
			n.t.Fatalf("nodes: %s; want %s", got, want)
		}
		b, err := exec.CommandContext(n.t.Context(), filepath.Join(n.out, "amd64/usr/bin/kubectl"), "--kubeconfig", kubeconfig, "--request-timeout=1m", "get", "nodes",
			"--sort-by", "{.metadata.labels.kubernetes\\.io/arch}", "-o", `jsonpath={.items[*].status.nodeInfo.architecture} {.items[*].status.conditions[?(@.type=="Ready")].status}`).CombinedOutput()
		if got = string(b); err != nil {
			got += err.Error()
		}
	}
}

// A machine nobody knows waits, changes nothing, and goes on when it is approved.
func TestApproval(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.serve()
	g := n.machine(4, func(o *vm.Options) { o.Serial = "SN-4" })
	g.expect(`skerry: netboot: waiting: nobody knows this machine.*SN-4.*`)
	config := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(config, []byte(server("approved-4", "install: {diskless: true}\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	n.skerry("pxe", "approve", mac(4), "--config", config, "--state", n.state)
	g.expect(`skerry: netboot: run from memory: release .*`)
	g.expect(`skerry: switch root: slot none.*`)
}

// Beside another DHCP server, which knows nothing of booting, both kinds of firmware find their way to the installer.
func TestBesideADHCPServer(t *testing.T) {
	n := newNetwork(t)
	if n == nil {
		return
	}
	n.beside = true
	n.dhcpServer()
	n.serve()
	for number, change := range map[int]func(*vm.Options){
		5: nil,
		6: func(o *vm.Options) { o.Board.Machine, o.Board.Firmware, o.Board.Args = "q35", vm.BIOS, nil },
	} {
		g := n.machine(number, change)
		g.expect(`skerry: netboot: the server is https://10.11.12.1.*`)
		g.expect(`skerry: netboot: waiting: nobody knows this machine.*`)
		g.PowerCut()
	}
}

// dhcpServer gives addresses at a card of its own on the bridge.
func (n *network) dhcpServer() {
	n.t.Helper()
	n.IP("link add dhcp0 type veth peer name dhcp1", "link set dhcp1 master lan up", "address add 10.11.12.2/32 dev dhcp0", "link set dhcp0 up")
	for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2", "rp_filter": "0"} { // two cards of one host on one network
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/"+name, []byte(value), 0); err != nil {
			n.t.Fatal(err)
		}
	}
	self := net.IPv4(10, 11, 12, 2)
	leases := map[string]net.IP{}
	var mu sync.Mutex
	s, err := server4.NewServer("dhcp0", nil, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		mu.Lock()
		defer mu.Unlock()
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		} else if m.MessageType() != dhcpv4.MessageTypeDiscover {
			return
		}
		ip, ok := leases[m.ClientHWAddr.String()]
		if !ok {
			ip = net.IPv4(10, 11, 12, byte(50+len(leases)))
			leases[m.ClientHWAddr.String()] = ip
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(ip), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600))
		if err == nil {
			_, err = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
		}
		if err != nil {
			fmt.Println("dhcp:", err)
		}
	})
	if err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = s.Serve() }()
	n.t.Cleanup(func() { _ = s.Close() })
}
