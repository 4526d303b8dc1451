package netboot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/releasetest"
)

// bench is a small release with what network boot needs.
func bench(t testing.TB) *releasetest.Bench {
	t.Helper()
	return releasetest.New(t, 1<<20).Netboot(t)
}

// inNamespace runs the calling test again in a network namespace of its own, and returns true there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const env = "SKERRY_TEST_IN_NAMESPACE"
	if os.Getenv(env) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), env+"="+t.Name())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// lan is the machines' end of the server's cable: interface "far", in a namespace of its own.
type lan struct {
	t  *testing.T
	in func(func() error)
}

// newLAN lays the cable: "near" with 10.9.0.1 is the server's.
func newLAN(t *testing.T) *lan {
	t.Helper()
	work, done := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- syscall.Unshare(syscall.CLONE_NEWNET)
		for f := range work {
			done <- f()
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(work) })
	var mu sync.Mutex
	l := &lan{t: t, in: func(f func() error) {
		mu.Lock()
		defer mu.Unlock()
		work <- f
		if err := <-done; err != nil {
			t.Error(err)
		}
	}}
	var ns *os.File
	l.in(func() (err error) { ns, err = os.Open("/proc/thread-self/ns/net"); return err })
	defer ns.Close() //nolint:errcheck // the kernel keeps the namespace
	up := func(name, addr string) error {
		i, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrReplace(i, a), netlink.LinkSetUp(i))
	}
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerNamespace: netlink.NsFd(ns.Fd())})
	if err == nil {
		err = errors.Join(up("lo", "127.0.0.1/8"), up("near", "10.9.0.1/24"))
	}
	if err != nil {
		t.Fatal(err)
	}
	l.in(func() error { return up("far", "10.9.0.250/24") })
	return l
}

