package netboot

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/netboot/tftp"
	"github.com/skerry-os/skerry/image/releasetest"
)

// onLoopback is a server that nobody can reach: it is asked by its handlers. All that ask are the machine with machineMAC.
func onLoopback(t *testing.T, change func(*Options)) *Server {
	t.Helper()
	o := options(t, bench(t))
	o.Interface = "lo"
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.neighbour = func(netip.Addr) (string, error) { return machineMAC, nil }
	return s
}

func posted(t *testing.T, s *Server, path string, in any) (int, []byte) {
	t.Helper()
	body, ok := in.([]byte)
	if !ok {
		var err error
		if body, err = json.Marshal(in); err != nil {
			t.Fatal(err)
		}
	}
	r, w := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body)), httptest.NewRecorder()
	r.RemoteAddr = "127.0.0.9:999"
	s.apiHandler().ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

// one knows one machine by whatever it is asked.
type one struct {
	n   Node
	err error
}

func (o one) Find(Claim) (Node, bool, error) { return o.n, true, o.err }

func (one) BySaying() bool { return false }

// A disk is written when a node config says so, nothing stands against it, and no start of the machine before this one may be
// writing still. The config goes to nobody else.
func TestVerdicts(t *testing.T) {
	s := onLoopback(t, nil)
	now, session, other := time.Now().UTC(), strings.Repeat("a", 32), strings.Repeat("b", 32)
	plain := one{n: Node{Name: "north-1", File: "n.yaml", Config: []byte(releasetest.Config)}}
	diskless := one{n: Node{Name: "north-1", File: "n.yaml", Config: []byte(releasetest.Config + "install: {diskless: true}\n")}}
	board := plain
	board.n.Board = "rpi4"
	bios, uefi, biosDiskless := plain, plain, diskless
	bios.n.Board, uefi.n.Board, biosDiskless.n.Board = "x86-bios", "x86-uefi", "x86-bios"
	for name, tt := range map[string]struct {
		fleet Fleet
		m     Machine
		h     protocol.Hello
		do    string
		says  string
	}{
		"new":                             {plain, Machine{}, protocol.Hello{}, protocol.Install, "north-1"},
		"of another board":                {board, Machine{}, protocol.Hello{}, protocol.Wait, "the fleet says it is a rpi4"},
		"BIOS as it should be":            {bios, Machine{}, protocol.Hello{Firmware: protocol.BIOS}, protocol.Install, ""},
		"BIOS that was UEFI":              {bios, Machine{}, protocol.Hello{Firmware: protocol.UEFI}, protocol.Wait, "started by its UEFI, and the fleet says it is a x86-bios"},
		"UEFI that was BIOS":              {uefi, Machine{}, protocol.Hello{Firmware: protocol.BIOS}, protocol.Wait, "started by its BIOS, and the fleet says it is a x86-uefi"},
		"UEFI as it should be":            {uefi, Machine{}, protocol.Hello{Firmware: protocol.UEFI}, protocol.Install, ""},
		"either, diskless":                {biosDiskless, Machine{}, protocol.Hello{Firmware: protocol.UEFI}, protocol.Install, ""},
		"fleet that cannot be read":       {one{plain.n, errors.New("is broken")}, Machine{}, protocol.Hello{}, protocol.Wait, "is broken"},
		"config that cannot be used":      {one{n: Node{Config: []byte("role: king\n")}}, Machine{}, protocol.Hello{}, protocol.Wait, "cannot be used"},
		"broken fleet, disk holds one":    {one{plain.n, errors.New("is broken")}, Machine{}, protocol.Hello{Holds: "x"}, protocol.Leave, "holds an installation"},
		"broken config, disk holds one":   {one{n: Node{Config: []byte("role: king\n")}}, Machine{}, protocol.Hello{Holds: "x"}, protocol.Leave, "holds an installation"},
		"broken fleet, installed":         {one{plain.n, errors.New("is broken")}, Machine{Installed: now}, protocol.Hello{}, protocol.Leave, "was installed"},
		"unknown, disk holds one":         {Nobody{}, Machine{}, protocol.Hello{Holds: "x"}, protocol.Leave, "holds an installation of this machine; to install it anew: skerry pxe approve " + machineMAC + " --reinstall --config FILE"},
		"unknown, installed":              {Nobody{}, Machine{Installed: now}, protocol.Hello{}, protocol.Leave, "was installed"},
		"of another board, holds one":     {board, Machine{}, protocol.Hello{Holds: "x"}, protocol.Leave, "holds an installation"},
		"no release":                      {plain, Machine{}, protocol.Hello{Arch: "arm64"}, protocol.Wait, "no release"},
		"disk holds one":                  {plain, Machine{}, protocol.Hello{Holds: "x"}, protocol.Leave, "holds an installation"},
		"disk holds one, reinstall":       {plain, Machine{Again: true}, protocol.Hello{Holds: "x"}, protocol.Install, ""},
		"disk holds one, diskless":        {diskless, Machine{}, protocol.Hello{Holds: "x"}, protocol.Install, ""},
		"disk holds what we write":        {plain, Machine{Session: hash(session), Handed: now}, protocol.Hello{Holds: "x"}, protocol.Install, ""},
		"handed to this start":            {plain, Machine{Session: hash(session), Handed: now}, protocol.Hello{}, protocol.Install, ""},
		"handed to another start":         {plain, Machine{Session: hash(other), Handed: now}, protocol.Hello{}, protocol.Wait, "did not end its installation"},
		"handed, nobody knows to whom":    {plain, Machine{Handed: now}, protocol.Hello{}, protocol.Wait, "did not end its installation"},
		"handed to another one, diskless": {diskless, Machine{Session: hash(other), Handed: now}, protocol.Hello{}, protocol.Install, ""},
		"installed":                       {plain, Machine{Installed: now}, protocol.Hello{}, protocol.Leave, "was installed"},
		"installed by this start":         {plain, Machine{Session: hash(session), Handed: now, Installed: now}, protocol.Hello{}, protocol.Leave, "was installed"},
		"installed, diskless":             {diskless, Machine{Installed: now}, protocol.Hello{}, protocol.Leave, "was installed"},
	} {
		tt.h.Session, tt.h.Board = session, "x86-uefi"
		if tt.h.Arch == "" {
			tt.h.Arch = "amd64"
		}
		s.Fleet = tt.fleet
		for _, path := range []string{protocol.HelloPath, protocol.ConfigPath} {
			if _, err := s.Change(machineMAC, func(m *Machine) error { *m = tt.m; m.MAC, m.Stage = machineMAC, StageBooting; return nil }); err != nil {
				t.Fatal(err)
			}
			status, data := posted(t, s, path, tt.h)
			var a protocol.Answer
			if path == protocol.HelloPath {
				if err := json.Unmarshal(data, &a); err != nil || a.Do != tt.do || !strings.Contains(a.Why, tt.says) {
					t.Errorf("%s: %d %s", name, status, data)
				}
			} else if given := strings.HasPrefix(given(data), releasetest.Config); given != (tt.do == protocol.Install) || (status == http.StatusOK) != given {
				t.Errorf("%s: its config: %d %s", name, status, data)
			}
			m, err := s.Get(machineMAC)
			if err != nil {
				t.Fatal(err)
			}
			if mine := m.Session == hash(session) && !m.Handed.IsZero(); path == protocol.ConfigPath && tt.do == protocol.Install && !mine {
				t.Errorf("%s: that the config was given is not kept: %+v", name, m)
			}
		}
	}
}

