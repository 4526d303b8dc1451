package netboot

import (
	"fmt"
	"html"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/releasetest"
)

// everywhere says that a warning is on the page, in the log, on the list, and on the console of a machine that asks.
func (n *network) everywhere(parts ...string) {
	n.t.Helper()
	list, err := n.s.Warnings()
	if err != nil {
		n.t.Fatal(err)
	}
	for where, text := range map[string]string{
		"page": n.page(), "log": n.said(), "list": fmt.Sprint(list), "console": strings.Join(n.starts(genuine, protocol.Hello{}).hello().Warnings, "\n"),
	} {
		for _, p := range parts {
			if !strings.Contains(text, p) {
				n.t.Errorf("the %s lacks %q: %s", where, p, text)
			}
		}
	}
}

func (n *network) page() string {
	n.t.Helper()
	table, err := n.s.tableHTML()
	if err != nil {
		n.t.Fatal(err)
	}
	return html.UnescapeString(string(table))
}

// over says that there is nothing to warn of any more.
func (n *network) over(part string) {
	n.t.Helper()
	list, err := n.s.Warnings()
	if text := n.page(); err != nil || len(list) > 0 || strings.Contains(text, part) || !strings.Contains(n.said(), "is well again: ") {
		n.t.Errorf("still warned of: %v, %v, %s", list, err, text)
	}
}

// A second DHCP server that begins to answer while we serve.
func TestASecondDHCPServerIsSaidEverywhere(t *testing.T) {
	request := func(n *network, server string) {
		m := ask(t, mac1, dhcpv4.MessageTypeRequest, "PXEClient:Arch:00007", 7, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(server))))
		if r := n.s.dhcp.answer(m, 67); r != nil {
			t.Errorf("answered for another: %v", r)
		}
	}
	n := newNetwork(t, func(o *Options) {
		r, err := ParseRange("127.0.0.100-127.0.0.120")
		if err != nil {
			t.Fatal(err)
		}
		o.DHCP = &r
	})
	request(n, "127.0.0.66")
	n.everywhere("a second DHCP server, 127.0.0.66, answers on lo", "turn it off there, or leave out --dhcp here")
	for i := range 40 {
		request(n, fmt.Sprintf("127.0.1.%d", i))
	}
	if list, err := n.s.Warnings(); err != nil || len(list) > mostOthers {
		t.Errorf("%d warnings, %v", len(list), err)
	}

	n = newNetwork(t, nil) // beside one
	request(n, "127.0.0.66")
	if list, err := n.s.Warnings(); err != nil || len(list) != 0 {
		t.Errorf("of the one that should be: %v, %v", list, err)
	}
	request(n, "127.0.0.67")
	n.everywhere("more than one DHCP server answers on lo: 127.0.0.66, 127.0.0.67", "turn off all but one")
}

// The folder of the release is taken away while machines are served, and comes back.
func TestAReleaseThatGoesAway(t *testing.T) {
	n := newNetwork(t, nil)
	rel := n.s.releases[0]
	get := func(name string) (int, string) {
		w := httptest.NewRecorder()
		n.s.bootHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/release/"+rel.path()+"/"+name, nil))
		return w.Code, w.Body.String()
	}
	if err := os.Rename(rel.dir, rel.dir+".gone"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"manifest.json", "root.img"} {
		if status, text := get(name); status != http.StatusNotFound || !strings.Contains(text, "the server cannot read "+name+" of release") || !strings.Contains(text, "put the release's folder back") {
			t.Errorf("%s: the machine hears: %d %s", name, status, text)
		}
		n.everywhere(rel.dir, "open "+name+": no such file", "put the release back, or serve another one with --release")
	}
	said := n.said()
	if _, _ = get("manifest.json"); n.said() != said {
		t.Error("the same again for each question")
	}
	if err := os.Rename(rel.dir+".gone", rel.dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"manifest.json", "root.img"} {
		if status, text := get(name); status != http.StatusOK {
			t.Errorf("%s is back: %d %s", name, status, text)
		}
	}
	n.over("put the release back")
}

