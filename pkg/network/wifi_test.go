package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/supervise/process"
)

const key, otherKey = "correct horse", "wrong horse"

// air is a card with a cable that must be authenticated, which is as near to WiFi as a host without a radio gets: the real
// wpa_supplicant and the real hostapd, with 802.1X between them in place of WPA.
type air struct {
	t      *testing.T
	dir    string
	reaper *process.Reaper
	in     func(func() error)
	m      *Manager

	mu     sync.Mutex
	lines  []string
	access *process.Child
}

func newAir(t *testing.T) *air {
	t.Helper()
	for _, p := range []string{"wpa_supplicant", "hostapd"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("SKERRY_TOOLS") != "" {
				t.Fatal("make setup installs it: ", err)
			}
			t.Skip("make setup installs it: ", err)
		}
	}
	a := &air{t: t, dir: t.TempDir(), reaper: process.NewReaper(), in: router(t)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { a.reaper.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	a.m = &Manager{StateDir: a.dir + "/state", Reaper: a.reaper, RunDir: a.dir + "/run", Logs: process.NewLogs(a.dir)}
	a.m.Log = func(format string, v ...any) {
		a.mu.Lock()
		a.lines = append(a.lines, fmt.Sprintf(format, v...))
		a.mu.Unlock()
		t.Logf(format, v...)
	}
	a.m.supplicant.driver = "wired"
	a.m.supplicant.conf = func(w *machine.WiFi, ctrl string) []byte {
		return fmt.Appendf(nil, "ctrl_interface=%s\nap_scan=0\nnetwork={\n\tkey_mgmt=IEEE8021X\n\teap=MD5\n\tidentity=\"node\"\n\tpassword=%q\n\teapol_flags=0\n}\n", ctrl, w.Passphrase)
	}
	return a
}

// admits starts an access point at the other end of the cable.
func (a *air) admits(key string) {
	a.t.Helper()
	conf, users := a.dir+"/hostapd.conf", a.dir+"/users"
	err := errors.Join(os.WriteFile(users, fmt.Appendf(nil, "\"node\" MD5 %q\n", key), 0o600),
		os.WriteFile(conf, fmt.Appendf(nil, "interface=far\ndriver=wired\nieee8021x=1\neap_server=1\neap_user_file=%s\nuse_pae_group_addr=1\n", users), 0o600))
	if err != nil {
		a.t.Fatal(err)
	}
	a.in(func() (err error) {
		a.access, err = a.reaper.Start(process.Spec{Path: "/usr/sbin/hostapd", Args: []string{conf}})
		return err
	})
	a.t.Cleanup(a.off)
}

func (a *air) off() {
	_ = a.access.Signal(unix.SIGTERM)
	<-a.access.Done()
}

func (a *air) said(part string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.lines, func(l string) bool { return strings.Contains(l, part) })
}

