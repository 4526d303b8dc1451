package netboot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/fleet"
	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/seed"
)

// network is a server on the loopback and the machines that ask it, each by its MAC.
type network struct {
	t  *testing.T
	s  *Server
	mu sync.Mutex
	// asks is whose packets come now, and log what the server said.
	asks string
	log  bytes.Buffer
}

func newNetwork(t *testing.T, change func(*Options)) *network {
	t.Helper()
	n := &network{t: t}
	n.s = onLoopback(t, func(o *Options) {
		o.Log = func(f string, a ...any) {
			n.mu.Lock()
			defer n.mu.Unlock()
			fmt.Fprintf(&n.log, f+"\n", a...)
		}
		if change != nil {
			change(o)
		}
	})
	n.s.neighbour = func(netip.Addr) (string, error) { return n.asks, nil }
	return n
}

func (n *network) said() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// starts is a new start of the machine with a MAC, which says something of itself.
func (n *network) starts(mac string, says protocol.Hello) *oneStart {
	says.Session, says.Arch, says.Board, says.Firmware = newID(), "amd64", "x86-uefi", protocol.UEFI
	return &oneStart{n, mac, says}
}

// oneStart is one start of one machine.
type oneStart struct {
	n   *network
	mac string
	h   protocol.Hello
}

func (m *oneStart) hello() (a protocol.Answer) {
	m.n.t.Helper()
	m.n.asks = m.mac
	status, data := posted(m.n.t, m.n.s, protocol.HelloPath, m.h)
	if err := json.Unmarshal(data, &a); err != nil || status != http.StatusOK {
		m.n.t.Fatalf("%s: hello: %d %s", m.mac, status, data)
	}
	return a
}

// config is what the machine is given, "" for nothing.
func (m *oneStart) config() string {
	m.n.t.Helper()
	m.n.asks = m.mac
	status, data := posted(m.n.t, m.n.s, protocol.ConfigPath, m.h)
	if status == http.StatusOK {
		return string(data)
	}
	if status != http.StatusForbidden || bytes.Contains(data, []byte("apiVersion")) {
		m.n.t.Fatalf("%s: config: %d %s", m.mac, status, data)
	}
	return ""
}

func (m *oneStart) report(stage string) int {
	m.n.asks = m.mac
	status, _ := posted(m.n.t, m.n.s, protocol.ReportPath, protocol.Report{Session: m.h.Session, Stage: stage})
	return status
}

// waits says that the machine waits: it hears why, gets no config, and page, list and log say the same.
func (m *oneStart) waits(parts ...string) {
	m.n.t.Helper()
	a := m.hello()
	if a.Do != protocol.Wait || m.config() != "" {
		m.n.t.Errorf("%s may go on: %+v", m.mac, a)
		return
	}
	rec, err := m.n.s.Get(m.mac)
	if err != nil {
		m.n.t.Fatal(err)
	}
	html, err := m.n.s.tableHTML()
	if err != nil {
		m.n.t.Fatal(err)
	}
	page := strings.NewReplacer("&#34;", `"`, "&#39;", "'", "&amp;", "&").Replace(string(html))
	for where, text := range map[string]string{"console": a.Why, "page": page, "list": rec.Trouble(time.Now()), "log": m.n.said()} {
		for _, p := range append(parts, "skerry pxe approve "+m.mac) {
			if !strings.Contains(text, p) {
				m.n.t.Errorf("%s: the %s lacks %q: %s", m.mac, where, p, text)
			}
		}
	}
}

func (m *oneStart) installs() {
	m.n.t.Helper()
	if a := m.hello(); a.Do != protocol.Install {
		m.n.t.Fatalf("%s: %+v", m.mac, a)
	}
	if m.config() == "" {
		m.n.t.Fatalf("%s gets no config", m.mac)
	}
}

const (
	genuine = "52:54:00:aa:00:02"
	laptop  = "02:66:66:00:00:01"
	third   = "02:66:66:00:00:02"
)