// Firmware that cannot be served has no console of ours: its line says so, in the log, on the page and on the list.
func TestAnArchitectureThatNobodyMakes(t *testing.T) {
	n := newNetwork(t, nil)
	for code, parts := range map[uint16][]string{
		27: {"its architecture is 27 (", "releases are made for amd64 and arm64 alone", "take the network out of its boot order"},
		11: {"no release for arm64 is served; add one with --release"},
	} {
		mac := fmt.Sprintf("02:00:00:00:00:%02x", code)
		m := ask(t, net.HardwareAddr{2, 0, 0, 0, 0, byte(code)}, dhcpv4.MessageTypeDiscover, fmt.Sprintf("PXEClient:Arch:%05d", code), 0,
			dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, byte(code)})))
		c, ok := readClient(m)
		if f := n.s.bootFile(c); !ok || f != "" {
			t.Errorf("%d: offered %q", code, f)
		}
		rec, err := n.s.Get(mac)
		if err != nil {
			t.Fatal(err)
		}
		for where, text := range map[string]string{"log": n.said(), "page": n.page(), "list": rec.Trouble(time.Now())} {
			for _, p := range parts {
				if !strings.Contains(text, p) {
					t.Errorf("%d: the %s lacks %q: %s", code, where, p, text)
				}
			}
		}
	}
}