// What a machine sends is bounded, and changes nothing unless it is its turn.
func TestWhatIsNotTaken(t *testing.T) {
	s := onLoopback(t, nil)
	session := strings.Repeat("a", 32)
	hello := protocol.Hello{Session: session, Board: "x86-uefi", Arch: "amd64"}
	short := hello
	short.Session = session[1:]
	for name, in := range map[string]any{"a session that can be guessed": short, "no session": protocol.Hello{}, "no JSON": []byte("{"), "too much": []byte(`{"session":"` + strings.Repeat("a", maxBody) + `"}`)} {
		for _, path := range []string{protocol.HelloPath, protocol.ConfigPath} {
			if status, data := posted(t, s, path, in); status != http.StatusBadRequest {
				t.Errorf("%s: %s: %d %s", path, name, status, data)
			}
		}
	}
	s.neighbour = func(netip.Addr) (string, error) { return "", errors.New("a router is between") }
	for _, path := range []string{protocol.HelloPath, protocol.ConfigPath, protocol.ReportPath} {
		if status, data := posted(t, s, path, hello); status != http.StatusForbidden || !strings.Contains(string(data), "a router is between") {
			t.Errorf("%s: a machine that cannot be told: %d %s", path, status, data)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("noted were %v, %v", list, err)
	}
	s.neighbour = func(netip.Addr) (string, error) { return machineMAC, nil }
	for _, mine := range []string{"", session} {
		if status, data := posted(t, s, protocol.ReportPath, protocol.Report{Session: mine, Stage: protocol.StageInstalled}); status != http.StatusForbidden {
			t.Errorf("a report of a machine that has no config: %d %s", status, data)
		}
	}
	if _, err := s.Change(machineMAC, func(m *Machine) error {
		m.Stage, m.Session, m.Again = protocol.StageWrite, hash(session), true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if status, data := posted(t, s, protocol.ReportPath, protocol.Report{Session: session, Stage: "\x1b[31mhacked"}); status != http.StatusBadRequest {
		t.Errorf("a stage that is none: %d %s", status, data)
	}
	if m, err := s.Get(machineMAC); err != nil || m.Stage != protocol.StageWrite {
		t.Errorf("%+v, %v", m, err)
	}
	if status, data := posted(t, s, protocol.ReportPath, protocol.Report{Session: session, Stage: protocol.StageInstalled, Disk: "/dev/\x1bvda", Error: "a\n\x0cb"}); status != http.StatusOK {
		t.Errorf("%d %s", status, data)
	}
	if m, err := s.Get(machineMAC); err != nil || m.Again || m.Installed.IsZero() || m.Disk != "/dev/vda" || m.Error != "a b" {
		t.Errorf("%+v, %v", m, err)
	}
	for in, want := range map[string]string{" a\x1b[31m\x7f\n\tb\u00e9\u202e ": "a[31mb", strings.Repeat("a", 65): strings.Repeat("a", 64)} {
		if got := clean(in); got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}

// A config that a person gave goes before the fleet's; when it cannot be read, the fleet's is not what was meant.
func TestApprovedConfig(t *testing.T) {
	s := onLoopback(t, func(o *Options) { o.Fleet = one{n: Node{Name: "of-the-fleet", Config: []byte(releasetest.Config)}} })
	if f := s.bootFile(Client{MAC: machineMAC, Arch: "amd64", Firmware: protocol.UEFI, By: PXE}); f == "" {
		t.Fatal("is not started")
	}
	if _, err := s.Change(machineMAC, func(m *Machine) error { m.Session, m.Handed, m.Install = "x", time.Now(), "y"; return nil }); err != nil {
		t.Fatal(err)
	}
	m, err := s.Approve(machineMAC, Approval{Name: "n.yaml", Config: []byte(releasetest.Config)})
	if err != nil || m.Session != "" || !m.Handed.IsZero() || m.Install != "" {
		t.Errorf("approved: %+v, %v", m, err)
	}
	if n, known, err := s.node(m); err != nil || !known || n.Name != "north-1" {
		t.Errorf("%+v, %v", n, err)
	}
	file := s.file(machineMAC, ".yaml")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if n, _, err := s.node(m); err == nil {
		t.Errorf("a config that cannot be read: %+v", n)
	}
}

// Whoever makes up hardware addresses does not fill the disk; those that are known are served all the same.
func TestTooManyMachines(t *testing.T) {
	s := onLoopback(t, nil)
	client := func(mac string) Client { return Client{MAC: mac, Arch: "amd64", Firmware: protocol.UEFI, By: PXE} }
	if f := s.bootFile(client(machineMAC)); f != "x86-uefi.efi" {
		t.Errorf("offered %q", f)
	}
	for i := range mostMachines - 1 {
		if err := os.WriteFile(s.file(fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255), ".json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f := s.bootFile(client("02:01:00:00:00:00")); f != "" {
		t.Errorf("one too many is offered %q", f)
	}
	if _, err := s.Get("02:01:00:00:00:00"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one too many is noted: %v", err)
	}
	if f := s.bootFile(client(machineMAC)); f != "x86-uefi.efi" {
		t.Errorf("one that is known is offered %q", f)
	}
}

// A machine that is to have the board with a BIOS is started by the kernel image of the board that is like it, if the release has
// both.
func TestTheBoardForABIOS(t *testing.T) {
	c := Client{MAC: machineMAC, Arch: "amd64", Firmware: protocol.BIOS, By: IPXE}
	s := onLoopback(t, nil)
	s.Fleet = one{n: Node{Board: "x86-bios"}}
	if f := s.bootFile(c); f != "" {
		t.Errorf("without the board, offered %q", f)
	}
	if m, err := s.Get(machineMAC); err != nil || !strings.Contains(m.Error, "the fleet says it is a x86-bios, and no release served has that board") {
		t.Errorf("%+v, %v", m, err)
	}
	b := bench(t).AddBIOS(t)
	s = onLoopback(t, func(o *Options) { o.Releases = []string{b.Release}; o.Trusted = b.Trusted() })
	s.Fleet = one{n: Node{Board: "x86-bios"}}
	if f := s.bootFile(c); !strings.HasSuffix(f, "boot/x86-uefi-bios.ipxe") {
		t.Errorf("offered %q", f)
	}
}

func TestWaysThatAreTurnedOff(t *testing.T) {
	for _, off := range []Means{"", PXE, HTTP} {
		s := onLoopback(t, func(o *Options) { o.NoPXE, o.NoHTTP = off == PXE, off == HTTP })
		for _, by := range []Means{PXE, HTTP, IPXE} {
			if f := s.bootFile(Client{MAC: machineMAC, Arch: "amd64", Firmware: protocol.UEFI, By: by}); (f == "") != (by == off) {
				t.Errorf("without %s, by %s: %q", off, by, f)
			}
		}
	}
}

// unreadable is a fleet that cannot be asked.
type unreadable struct{}

func (unreadable) Find(Claim) (Node, bool, error) { return Node{}, false, errors.New("is broken") }

func (unreadable) BySaying() bool { return false }

// An installed machine starts from its disk; one that a broken fleet may know is not taken for unknown.
func TestWhoIsStarted(t *testing.T) {
	s := onLoopback(t, func(o *Options) { o.LeaveUnknown = true })
	c := Client{MAC: machineMAC, Arch: "amd64", Firmware: protocol.UEFI, By: PXE}
	for name, tt := range map[string]struct {
		fleet     Fleet
		installed time.Time
		by        Means
		offered   string
	}{
		"known": {one{}, time.Time{}, PXE, "x86-uefi.efi"}, "unknown": {Nobody{}, time.Time{}, PXE, ""}, "perhaps known": {unreadable{}, time.Time{}, PXE, "x86-uefi.efi"},
		"installed": {one{}, time.Now(), PXE, "from-disk"}, "installed, by HTTP": {one{}, time.Now(), HTTP, "/boot/from-disk.efi"}, "installed, by iPXE": {one{}, time.Now(), IPXE, "/boot/from-disk.ipxe"},
	} {
		s.Fleet = tt.fleet
		if _, err := s.Change(machineMAC, func(m *Machine) error { m.Stage, m.Installed = StageSeen, tt.installed; return nil }); err != nil {
			t.Fatal(err)
		}
		c.By = tt.by
		if f := s.bootFile(c); !strings.HasSuffix(f, tt.offered) || (f == "") != (tt.offered == "") {
			t.Errorf("%s: offered %q", name, f)
		}
	}
	// What they are told to fetch is not there, which sends them on; iPXE is told so.
	if _, _, err := s.tftpFile("/from-disk", netip.AddrPort{}); !errors.Is(err, tftp.ErrNone) {
		t.Errorf("by TFTP: %v", err)
	}
	for name, want := range map[string]string{"from-disk.efi": "is not served", "from-disk.ipxe": "exit 1"} {
		if data, err := s.bootBytes(name); !strings.Contains(string(data)+fmt.Sprint(err), want) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

// Of a release's folder only the release is served.
func TestOnlyTheReleaseIsServed(t *testing.T) {
	s := onLoopback(t, nil)
	rel := s.releases[0]
	for _, name := range []string{"notes.txt", "netboot/notes.txt"} {
		if err := os.WriteFile(filepath.Join(rel.dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(filepath.Join(rel.dir, name)) //nolint:errcheck // a test's
	}
	for name, want := range map[string]int{"manifest.json": 200, "manifest.sig": 200, OverlayFile("x86-uefi"): 200, "notes.txt": 404, "netboot/notes.txt": 404, "netboot/": 404, "": 404} {
		w := httptest.NewRecorder()
		s.bootHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/release/"+rel.path()+"/"+name, nil))
		if w.Code != want {
			t.Errorf("%q: %d", name, w.Code)
		}
	}
}

// What is kept of machines is for the owner alone, whole, and changed by one at a time.
func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			if _, err := []*Store{s, other}[i%2].Change(machineMAC, func(m *Machine) error { m.Stage = StageSeen; m.Done++; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if m, err := s.Get(machineMAC); err != nil || m.Done != 64 {
		t.Errorf("after 64 changes: %+v, %v", m, err)
	}
	if _, err := s.Change(machineMAC, func(m *Machine) error { m.Done = 0; return errors.New("no") }); err == nil {
		t.Error("no error")
	}
	if m, err := s.Get(machineMAC); err != nil || m.Done != 64 {
		t.Errorf("after a change that failed: %+v, %v", m, err)
	}
	if _, err := s.Approve(machineMAC, Approval{Name: "n.yaml", Config: []byte(releasetest.Config)}); err != nil {
		t.Fatal(err)
	}
	if _, err := openPoolIn(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, _ := d.Info(); err == nil && d.Name() != caFile && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// The CA is made once: machines were started with its pin.
	if again, err := OpenAuthority(dir); err != nil || again.Pin() != ca.Pin() {
		t.Errorf("another CA: %v", err)
	}
	if c, err := ca.serverTLS(); err != nil || c.MinVersion != tls.VersionTLS13 {
		t.Errorf("%+v, %v", c, err)
	}
	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, caFile), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir); err == nil {
		t.Error("a damaged certificate is good enough")
	}
	if now, err := os.ReadFile(filepath.Join(dir, keyFile)); err != nil || !bytes.Equal(now, key) {
		t.Errorf("the key was written over: %v", err)
	}
}

// openPoolIn has one lease taken.
func openPoolIn(dir string) (*pool, error) {
	r, err := ParseRange("10.9.0.0-10.9.0.7")
	if err != nil {
		return nil, err
	}
	r.Router = netip.MustParseAddr("10.9.0.2")
	p, err := openPool(r, netip.MustParsePrefix("10.9.0.1/29"), filepath.Join(dir, "leases.json"))
	if err != nil {
		return nil, err
	}
	a, err := p.offer("m0")
	if err != nil {
		return nil, err
	}
	_, err = p.take("m0", a)
	return p, err
}

// No machine gets an address that is the network's, the server's or the router's, nor one that another has.
func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	p, err := openPoolIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p.now = func() time.Time { return now }
	var got []string
	for i := range 8 {
		if a, err := p.offer(fmt.Sprintf("m%d", i)); err == nil {
			got = append(got, a.String())
		}
	}
	if want := []string{"10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"}; !slices.Equal(got, want) {
		t.Errorf("given out are %v", got)
	}
	three := netip.MustParseAddr("10.9.0.3")
	if until := p.used[three].Until; until.Sub(now) < defaultLease-time.Minute {
		t.Errorf("an offer made the lease of whoever has the address shorter: %v", until.Sub(now))
	}
	if known, err := p.take("m9", three); err == nil || !known {
		t.Errorf("another's address: %v", err)
	}
	for _, a := range []string{"10.9.0.1", "10.9.0.8", "192.0.2.3"} {
		p.used[netip.MustParseAddr(a)] = held{MAC: "m9", Until: now.Add(time.Hour)} // the range was another one before
		if known, err := p.take("m9", netip.MustParseAddr(a)); err == nil || !known {
			t.Errorf("%s, which is not ours to give: %v", a, err)
		}
	}
	p.release("m0")
	now = now.Add(time.Second)
	if _, err := p.take("m9", three); err != nil {
		t.Errorf("an address that was given back: %v", err)
	}
	now = now.Add(2 * defaultLease)
	if _, err := p.take("m1", three); err != nil {
		t.Errorf("an address whose time ended: %v", err)
	}
	r := p.Range
	r.Router = netip.MustParseAddr("192.0.2.1")
	if _, err := openPool(r, p.self, ""); err == nil || !strings.Contains(err.Error(), "router 192.0.2.1: is not within") {
		t.Errorf("a router elsewhere: %v", err)
	}
	for text, want := range map[string]string{"10.9.0.1/29": "10.9.0.7", "10.9.0.1/24": "10.9.0.255", "10.9.3.1/22": "10.9.3.255", "10.9.0.1/32": "10.9.0.1"} {
		if got := broadcast(netip.MustParsePrefix(text)); got.String() != want {
			t.Errorf("%s: the broadcast address is %v", text, got)
		}
	}
}

// Packets that are no request of a machine are not answered; answers go where RFC 2131 says.
func TestPackets(t *testing.T) {
	m := ask(t, mac1, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007", iana.EFI_X86_64)
	for name, change := range map[string]func(*dhcpv4.DHCPv4){
		"an answer":         func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply },
		"another network's": func(m *dhcpv4.DHCPv4) { m.HWType = iana.HWTypeInfiniband },
		"a longer address":  func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = append(slices.Clone(mac1), 1, 2) },
	} {
		bad := *m
		change(&bad)
		if c, ok := readClient(&bad); ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
	d := desk(t, true, nil)
	unknown := ask(t, mac1, dhcpv4.MessageTypeRequest, "", 0, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 9, 0, 11))), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1))))
	if r := d.answer(unknown, 67); r == nil || r.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("an address that we did not offer: %v", r)
	}
	peer := &net.UDPAddr{IP: net.IPv4(10, 9, 0, 77), Port: 4070}
	gateway, own := dhcpv4.WithGatewayIP(net.IPv4(10, 9, 0, 9)), dhcpv4.WithClientIP(net.IPv4(10, 9, 0, 5))
	for name, tt := range map[string]struct {
		mods []dhcpv4.Modifier
		kind dhcpv4.MessageType
		port int
		want string
	}{
		"new":              {nil, dhcpv4.MessageTypeOffer, 67, "255.255.255.255:68"},
		"has an address":   {[]dhcpv4.Modifier{own}, dhcpv4.MessageTypeAck, 67, "10.9.0.5:68"},
		"must not have it": {[]dhcpv4.Modifier{own}, dhcpv4.MessageTypeNak, 67, "255.255.255.255:68"},
		"by a relay":       {[]dhcpv4.Modifier{own, gateway}, dhcpv4.MessageTypeAck, 67, "10.9.0.9:67"},
		"boot server":      {[]dhcpv4.Modifier{own, gateway}, dhcpv4.MessageTypeAck, bootServerPort, "10.9.0.77:4070"},
	} {
		q := ask(t, mac1, dhcpv4.MessageTypeRequest, "", 0, tt.mods...)
		r, err := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithMessageType(tt.kind))
		if err != nil {
			t.Fatal(err)
		}
		if got := whereTo(q, r, peer, tt.port).String(); got != tt.want {
			t.Errorf("%s: to %s", name, got)
		}
	}
}