// claims are the ways in which a machine can say that it is a node, and the fleets that know it so.
func claims(t *testing.T) map[string]struct {
	fleet Fleet
	says  protocol.Hello
} {
	t.Helper()
	folder := func(name string) Fleet {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(releasetest.Config), 0o600); err != nil {
			t.Fatal(err)
		}
		return Folder(dir)
	}
	const uuid = "4c4c4544-0035-3010-8048-b7c04f4a4d32"
	card := protocol.Hello{MACs: []string{"52:54:00:AA:00:77"}}
	return map[string]struct {
		fleet Fleet
		says  protocol.Hello
	}{
		"serial, folder": {folder("S-2"), protocol.Hello{Serial: "S-2"}},
		"UUID, folder":   {folder(strings.ToUpper(uuid)), protocol.Hello{UUID: uuid}},
		"card, folder":   {folder("52-54-00-aa-00-77"), card},
		"serial, fleet":  {nodes(t, "  - {name: first, board: x86-uefi, role: server, mac: \"52:54:00:AA:00:01\"}\n  - {name: north-1, board: x86-uefi, role: agent, serial: S-2}\n"), protocol.Hello{Serial: "S-2"}},
		"card, fleet":    {nodes(t, "  - {name: first, board: x86-uefi, role: server, mac: \"52:54:00:AA:00:01\"}\n  - {name: north-1, board: x86-uefi, role: agent, mac: \"52:54:00:aa:00:77\"}\n"), card},
		"card and serial": {nodes(t, "  - {name: first, board: x86-uefi, role: server, mac: \"52:54:00:AA:00:01\"}\n  - {name: north-1, board: x86-uefi, role: agent, mac: \"52:54:00:aa:00:77\", serial: S-2}\n"),
			protocol.Hello{MACs: card.MACs, Serial: "s-2"}},
	}
}