// A machine that goes silent in the middle is in the log of a running server, not only on the page; and when it is back.
func TestASilentMachineIsInTheLog(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newLAN(t)
	o := options(t, bench(t))
	o.DHCP = addresses(t)
	var mu sync.Mutex
	var said []string
	o.Log = func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, fmt.Sprintf(f, a...))
	}
	store, err := OpenStore(o.State)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Change(machineMAC, func(m *Machine) error {
		m.Stage, m.Serial, m.Last = protocol.StageWrite, "S-1", time.Now().Add(-5*time.Minute)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s := run(t, o)
	until := func(parts ...string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			mu.Lock()
			found := slices.ContainsFunc(said, func(line string) bool {
				return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) })
			})
			text := strings.Join(said, "\n")
			mu.Unlock()
			if found {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no line has %q: %s", parts, text)
			}
		}
	}
	until(machineMAC+", S-1: writing: silent since ", "is its cable in, and is it on? It goes on where it was when the link is back.")
	if table, err := s.tableHTML(); err != nil || !strings.Contains(string(table), "silent since") || !strings.Contains(string(table), "is its cable in") {
		t.Errorf("the page: %s, %v", table, err)
	}
	if _, err := s.note(machineMAC, func(*Machine) error { return nil }); err != nil {
		t.Fatal(err)
	}
	until(machineMAC, "is heard of again: writing")
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(strings.Join(said, "\n"), "silent since"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// What a server warned of does not outlive it.
func TestWarningsEndWithTheServer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newLAN(t)
	o := options(t, bench(t))
	store, err := OpenStore(o.State)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.setWarnings([]Warning{{Text: "of one that was killed"}}); err != nil {
		t.Fatal(err)
	}
	t.Run("serve", func(t *testing.T) {
		o.Log = t.Logf
		run(t, o)
		if list, err := store.Warnings(); err != nil || len(list) != 1 || !strings.Contains(list[0].Text, "no DHCP server answers on near") || !strings.Contains(list[0].Text, "--dhcp") {
			t.Errorf("%v, %v", list, err)
		}
	})
	if list, err := store.Warnings(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// Where there is one interface that can be meant, nobody has to name it.
func TestTheInterfaceThatCanOnlyBeMeant(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newLAN(t) // "near" has the address; nothing else is up
	o := options(t, bench(t))
	o.Interface, o.DHCP = "", addresses(t)
	if s := run(t, o); s.Interface != "near" || s.self.String() != "10.9.0.1/24" || s.dhcp.iface != "near" {
		t.Errorf("%s, %v", s.Interface, s.self)
	}
	up := net.FlagUp | net.FlagBroadcast
	hw := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, i := range map[string]net.Interface{
		"down": {Name: "eth0", Flags: net.FlagBroadcast, HardwareAddr: hw}, "loopback": {Name: "lo", Flags: up | net.FlagLoopback}, "a tunnel": {Name: "ppp0", Flags: up | net.FlagPointToPoint, HardwareAddr: hw},
		"WireGuard": {Name: "wg0", Flags: up}, "Docker's": {Name: "docker0", Flags: up, HardwareAddr: hw}, "a Docker network": {Name: "br-1234", Flags: up, HardwareAddr: hw},
		"a container's": {Name: "veth12", Flags: up, HardwareAddr: hw}, "a pod network": {Name: "cni0", Flags: up, HardwareAddr: hw}, "libvirt's": {Name: "virbr0", Flags: up, HardwareAddr: hw},
	} {
		if leadsToMachines(i) {
			t.Errorf("%s leads to machines", name)
		}
	}
	for _, name := range []string{"eth0", "enp3s0", "br0", "bond0", "eno1.20", "lan"} {
		if !leadsToMachines(net.Interface{Name: name, Flags: up, HardwareAddr: hw}) {
			t.Errorf("%s does not lead to machines", name)
		}
	}
	if got, err := only([]string{"eth1 (10.11.12.1/24)"}, nil); err != nil || got != "eth1" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := only(nil, []string{"lo", "eth0"}); err == nil || !strings.Contains(err.Error(), "this host has lo, eth0") || !strings.Contains(err.Error(), "--interface") || !strings.Contains(err.Error(), "ip address add") {
		t.Errorf("none: %v", err)
	}
	if _, err := only([]string{"eth0 (192.0.2.5/24)", "eth1 (10.11.12.1/24)"}, nil); err == nil || !strings.Contains(err.Error(), "eth0 (192.0.2.5/24), eth1 (10.11.12.1/24); name the one that does with --interface") {
		t.Errorf("two: %v", err)
	}
}

// Scripts for iPXE try again, say why and what to do, and end by leaving the machine to its firmware; none ends at a prompt.
func TestScriptsForIPXE(t *testing.T) {
	for _, signed := range []bool{true, false} {
		n := newNetwork(t, func(o *Options) {
			if !signed {
				o.DB = nil
			}
		})
		for firmware, loads := range map[string]string{protocol.UEFI: "chain --autofree x86-uefi.efi", protocol.BIOS: "kernel x86-uefi.vmlinuz "} {
			data, err := n.s.bootBytes("x86-uefi-" + firmware + ".ipxe")
			if err != nil {
				t.Fatal(err)
			}
			tries, waits := 0, 0
			lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
			for i, line := range lines {
				word, rest, _ := strings.Cut(line, " ")
				switch word {
				case "#!ipxe":
					if i != 0 {
						t.Errorf("%s: line %d: %s", firmware, i, line)
					}
				case "chain", "imgfree": // a fault of it must not end the script
					tries++
					if !strings.Contains(line, loads) || !strings.HasSuffix(line, " ||") || !strings.HasPrefix(lines[i+1], "echo ") {
						t.Errorf("%s: %s", firmware, line)
					}
				case "echo":
					if strings.ContainsAny(rest, "|&$#") {
						t.Errorf("%s: is more than text: %s", firmware, line)
					}
				case "sleep":
					waits++
				case "exit":
					if i != len(lines)-1 || rest != "1" {
						t.Errorf("%s: firmware takes the next entry after an error alone, at the end: %s", firmware, line)
					}
				default:
					t.Errorf("%s: a command that not every iPXE has, or a prompt: %s", firmware, line)
				}
			}
			text := string(data)
			if tries != ipxeTries || waits != ipxeTries || !strings.HasSuffix(text, "exit 1\n") {
				t.Errorf("%s: %d tries, %d waits: %s", firmware, tries, waits, text)
			}
			remedies := []string{"If the link was lost, look at the cable", "Restart the machine to try again"}
			if firmware == protocol.UEFI && signed {
				remedies = append(remedies, "Secure Boot on and not our keys: clear its keys (setup mode) or switch Secure Boot off")
			} else if firmware == protocol.UEFI {
				remedies = append(remedies, "the kernel image is not signed: start skerry pxe serve with the key folder, by --keys")
			}
			for _, r := range remedies {
				if !strings.Contains(text, r) {
					t.Errorf("%s: lacks %q: %s", firmware, r, text)
				}
			}
		}
	}
}

// Installed and diskless alike: what a machine reports as its fault is on its line.
func TestFaultsThatAMachineReports(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(genuine, ":", "-")+".yaml"), []byte(releasetest.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t, func(o *Options) { o.Fleet = Folder(dir) })
	m := n.starts(genuine, protocol.Hello{})
	m.installs()
	const fault = "no disk matches install.disk: /dev/sda holds data; write install.wipe: true if that may be lost"
	n.asks = genuine
	if status, data := posted(t, n.s, protocol.ReportPath, protocol.Report{Session: m.h.Session, Stage: protocol.StageFailed, Error: fault}); status != http.StatusOK {
		t.Fatalf("%d %s", status, data)
	}
	rec, err := n.s.Get(genuine)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"log": n.said(), "page": n.page(), "list": rec.Trouble(time.Now())} {
		if !strings.Contains(text, fault) {
			t.Errorf("the %s lacks it: %s", where, text)
		}
	}
}