// A name that somebody made lead here, or an address that others reach, does not show the page.
func TestWhoseNameThePageHas(t *testing.T) {
	s := onLoopback(t, nil)
	for host, want := range map[string]int{"localhost": 200, "localhost:6482": 200, "127.0.0.1:6482": 200, "[::1]:6482": 200, "evil.example": 403, "localhost.evil.example:6482": 403, "192.0.2.1": 403, "10.9.0.1:6482": 403, "": 403} {
		r, w := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil), httptest.NewRecorder()
		r.Host = host
		s.pageHandler().ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%q: %d", host, w.Code)
		}
	}
}

// What a machine says of itself leads to no file but those of the folder, and a file that cannot be read is a fault.
func TestNamesOfConfigs(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "fleet")
	if err := os.MkdirAll(filepath.Join(dir, "S-7.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"secret.yaml", "fleet/.hidden.yaml"} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(releasetest.Config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, serial := range []string{"../secret", "x/../../secret", ".hidden", top + "/secret"} {
		if n, ok, err := Folder(dir).Find(Claim{MAC: "02:00:00:00:00:02", Serial: serial, UUID: serial}); ok || err != nil {
			t.Errorf("%s: %+v, %v", serial, n, err)
		}
	}
	if n, ok, err := Folder(dir).Find(Claim{MAC: "02:00:00:00:00:02", Serial: "S-7"}); ok || err == nil {
		t.Errorf("a file that cannot be read: %+v", n)
	}
}