// nodes is a fleet's file with these nodes.
func nodes(t *testing.T, list string) *Nodes {
	t.Helper()
	b := bench(t)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	text := fmt.Sprintf("apiVersion: skerry/v1alpha1\nkind: Fleet\nname: lab\nkeys: %s\nreleases: {amd64: %s}\ncluster: {server: \"https://10.11.12.50:6443\"}\nnodes:\n%s", b.Keys, b.Release, list)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := OpenNodes(f, fleet.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a machine says of itself anybody can say: it is a reason to ask a person, and none to give a config away.
func TestSayingWhoOneIsGivesNothing(t *testing.T) {
	for name, c := range claims(t) {
		n := newNetwork(t, func(o *Options) { o.Fleet = c.fleet })
		thief := n.starts(laptop, c.says)
		if text := thief.config(); text != "" {
			t.Errorf("%s: a config for who has said nothing: %s", name, text)
		}
		thief.waits("it says that it is node north-1, by its ", "anybody on this network can say that")
		m := n.starts(genuine, c.says)
		m.waits("it says that it is node north-1, by its ")
		// A person goes and looks at the machine's label.
		if _, err := n.s.Approve(genuine, Approval{}); err != nil {
			t.Fatal(err)
		}
		m.installs()
		thief.waits("node north-1 is another machine already, "+genuine, "got its node config at", "skerryd node remove north-1")
		if status := m.report(protocol.StageInstalled); status != http.StatusOK {
			t.Errorf("%s: the genuine one's report: %d", name, status)
		}
		n.starts(third, c.says).waits("node north-1 is another machine already, "+genuine, "was installed at")
	}
}

// Where the operator trusts what machines say, the first is believed, once; whoever comes then is refused, until a person says
// who it is, and the other has lost it then.
func TestANodeIsOneMachine(t *testing.T) {
	for name, c := range claims(t) {
		n := newNetwork(t, func(o *Options) { o.Fleet, o.TrustSerials = c.fleet, true })
		thief := n.starts(laptop, c.says)
		thief.installs()
		m := n.starts(genuine, c.says)
		m.waits("node north-1 is another machine already, "+laptop, "got its node config at", "If the other one is not yours, it may have this node's config and token: skerryd node remove north-1")
		n.starts(third, c.says).waits("node north-1 is another machine already, " + laptop)
		if _, err := n.s.Approve(genuine, Approval{}); err != nil {
			t.Fatal(err)
		}
		if status := thief.report(protocol.StageInstalled); status != http.StatusForbidden {
			t.Errorf("%s: a machine that lost the node still reports: %d", name, status)
		}
		m.installs()
		thief.waits("node north-1 is another machine already, " + genuine)
		n.starts(laptop, c.says).waits("node north-1 is another machine already, " + genuine)
		if status := m.report(protocol.StageInstalled); status != http.StatusOK {
			t.Errorf("%s: %d", name, status)
		}
		n.starts(third, c.says).waits("node north-1 is another machine already, " + genuine)
	}
}

// A MAC address is a claim as well, that of the packets: who comes first is given the config once, and the other is an alarm.
func TestANodeKnownByItsMAC(t *testing.T) {
	dir := t.TempDir()
	for _, config := range []string{releasetest.Config, releasetest.Config + "install: {diskless: true}\n"} {
		if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(genuine, ":", "-")+".yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		n := newNetwork(t, func(o *Options) { o.Fleet, o.TrustSerials = Folder(dir), true })
		n.starts(genuine, protocol.Hello{}).installs()
		// Somebody names its card; with the flag that would do, were it the first.
		n.starts(laptop, protocol.Hello{MACs: []string{genuine}}).waits("node north-1 is another machine already, " + genuine)
		again := n.starts(genuine, protocol.Hello{})
		if diskless := strings.Contains(config, "diskless"); diskless {
			again.installs() // at every start
		} else {
			again.waits("did not end its installation")
		}
	}
}

// The first server gets the cluster's keys: not by what it says, whatever the operator trusts.
func TestTheClustersKeysAreNotForTheAsking(t *testing.T) {
	n := newNetwork(t, func(o *Options) {
		o.TrustSerials = true
		o.Fleet = nodes(t, "  - {name: north-1, board: x86-uefi, role: server, serial: S-1}\n  - {name: south-1, board: x86-uefi, role: agent, serial: S-2}\n")
	})
	n.starts(laptop, protocol.Hello{Serial: "S-1"}).waits("it says that it is node north-1, by its serial S-1, and that node gets the cluster's keys")
	m := n.starts(genuine, protocol.Hello{Serial: "S-1"})
	m.waits("gets the cluster's keys")
	if _, err := n.s.Approve(genuine, Approval{}); err != nil {
		t.Fatal(err)
	}
	if a := m.hello(); a.Do != protocol.Install {
		t.Errorf("%+v", a)
	}
	var got protocol.Config
	if err := json.Unmarshal([]byte(m.config()), &got); err != nil || len(got.Beside[seed.Name]) == 0 {
		t.Errorf("the keys are not given: %v", err)
	}
	n.starts(third, protocol.Hello{Serial: "S-2"}).installs()
}

// A node that has a mac and a serial is the machine that has both. Before it has said anything, its MAC leads to the installer.
func TestANodeWithTwoNames(t *testing.T) {
	f := nodes(t, "  - {name: north-1, board: x86-uefi, role: server, mac: \"52:54:00:aa:00:02\", serial: S-2}\n  - {name: south-1, board: x86-uefi, role: agent, serial: S-3}\n")
	for name, tt := range map[string]struct {
		c    Claim
		node string
		said string
		err  string
	}{
		"both":               {Claim{MAC: genuine, Serial: "S-2"}, "north-1", "", ""},
		"early":              {Claim{MAC: genuine, Early: true}, "north-1", "", ""},
		"early, remembered":  {Claim{MAC: genuine, Serial: "S-9", Early: true}, "", "", "north-1: has this machine's mac, and another serial"},
		"the MAC alone":      {Claim{MAC: genuine}, "", "", "north-1: has this machine's mac, and another serial"},
		"another serial":     {Claim{MAC: genuine, Serial: "S-9"}, "", "", `"S-9"; put one of them right`},
		"the serial alone":   {Claim{MAC: laptop, Serial: "S-2"}, "", "", "north-1: has this machine's serial, and another mac than " + laptop},
		"by its second card": {Claim{MAC: laptop, Cards: []string{laptop, genuine}, Serial: "S-2"}, "north-1", "network card " + genuine, ""},
		"a card, no serial":  {Claim{MAC: laptop, Cards: []string{laptop, genuine}}, "", "", "another serial"},
		"another node":       {Claim{MAC: genuine, Serial: "S-3"}, "south-1", "serial S-3", ""},
		"nobody":             {Claim{MAC: laptop, Serial: "S-9"}, "", "", ""},
	} {
		got, ok, err := f.Find(tt.c)
		if ok != (tt.node != "") || got.Name != tt.node || got.Said != tt.said || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %+v, %v, %v", name, got, ok, err)
		}
	}
	n := newNetwork(t, func(o *Options) { o.Fleet, o.TrustSerials = f, true })
	if file := n.s.bootFile(Client{MAC: genuine, Arch: "amd64", Firmware: protocol.UEFI, By: PXE}); file == "" {
		t.Error("is not started to say its serial")
	}
	a := n.starts(genuine, protocol.Hello{Serial: "S-9"})
	if got := a.hello(); got.Do != protocol.Wait || !strings.Contains(got.Why, "another serial") || a.config() != "" {
		t.Errorf("another machine behind its MAC: %+v", got)
	}
	n.starts(genuine, protocol.Hello{Serial: "S-2"}).installs()
}

// A folder's files are found whatever the letters of the MAC, and the MAC that a machine asks by goes before what it says.
func TestNamesInAFolder(t *testing.T) {
	for _, file := range []string{"52-54-00-aa-00-02", "52:54:00:aa:00:02", "52-54-00-AA-00-02", "52:54:00:AA:00:02"} {
		dir := t.TempDir()
		for name, host := range map[string]string{file: "by-mac", "S-2": "by-serial"} {
			if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(strings.Replace(releasetest.Config, "north-1", host, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if n, ok, err := Folder(dir).Find(Claim{MAC: genuine, Serial: "S-2"}); !ok || err != nil || n.Name != "by-mac" || n.Said != "" {
			t.Errorf("%s: %+v, %v", file, n, err)
		}
		if n, ok, err := Folder(dir).Find(Claim{MAC: laptop, Cards: []string{genuine}, Serial: "S-2"}); !ok || err != nil || n.Name != "by-mac" || n.Said != "network card "+genuine {
			t.Errorf("%s: %+v, %v", file, n, err)
		}
	}
}

// A machine with two cards is known by the first; its firmware goes on to the second. It starts from its disk all the same, and a
// person can say that it is one machine.
func TestTheSecondCard(t *testing.T) {
	dir := t.TempDir()
	write := func(more string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(genuine, ":", "-")+".yaml"), []byte(releasetest.Config+more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	both := protocol.Hello{MACs: []string{third, genuine}}
	n := newNetwork(t, func(o *Options) { o.Fleet = Folder(dir) })
	first := n.starts(genuine, both)
	first.installs()
	if status := first.report(protocol.StageInstalled); status != http.StatusOK {
		t.Fatal(status)
	}
	installed, err := n.s.Get(genuine)
	if err != nil {
		t.Fatal(err)
	}
	holds := both
	holds.Holds = installed.Install
	if a := n.starts(third, holds).hello(); a.Do != protocol.Leave || !strings.Contains(a.Why, "its disk holds an installation of this machine") {
		t.Errorf("by the second card: %+v", a)
	}
	if f := n.s.bootFile(Client{MAC: third, Arch: "amd64", Firmware: protocol.UEFI, By: PXE}); f != toDisk {
		t.Errorf("and it is started again: %q", f)
	}
	if m, err := n.s.Get(genuine); err != nil || m.Bound == "" {
		t.Errorf("the node is taken from the machine: %+v, %v", m, err)
	}
	// From memory, by either card: approved once for the second.
	write("install: {diskless: true}\n")
	n = newNetwork(t, func(o *Options) { o.Fleet = Folder(dir) })
	n.starts(genuine, both).installs()
	n.starts(third, both).waits("node north-1 is another machine already, " + genuine)
	if _, err := n.s.Approve(third, Approval{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n.starts(third, both).installs()
		n.starts(genuine, both).installs()
	}
	n.starts(laptop, both).waits("node north-1 is another machine already")
}

// A machine that was approved by hand, and one that is in no fleet any more, start from their disks when the folder of the server
// is lost.
func TestALostFolderKeepsNobodyFromItsDisk(t *testing.T) {
	for _, leave := range []bool{false, true} {
		n := newNetwork(t, func(o *Options) { o.LeaveUnknown = leave })
		a := n.starts(genuine, protocol.Hello{Holds: newID()}).hello()
		if a.Do != protocol.Leave || !strings.Contains(a.Why, "its disk holds an installation of this machine") {
			t.Errorf("%+v", a)
		}
		m, err := n.s.Get(genuine)
		if err != nil || m.Stage != protocol.StageInstalled || m.Installed.IsZero() {
			t.Errorf("%+v, %v", m, err)
		}
		// Whoever claims to hold something gets nothing, and takes nothing from another.
		if text := n.starts(laptop, protocol.Hello{Holds: newID()}).config(); text != "" {
			t.Errorf("given: %s", text)
		}
	}
	for name, c := range claims(t) {
		n := newNetwork(t, func(o *Options) { o.Fleet = c.fleet })
		holds := c.says
		holds.Holds = newID()
		if a := n.starts(laptop, holds).hello(); a.Do != protocol.Leave {
			t.Errorf("%s: %+v", name, a)
		}
		if m, err := n.s.Get(laptop); err != nil || m.Bound != "" {
			t.Errorf("%s: by saying so, it took the node: %+v, %v", name, m, err)
		}
	}
}

// Unknown machines are left alone, but where some node is known by its serial alone: they are started, say theirs, and go on to
// their disks.
func TestUnknownMachinesSayWhoTheyAreBeforeTheyAreLeftAlone(t *testing.T) {
	asks := func(n *network, mac string) bool {
		return n.s.bootFile(Client{MAC: mac, Arch: "amd64", Firmware: protocol.UEFI, By: PXE}) != ""
	}
	for name, c := range claims(t) {
		n := newNetwork(t, func(o *Options) { o.Fleet, o.LeaveUnknown, o.TrustSerials = c.fleet, true, true })
		if started := asks(n, genuine); started != c.fleet.BySaying() {
			t.Errorf("%s: is started: %v", name, started)
			continue
		}
		if !c.fleet.BySaying() {
			continue // known by a MAC that this card has not
		}
		n.starts(genuine, c.says).installs()
		if !asks(n, laptop) {
			t.Errorf("%s: the second is not started", name)
		}
		for range 2 {
			a := n.starts(laptop, protocol.Hello{Serial: "S-7"}).hello()
			if a.Do != protocol.Leave || !strings.Contains(a.Why, "skerry pxe approve "+laptop+" --config FILE") {
				t.Errorf("%s: unknown: %+v", name, a)
			}
			if m, err := n.s.Get(laptop); err != nil || !m.Installed.IsZero() || m.Stage != StageLeft {
				t.Errorf("%s: is taken for installed: %+v, %v", name, m, err)
			}
			if asks(n, laptop) {
				t.Errorf("%s: is started again, although it is unknown", name)
			}
		}
		if _, err := n.s.Approve(laptop, Approval{Name: "n.yaml", Config: []byte(releasetest.Config)}); err != nil {
			t.Fatal(err)
		}
		if !asks(n, laptop) {
			t.Errorf("%s: approved, and not started", name)
		}
		n.starts(laptop, protocol.Hello{Serial: "S-7"}).installs()
	}
	// It is put into the fleet's folder later: what it said is remembered.
	dir := t.TempDir()
	put := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(releasetest.Config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("S-1.yaml")
	n := newNetwork(t, func(o *Options) { o.Fleet, o.LeaveUnknown, o.TrustSerials = Folder(dir), true, true })
	if a := n.starts(laptop, protocol.Hello{Serial: "S-7"}).hello(); a.Do != protocol.Leave || asks(n, laptop) {
		t.Errorf("%+v", a)
	}
	put("S-7.yaml")
	if !asks(n, laptop) {
		t.Error("is not started, although it is known now")
	}
}

// A token that opens the cluster to whoever sees it is said, and one that was made for a node is not.
func TestTokensThatServeAgain(t *testing.T) {
	const agent = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: agent\nhostname: a-1\ncluster: {server: \"https://10.0.0.1:6443\", token: %q}\n"
	pin := "K10" + strings.Repeat("0", 64) + "::"
	for text, warns := range map[string]bool{"0123456789abcdef0123456789abcdef": true, pin + "server:0123456789abcdef": true, pin + "abc123.0123456789abcdef": false, "abc123.0123456789abcdef": false} {
		dir := t.TempDir()
		config := fmt.Sprintf(agent, text)
		if err := os.WriteFile(filepath.Join(dir, "S-1.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(Folder(dir).Advice(), "\n"); strings.Contains(got, "S-1.yaml: its token is the cluster's own") != warns || warns && !strings.Contains(got, "skerryd token create --node a-1") {
			t.Errorf("%s: %q", text, got)
		}
		n := newNetwork(t, nil)
		m := n.starts(genuine, protocol.Hello{})
		m.waits("nobody knows this machine")
		if _, err := n.s.Approve(genuine, Approval{Name: "a.yaml", Config: []byte(config)}); err != nil {
			t.Fatal(err)
		}
		m.installs()
		if got := n.said(); strings.Contains(got, "its token is the cluster's own") != warns {
			t.Errorf("approved with %s: %s", text, got)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "S-1.yaml"), []byte(releasetest.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Folder(dir).Advice(); len(got) != 0 {
		t.Errorf("a first server, which has no other: %q", got)
	}
}