// run is a file of the wpa_supplicant that runs; "" while it is not there.
func (a *air) run(name string) string {
	found, _ := filepath.Glob(a.dir + "/run/near.*/" + name)
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

func withKey(key, address string) machine.Network {
	i := machine.Interface{Name: "near", WiFi: &machine.WiFi{WiFiNetwork: machine.WiFiNetwork{SSID: "home", Passphrase: key}}}
	if i.DHCP4 = address == ""; !i.DHCP4 {
		i.Addresses, i.Gateway = []string{address}, "10.0.9.1"
	}
	return machine.Network{Interfaces: []machine.Interface{i}}
}

// DHCP waits for the wireless network, not for the carrier alone; wpa_supplicant is started again when it dies; and its
// configuration, which holds the key, is nobody else's and goes with it.
func TestWiFiThenDHCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAir(t)
	a.m.Config = withKey(key, "")
	var s dhcpServer
	s.set(net.IPv4(10, 0, 9, 50), false)
	wait := manage(t, a.m)
	cable(t, a.in, "near", "far") // the card comes late
	s.start(t, a.in, "far")
	wait("it says what it waits for", func() bool { return a.said(`near: WiFi: waits for network "home"`) })
	wait("wpa_supplicant", func() bool {
		return a.run("ctrl/near") != "" && slices.Contains(a.m.Notes(), `near: WiFi: waits for network "home"`)
	})
	st, err := os.Stat(a.run("conf"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file with the key: %v, %v", st, err)
	}
	if n, _ := s.seen(); n > 0 || has(a.m, "10.0.9.50") {
		t.Error("DHCP was asked outside of the network")
	}
	a.admits(key)
	wait("the network", func() bool { return a.said(`near: WiFi: in network "home"`) })
	wait("an address", func() bool { return has(a.m, "10.0.9.50") })
	if notes := a.m.Notes(); len(notes) > 0 {
		t.Errorf("notes: %q", notes)
	}

	before, _ := s.seen()
	kill(t, a.run("conf"))
	wait("its end", func() bool { return a.said("near: WiFi: wpa_supplicant ended: killed by SIGKILL; again in 1s") })
	wait("another one", func() bool { return len(a.m.Notes()) == 0 })
	wait("DHCP asked again", func() bool { n, _ := s.seen(); return n > before })

	a.m.Apply(machine.Network{})
	wait("wpa_supplicant gone, with its files", func() bool { left, err := os.ReadDir(a.dir + "/run"); return err == nil && len(left) == 0 })
	noKeys(t, a)
}

// A new config with a wrong key gives way to the one that worked last, though the card has an address and its gateway answers.
func TestWiFiWrongKey(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAir(t)
	cable(t, a.in, "near", "far")
	a.admits(key)
	a.m.Config, a.m.Patience = withKey(key, "10.0.9.5/24"), 8*time.Second
	wait := manage(t, a.m)
	wait("the first config kept", func() bool { good, err := a.m.lastGood(); return err == nil && good != nil })
	a.m.Apply(withKey(otherKey, "10.0.9.6/24"))
	wait("the last good config", func() bool {
		return has(a.m, "10.0.9.5") && strings.Contains(a.m.Note(), "the one that worked last is in use")
	})
	if !strings.Contains(a.m.Note(), `near: WiFi: waits for network "home"`) {
		t.Errorf("the note is %q", a.m.Note())
	}
	wait("the network again", func() bool { return len(a.m.Notes()) == 1 })
	if good, err := a.m.lastGood(); err != nil || good.Interfaces[0].WiFi.Passphrase != key {
		t.Errorf("kept as good: %v", err)
	}
	a.off()
	a.admits(otherKey)
	a.m.Apply(withKey(otherKey, "10.0.9.7/24"))
	wait("the new config, now that the access point has its key", func() bool { return has(a.m, "10.0.9.7") && len(a.m.Notes()) == 0 })
	noKeys(t, a)
}

// A card without a radio, a release without the program, a card that is not there: each is said.
func TestWiFiMissing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAir(t)
	cable(t, a.in, "near", "far")
	a.m.Config = withKey(key, "10.0.9.5/24")
	a.m.supplicant.path = a.dir + "/nothing"
	absent := withKey(key, "").Interfaces[0]
	absent.Name = "wlan7"
	a.m.Config.Interfaces = append(a.m.Config.Interfaces, absent)
	wait := manage(t, a.m)
	wait("no program", func() bool {
		return a.said("near: WiFi: this release holds no wpa_supplicant; build one with: skerry release build --wifi")
	})
	wait("no card", func() bool { return a.said("interface wlan7: WiFi: is not there: ") })
	if err := a.m.works(); err == nil {
		t.Error("the network works")
	}
}