// address gives the machines' end one more address.
func (l *lan) address(ip string) {
	l.in(func() error {
		i, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(ip + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrReplace(i, a)
	})
}

// exchange sends a DHCP packet and gives the first answer that fits.
func (l *lan) exchange(hw net.HardwareAddr, m *dhcpv4.DHCPv4, match nclient4.Matcher) (*dhcpv4.DHCPv4, error) {
	var c *nclient4.Client
	var err error
	l.in(func() error {
		c, err = nclient4.New("far", nclient4.WithHWAddr(hw), nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(3))
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // a test's
	return c.SendAndRead(l.t.Context(), nclient4.DefaultServers, m, match)
}

// web is a client whose connections come from an address of the machines' end.
func (l *lan) web(from, pin string) *http.Client {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, addr string) (conn net.Conn, err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second}
		l.in(func() error { conn, err = d.Dial("tcp4", addr); return nil })
		return conn, err
	}}
	if pin != "" {
		tr.TLSClientConfig = protocol.ClientTLS(pin)
	}
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func post(c *http.Client, url string, in any) (int, []byte, error) {
	data, err := json.Marshal(in)
	if err != nil {
		return 0, nil, err
	}
	r, err := c.Post(url, "application/json", bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	defer r.Body.Close() //nolint:errcheck // a test's
	out, err := io.ReadAll(r.Body)
	return r.StatusCode, out, err
}

// run starts a server on the near end.
func run(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	start(t, s)
	return s
}

func start(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	up := make(chan struct{})
	log := s.Log
	s.Log = func(f string, a ...any) {
		if text := fmt.Sprintf(f, a...); strings.HasPrefix(text, "serving on") {
			close(up)
		}
		log(f, a...)
	}
	s.dhcp.log = s.Log
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	select {
	case <-up:
	case err := <-done:
		done <- nil
		t.Fatalf("the server ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the server does not start")
	}
}

func options(t *testing.T, b *releasetest.Bench) Options {
	t.Helper()
	return Options{
		Interface: "near", Releases: []string{b.Release}, Trusted: b.Trusted(), DB: b.Set.BootSigners(), Fleet: Nobody{}, State: t.TempDir(),
		Status: "127.0.0.1:0", Log: t.Logf,
	}
}

func addresses(t *testing.T) *Range {
	t.Helper()
	r, err := ParseRange("10.9.0.100-10.9.0.199")
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// given is the node config in an answer.
func given(answer []byte) string {
	var c protocol.Config
	if json.Unmarshal(answer, &c) != nil {
		return string(answer)
	}
	return string(c.Node)
}

// tftpGet is curl in the machines' namespace.
func (l *lan) tftpGet(name string) (out []byte, err error) {
	var cmd *exec.Cmd
	var buf bytes.Buffer
	l.in(func() error {
		cmd = exec.Command("curl", "-s", "--tftp-blksize", "1468", "tftp://10.9.0.1/"+name)
		cmd.Stdout = &buf
		err = cmd.Start() // from this thread: the child is in its namespace
		return nil
	})
	if err == nil {
		err = cmd.Wait()
	}
	return buf.Bytes(), err
}

// One machine, by each way firmware has, from the first packet to the kernel image.
func TestEveryWayLeadsToTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l, b := newLAN(t), bench(t)
	o := options(t, b)
	o.DHCP = addresses(t)
	s := run(t, o)
	k := s.kernels[0]
	if !k.Signed {
		t.Error("not signed")
	}
	offered := func(class string, arch int, mods ...dhcpv4.Modifier) string {
		m := ask(t, mac1, dhcpv4.MessageTypeDiscover, class, 0, append(mods, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, byte(arch)})))...)
		r, err := l.exchange(mac1, m, nclient4.IsMessageType(dhcpv4.MessageTypeOffer))
		if err != nil {
			t.Fatalf("%s: %v", class, err)
		}
		return r.BootFileNameOption()
	}
	fetch := func(url string) []byte {
		r, err := l.web("10.9.0.250", "").Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close() //nolint:errcheck // a test's
		data, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", url, r.Status, err)
		}
		return data
	}
	if name := offered("PXEClient:Arch:00007:UNDI:003016", 7); name != "x86-uefi.efi" {
		t.Errorf("UEFI PXE: %s", name)
	} else if got, err := l.tftpGet(name); err != nil || !bytes.Equal(got, k.EFI) {
		t.Errorf("UEFI PXE: %d bytes of %d, %v", len(got), len(k.EFI), err)
	}
	if got := fetch(offered("HTTPClient:Arch:00016:UNDI:003001", 16)); !bytes.Equal(got, k.EFI) {
		t.Error("UEFI HTTP boot: other bytes")
	}
	if name := offered("PXEClient:Arch:00000:UNDI:002001", 0); name != "undionly.kpxe" {
		t.Errorf("BIOS: %s", name)
	} else if got, err := l.tftpGet(name); err != nil || len(got) != 80_000 {
		t.Errorf("BIOS: %d bytes, %v", len(got), err)
	}
	for firmware, arch := range map[string]int{protocol.BIOS: 0, protocol.UEFI: 7} {
		url := offered("PXEClient", arch, dhcpv4.WithUserClass("iPXE", false))
		script := string(fetch(url))
		if !strings.HasPrefix(script, "#!ipxe\n") || !strings.HasSuffix(url, "x86-uefi-"+firmware+".ipxe") {
			t.Errorf("iPXE on %s: %s: %s", firmware, url, script)
		}
		for name, want := range map[string][]byte{"x86-uefi.vmlinuz": k.Linux, "x86-uefi.initrd": k.Initrd, "x86-uefi.efi": k.EFI} {
			if strings.Contains(script, name) && !bytes.Equal(fetch(strings.TrimSuffix(url, filepath.Base(url))+name), want) {
				t.Errorf("iPXE: %s has other bytes", name)
			}
		}
	}
	if _, err := l.tftpGet("../ca.key"); err == nil {
		t.Error("the CA's key is served")
	}
	if url := offered(protocol.Class, 0); url != fmt.Sprintf("https://10.9.0.1:%d", s.tlsPort) {
		t.Errorf("the installer is led to %s", url)
	}
	// What cannot be served is said on the machine's line.
	m := ask(t, net.HardwareAddr{2, 0, 0, 0, 0, 9}, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00011", 11)
	if r, err := l.exchange(m.ClientHWAddr, m, nclient4.IsMessageType(dhcpv4.MessageTypeOffer)); err != nil || r.BootFileNameOption() != "" {
		t.Errorf("arm64 without a release: %v, %v", r, err)
	}
	if got, err := s.Get("02:00:00:00:00:09"); err != nil || !strings.Contains(got.Error, "no release for arm64") {
		t.Errorf("%+v, %v", got, err)
	}
	m = ask(t, net.HardwareAddr{2, 0, 0, 0, 0, 8}, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00027", 27)
	_, _ = l.exchange(m.ClientHWAddr, m, nclient4.IsMessageType(dhcpv4.MessageTypeOffer))
	if got, err := s.Get("02:00:00:00:00:08"); err != nil || !strings.Contains(got.Error, "architecture is 27") {
		t.Errorf("%+v, %v", got, err)
	}
}

// foreign is another DHCP server, at the machines' end.
func (l *lan) foreign() {
	l.t.Helper()
	self := net.IPv4(10, 9, 0, 250)
	var srv *server4.Server
	l.in(func() (err error) {
		srv, err = server4.NewServer("far", nil, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
			r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 77)),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(600))
			if err == nil {
				_, err = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
			}
			if err != nil {
				l.t.Log(err)
			}
		})
		return err
	})
	go func() { _ = srv.Serve() }()
	l.t.Cleanup(func() { _ = srv.Close() })
}