// A file of the release that is not the one that was signed is not served, nor a kernel that was signed for another one.
func TestKernelsAreTheReleases(t *testing.T) {
	o := options(t, bench(t))
	r, err := OpenRelease(o.Releases[0], o.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Prepare(o.State, r, o.DB)
	if err != nil || !signed[0].Signed {
		t.Fatal(err)
	}
	ca, err := OpenAuthority(o.State)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := Compose(r, "x86-uefi", strings.Repeat("0", len(ca.Pin())), o.DB)
	if err != nil {
		t.Fatal(err)
	}
	kept := kernelFile(o.State, r, "x86-uefi", ca.Pin())
	for name, data := range map[string][]byte{"for another server": foreign.EFI, "damaged": signed[0].EFI[:1000]} {
		if err := os.WriteFile(kept, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Prepare(o.State, r, nil); err != nil || got[0].Signed || bytes.Equal(got[0].EFI, data) {
			t.Errorf("a kept kernel that is %s is used: %v", name, err)
		}
	}
	for n := range 5 {
		if got := join(make([]byte, n), []byte("next")); len(got)%4 != 0 || !bytes.HasSuffix(got, []byte("next")) || len(got) > n+7 {
			t.Errorf("behind %d bytes: %d", n, len(got))
		}
	}
	overlay := filepath.Join(r.dir, OverlayFile("x86-uefi"))
	data, err := os.ReadFile(overlay)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1]++
	if err := os.WriteFile(overlay, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(o.State, r, o.DB); err == nil || !strings.Contains(err.Error(), "fetch the release again") {
		t.Errorf("a damaged file: %v", err)
	}
}