// kill ends the wpa_supplicant that has the file.
func kill(t *testing.T, conf string) {
	t.Helper()
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, n := range names {
		text, err := os.ReadFile(n)
		if args := strings.Split(string(text), "\x00"); err == nil && slices.Contains(args, conf) {
			var pid int
			if _, err := fmt.Sscanf(n, "/proc/%d/", &pid); err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no wpa_supplicant runs")
}

// noKeys looks for keys where none may be.
func noKeys(t *testing.T, a *air) {
	t.Helper()
	log, err := os.ReadFile(a.dir + "/wifi-near.log")
	if err != nil || !strings.Contains(string(log), "near: CTRL-EVENT-CONNECTED") {
		t.Errorf("wpa_supplicant's log: %s, %v", log, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, text := range append(slices.Clone(a.lines), string(log)) {
		if strings.Contains(text, key) || strings.Contains(text, otherKey) {
			t.Errorf("a key is told: %s", text)
		}
	}
}

// A line is written when it is whole, with its keys taken out, however it comes in.
func TestSupplicantLog(t *testing.T) {
	dir := t.TempDir()
	m := &Manager{Logs: process.NewLogs(dir), Log: t.Logf}
	l := m.wifiLog("wlan0", &machine.WiFi{WiFiNetwork: machine.WiFiNetwork{SSID: "home", Passphrase: key}})
	for _, part := range []string{"Line 3: failed to parse psk 'correct ho", "rse'.\nnext\nlong ", strings.Repeat("x", 2*maxLine), "\nlast"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	l.close()
	text, err := os.ReadFile(dir + "/wifi-wlan0.log")
	if err != nil || !strings.Contains(string(text), " Line 3: failed to parse psk '…'.\n") || strings.Contains(string(text), "horse") || strings.Contains(string(text), "last") {
		t.Errorf("%.300s, %v", text, err)
	}
	if got := l.lastLines(); len(got) < 3 || got[0] != "Line 3: failed to parse psk '…'." && got[1] != "next" {
		t.Errorf("last lines: %.300q", got)
	}
}

func TestMissingFirmware(t *testing.T) {
	got := missingFirmware([]string{
		"Linux version 6.12",
		"platform regulatory.0: Direct firmware load for regulatory.db failed with error -2",
		"brcmfmac: brcmf_fw_alloc_request: using brcm/brcmfmac43455-sdio for chip BCM4345/6",
		"brcmfmac mmc1:0001:1: Direct firmware load for brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.bin failed with error -2",
		"brcmfmac mmc1:0001:1: Direct firmware load for brcm/brcmfmac43455-sdio.bin failed with error -2",
		"brcmfmac mmc1:0001:1: Direct firmware load for brcm/brcmfmac43455-sdio.bin failed with error -2",
	})
	if want := []string{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.bin", "brcm/brcmfmac43455-sdio.bin"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// What blocks a radio is lifted if it can be.
func TestAllow(t *testing.T) {
	sys := t.TempDir()
	dir := filepath.Join(sys, "class/net/wlan0/phy80211/rfkill3")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ soft, hard, want string }{
		{"0\n", "0\n", ""},
		{"1\n", "0\n", ""},
		{"1\n", "1\n", "the radio is switched off at the machine (rfkill): a switch, a key or the firmware's setup"},
	} {
		if err := errors.Join(os.WriteFile(dir+"/soft", []byte(tt.soft), 0o600), os.WriteFile(dir+"/hard", []byte(tt.hard), 0o600)); err != nil {
			t.Fatal(err)
		}
		got := allow(sys, "wlan0")
		if soft, err := os.ReadFile(dir + "/soft"); got != tt.want || err != nil || soft[0] != '0' {
			t.Errorf("%q: %q, soft is %q", tt, got, soft)
		}
	}
}

// The name of a card's radio comes a moment after the card; its kind is there from the start.
func TestRadioOf(t *testing.T) {
	sys := t.TempDir()
	for name, uevent := range map[string]string{"wlan0": "DEVTYPE=wlan\nINTERFACE=wlan0\n", "eth0": "INTERFACE=eth0\n"} {
		dir := filepath.Join(sys, "class/net", name)
		if err := errors.Join(os.MkdirAll(dir+"/device", 0o755), os.WriteFile(dir+"/uevent", []byte(uevent), 0o600)); err != nil {
			t.Fatal(err)
		}
		l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
		if wireless(sys, l) != (name == "wlan0") || wired(sys, l) != (name == "eth0") {
			t.Errorf("%s: wireless %v, wired %v", name, wireless(sys, l), wired(sys, l))
		}
	}
	if wireless(sys, &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "wlan0"}}) {
		t.Error("what has no address of a card is one")
	}
}