func TestTwoDHCPServersAreOneTooMany(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l, b := newLAN(t), bench(t)
	l.foreign()
	o := options(t, b)
	o.DHCP = addresses(t)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "a DHCP server answers already: 10.9.0.250") || !strings.Contains(err.Error(), "--dhcp") {
		t.Errorf("as the DHCP server: %v", err)
	}
	o.DHCP = nil
	s = run(t, o)
	if w := s.warnings(); len(w) > 0 {
		t.Errorf("beside it: %s", w)
	}
	m := ask(t, mac1, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007", 7)
	r, err := l.exchange(mac1, m, func(r *dhcpv4.DHCPv4) bool { return r.ServerIdentifier().String() == "10.9.0.1" })
	if err != nil || !r.YourIPAddr.IsUnspecified() || r.BootFileNameOption() != "x86-uefi.efi" {
		t.Errorf("beside it: %v, %v", r, err)
	}
}

func TestNoDHCPServerIsSaid(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newLAN(t)
	s := run(t, options(t, bench(t)))
	if html, err := s.tableHTML(); err != nil || !strings.Contains(string(html), "no DHCP server answers on near") {
		t.Errorf("%s, %v", html, err)
	}
}

// The storm: twenty machines at once, from the first packet to "installed", each with a config of its own.
func TestTwentyMachinesAtOnce(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l, b := newLAN(t), bench(t)
	o := options(t, b)
	o.DHCP = addresses(t)
	fleet := t.TempDir()
	o.Fleet = Folder(fleet)
	const machines = 20
	hw := func(i int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 1, byte(i)} }
	config := func(i int) string {
		return strings.Replace(releasetest.Config, "north-1", fmt.Sprintf("storm-%d", i), 1)
	}
	for i := range machines {
		if err := os.WriteFile(filepath.Join(fleet, strings.ReplaceAll(hw(i).String(), ":", "-")+".yaml"), []byte(config(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	// All addresses are at one end of one cable here: which machine has which is what DHCP said.
	var mu sync.Mutex
	macs := map[netip.Addr]string{}
	s.neighbour = func(a netip.Addr) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return macs[a], nil
	}
	start(t, s)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range machines {
		wg.Go(func() {
			if err := func() error {
				m := ask(t, hw(i), dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007:UNDI:003016", 7)
				offer, err := l.exchange(hw(i), m, nclient4.IsMessageType(dhcpv4.MessageTypeOffer))
				if err != nil {
					return err
				}
				req, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")))
				if err != nil {
					return err
				}
				ack, err := l.exchange(hw(i), req, nclient4.IsMessageType(dhcpv4.MessageTypeAck))
				if err != nil {
					return err
				}
				ip := ack.YourIPAddr.String()
				mu.Lock()
				if other, taken := macs[netip.MustParseAddr(ip)]; taken {
					err = fmt.Errorf("%s was given to %s too", ip, other)
				}
				macs[netip.MustParseAddr(ip)] = hw(i).String()
				mu.Unlock()
				if err != nil {
					return err
				}
				l.address(ip)
				if got, err := l.tftpGet(offer.BootFileNameOption()); err != nil || len(got) != len(s.kernels[0].EFI) {
					return fmt.Errorf("kernel image: %d bytes, %w", len(got), err)
				}
				web, base := l.web(ip, s.ca.Pin()), fmt.Sprintf("https://10.9.0.1:%d", s.tlsPort)
				h := protocol.Hello{MACs: []string{hw(i).String()}, Arch: "amd64", Board: "x86-uefi", Firmware: protocol.UEFI, Session: newID()}
				status, data, err := post(web, base+protocol.HelloPath, h)
				var a protocol.Answer
				if err == nil {
					err = json.Unmarshal(data, &a)
				}
				if err != nil || status != 200 || a.Do != protocol.Install {
					return fmt.Errorf("hello: %d %s %w", status, data, err)
				}
				if status, data, err = post(web, base+protocol.ConfigPath, h); err != nil || status != 200 || given(data) != config(i) {
					return fmt.Errorf("config: %d %s %w", status, data, err)
				}
				r, err := web.Get(a.Release + "manifest.json")
				if err != nil || r.StatusCode != 200 {
					return fmt.Errorf("release: %w", err)
				}
				_ = r.Body.Close()
				for _, stage := range []string{protocol.StageWrite, protocol.StageVerify, protocol.StageInstalled} {
					if status, data, err = post(web, base+protocol.ReportPath, protocol.Report{Session: h.Session, Stage: stage, Done: 1, Total: 2}); err != nil || status != 200 {
						return fmt.Errorf("report: %d %s %w", status, data, err)
					}
				}
				return nil
			}(); err != nil {
				t.Errorf("machine %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d machines in %v", machines, time.Since(begin).Round(time.Millisecond))
	list, err := s.List()
	if err != nil || len(list) != machines {
		t.Errorf("%d machines are known: %v", len(list), err)
	}
	for _, m := range list {
		if m.Stage != protocol.StageInstalled || m.Installed.IsZero() {
			t.Errorf("%+v", m)
		}
	}
}
