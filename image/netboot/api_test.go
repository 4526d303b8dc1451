package netboot

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/releasetest"
)

// machineAt is one machine that talks to a server.
type machineAt struct {
	t   *testing.T
	l   *lan
	s   *Server
	ip  string
	pin string
	h   protocol.Hello
}

func (m *machineAt) post(path string, in any) (int, string) {
	m.t.Helper()
	status, data, err := post(m.l.web(m.ip, m.pin), fmt.Sprintf("https://10.9.0.1:%d%s", m.s.tlsPort, path), in)
	if err != nil {
		m.t.Fatal(err)
	}
	return status, string(data)
}

func (m *machineAt) hello() (a protocol.Answer) {
	m.t.Helper()
	status, data := m.post(protocol.HelloPath, m.h)
	if err := json.Unmarshal([]byte(data), &a); err != nil || status != 200 {
		m.t.Fatalf("hello: %d %s", status, data)
	}
	return a
}

// boots is what the machine's firmware is offered.
func (m *machineAt) boots(mac string) string {
	return m.s.bootFile(Client{MAC: mac, Arch: "amd64", Firmware: protocol.UEFI, By: PXE, Code: 7})
}

const machineMAC = "52:54:00:aa:00:01"

func oneMachine(t *testing.T, change func(*Options)) *machineAt {
	t.Helper()
	l, b := newLAN(t), bench(t)
	o := options(t, b)
	o.DHCP = addresses(t)
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.neighbour = func(a netip.Addr) (string, error) {
		if a.String() == "10.9.0.250" {
			return machineMAC, nil
		}
		return "52:54:00:bb:00:02", nil
	}
	start(t, s)
	l.address("10.9.0.251")
	return &machineAt{t, l, s, "10.9.0.250", s.ca.Pin(), protocol.Hello{MACs: []string{machineMAC}, Serial: "S-1", Arch: "amd64", Board: "x86-uefi", Firmware: protocol.UEFI, Session: newID()}}
}

func TestAnUnknownMachineWaitsUntilItIsApproved(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := oneMachine(t, nil)
	if m.boots(machineMAC) != "x86-uefi.efi" {
		t.Error("is not started, so that it could wait")
	}
	if a := m.hello(); a.Do != protocol.Wait || !strings.Contains(a.Why, "skerry pxe approve "+machineMAC) {
		t.Errorf("%+v", a)
	}
	if status, text := m.post(protocol.ConfigPath, m.h); status != 403 || strings.Contains(text, "token") {
		t.Errorf("its config: %d %s", status, text)
	}
	for name, a := range map[string]Approval{"no config": {}, "a broken one": {Name: "n.yaml", Config: []byte("role: king\n")}} {
		if _, err := m.s.Approve(machineMAC, a); err == nil {
			t.Errorf("%s is good enough", name)
		}
	}
	if _, err := m.s.Approve("02:00:00:00:00:77", Approval{Name: "n.yaml", Config: []byte(releasetest.Config)}); err == nil || !strings.Contains(err.Error(), "never asked") {
		t.Errorf("a machine that was never seen: %v", err)
	}
	// By another process: through the folder.
	other, err := OpenStore(m.s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Approve(machineMAC, Approval{Name: "n.yaml", Config: []byte(releasetest.Config)}); err != nil {
		t.Fatal(err)
	}
	if a := m.hello(); a.Do != protocol.Install || a.Name != "north-1" || a.ID == "" {
		t.Errorf("%+v", a)
	}
	if status, text := m.post(protocol.ConfigPath, m.h); status != 200 || given([]byte(text)) != releasetest.Config {
		t.Errorf("%d %s", status, text)
	}
}

func TestTheConfigIsGivenOnceAndTheMachineInstalledOnce(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	fleet := t.TempDir()
	if err := os.WriteFile(filepath.Join(fleet, strings.ReplaceAll(machineMAC, ":", "-")+".yaml"), []byte(releasetest.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	m := oneMachine(t, func(o *Options) { o.Fleet = Folder(fleet) })
	config := func() (int, string) { return m.post(protocol.ConfigPath, m.h) }
	if a := m.hello(); a.Do != protocol.Install {
		t.Fatalf("%+v", a)
	}
	// Another machine says that it is this one.
	thief := *m
	thief.ip = "10.9.0.251"
	if status, text := thief.post(protocol.ConfigPath, m.h); status != 403 || strings.Contains(text, "token:") {
		t.Errorf("another machine: %d %s", status, text)
	}
	if status, text := config(); status != 200 || given([]byte(text)) != releasetest.Config {
		t.Fatalf("%d %s", status, text)
	}
	if status, _ := config(); status != 200 {
		t.Error("the same start may not ask again after a lost link")
	}
	// Another start of the machine, or somebody with its address.
	again := m.h
	again.Session = newID()
	if status, text := m.post(protocol.ConfigPath, again); status != 403 || !strings.Contains(text, "did not end its installation") || !strings.Contains(text, "skerry pxe approve") {
		t.Errorf("a second time: %d %s", status, text)
	}
	if status, _ := m.post(protocol.ReportPath, protocol.Report{Session: again.Session, Stage: protocol.StageInstalled}); status != 403 {
		t.Error("somebody else says that it is installed")
	}
	if status, text := m.post(protocol.ReportPath, protocol.Report{Session: m.h.Session, Stage: protocol.StageFailed, Error: "no disk matches\nat all"}); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	if got, err := m.s.Get(machineMAC); err != nil || got.Error != "no disk matches at all" || got.Stage != protocol.StageFailed {
		t.Errorf("%+v, %v", got, err)
	}
	if status, _ := m.post(protocol.ReportPath, protocol.Report{Session: m.h.Session, Stage: protocol.StageInstalled, Disk: "/dev/vda"}); status != 200 {
		t.Error("not taken")
	}
	// From now on the network lets it start from its disk, whatever its boot order is.
	if f := m.boots(machineMAC); f != toDisk {
		t.Errorf("an installed machine is offered %s", f)
	}
	m.h = again
	if a := m.hello(); a.Do != protocol.Leave {
		t.Errorf("%+v", a)
	}
	if _, err := m.s.Approve(machineMAC, Approval{}); err == nil || !strings.Contains(err.Error(), "--reinstall") {
		t.Errorf("approved by the way: %v", err)
	}
	if _, err := m.s.Approve(machineMAC, Approval{Again: true}); err != nil {
		t.Fatal(err)
	}
	if f := m.boots(machineMAC); f != "x86-uefi.efi" {
		t.Errorf("to be installed anew, and offered %q", f)
	}
	if a := m.hello(); a.Do != protocol.Install || !a.Again {
		t.Errorf("%+v", a)
	}
}

// A server whose folder was lost does not wipe what its predecessor installed.
func TestTheDiskRemembersWhatTheServerForgot(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	fleet := t.TempDir()
	if err := os.WriteFile(filepath.Join(fleet, "S-1.yaml"), []byte(releasetest.Config+"install: {wipe: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := oneMachine(t, func(o *Options) { o.Fleet = Folder(fleet) })
	m.h.Holds = newID()
	if a := m.hello(); a.Do != protocol.Leave || !strings.Contains(a.Why, "holds an installation") {
		t.Errorf("%+v", a)
	}
	if status, _ := m.post(protocol.ConfigPath, m.h); status != 403 {
		t.Error("it got the config")
	}
	if f := m.boots(machineMAC); f != toDisk {
		t.Errorf("it is offered %q", f)
	}
}

func TestAMachineBelievesNoOtherServer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := oneMachine(t, nil)
	other, err := OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = post(m.l.web(m.ip, other.Pin()), fmt.Sprintf("https://10.9.0.1:%d%s", m.s.tlsPort, protocol.HelloPath), m.h)
	if err == nil || !strings.Contains(err.Error(), "is not the server this machine was started by") {
		t.Errorf("%v", err)
	}
}

func TestUnknownMachinesCanBeLeftAlone(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := oneMachine(t, func(o *Options) { o.LeaveUnknown = true })
	if f := m.boots(machineMAC); f != "" {
		t.Errorf("offered %s", f)
	}
	if got, err := m.s.Get(machineMAC); err != nil || !strings.Contains(got.Error, "in no fleet") {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := m.s.Approve(machineMAC, Approval{Name: "n", Config: []byte(releasetest.Config)}); err != nil {
		t.Fatal(err)
	}
	if f := m.boots(machineMAC); f != "x86-uefi.efi" {
		t.Errorf("approved, and offered %q", f)
	}
}

// Whose packets they are the kernel says.
func TestTheCallerIsKnownByItsPackets(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l, b := newLAN(t), bench(t)
	o := options(t, b)
	o.DHCP = addresses(t)
	s := run(t, o)
	m := &machineAt{t, l, s, "10.9.0.250", s.ca.Pin(), protocol.Hello{MACs: []string{machineMAC}, Arch: "amd64", Board: "x86-uefi", Session: newID()}}
	m.hello()
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].MAC == machineMAC || len(list[0].MAC) != 17 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestWhatCannotBeServedIsSaidBefore(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newLAN(t)
	b := bench(t)
	plain := releasetest.New(t, 1<<20)
	for name, c := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"no release":       {func(o *Options) { o.Releases = nil }, "--release"},
		"no folder":        {func(o *Options) { o.Releases = []string{"/no/such"} }, "no such file"},
		"twice":            {func(o *Options) { o.Releases = append(o.Releases, o.Releases[0]) }, "name one of them"},
		"an older release": {func(o *Options) { o.Releases = []string{plain.Release} }, "build it again"},
		"no interface":     {func(o *Options) { o.Interface = "eth7" }, "this host has lo, near"},
		"no address":       {func(o *Options) { o.Interface = "far" }, "far"},
		"another's key":    {func(o *Options) { o.Trusted = nil }, "trusted"},
		"another network":  {func(o *Options) { r, _ := ParseRange("10.8.0.5-10.8.0.9"); o.DHCP = &r }, "not within"},
	} {
		o := options(t, b)
		c.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := options(t, b)
	o.DB = nil
	s, err := New(o)
	if err != nil || s.kernels[0].Signed {
		t.Errorf("without keys: %v", err)
	}
	o.DB = b.Set.BootSigners()
	if _, err := New(o); err != nil {
		t.Fatal(err)
	}
	o.DB = nil
	if s, err = New(o); err != nil || !s.kernels[0].Signed {
		t.Errorf("what was signed before is not used: %v", err)
	}
}
