package wpa

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skerry-os/skerry/pkg/machine"
)

var everyKind = &machine.WiFi{
	WiFiNetwork: machine.WiFiNetwork{SSID: "home", Passphrase: `say "please" #1`, Hidden: true, Priority: 2},
	Country:     "DE",
	Networks: []machine.WiFiNetwork{
		{SSID: "two", Passphrase: "correct horse", Security: machine.WiFiWPA2},
		{SSID: "raw", PSK: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
		{SSID: "three", Passphrase: "correct horse", Security: machine.WiFiWPA3},
		{SSID: "café", Security: machine.WiFiOpen},
	},
}

const conf = `ctrl_interface=/run/x
p2p_disabled=1
sae_pwe=2
country=DE
network={
	ssid=686f6d65
	scan_ssid=1
	priority=2
	key_mgmt=SAE WPA-PSK WPA-PSK-SHA256
	proto=RSN
	pairwise=CCMP
	ieee80211w=1
	psk="say "please" #1"
}
network={
	ssid=74776f
	key_mgmt=WPA-PSK WPA-PSK-SHA256
	proto=RSN
	pairwise=CCMP
	ieee80211w=1
	psk="correct horse"
}
network={
	ssid=726177
	key_mgmt=WPA-PSK WPA-PSK-SHA256
	proto=RSN
	pairwise=CCMP
	ieee80211w=1
	psk=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
}
network={
	ssid=7468726565
	key_mgmt=SAE
	proto=RSN
	pairwise=CCMP
	ieee80211w=2
	sae_password="correct horse"
}
network={
	ssid=636166c3a9
	key_mgmt=NONE
}
`

func TestConf(t *testing.T) {
	_, got, _ := strings.Cut(string(Conf(everyKind, "/run/x")), "\n")
	if got != conf {
		t.Errorf("got\n%s\nwant\n%s", got, conf)
	}
}

// What the events of wpa_supplicant 2.10 come to. Each line is one, or a STATUS.
func TestTracker(t *testing.T) {
	one := &machine.WiFi{WiFiNetwork: machine.WiFiNetwork{SSID: "home", Passphrase: "correct horse"}}
	two := &machine.WiFi{Networks: []machine.WiFiNetwork{{SSID: `a "b" c`, Security: machine.WiFiOpen}, {SSID: "home", Passphrase: "correct horse", Security: machine.WiFiWPA2}}}
	for _, tt := range []struct {
		name string
		w    *machine.WiFi
		said string
		want string
	}{
		{"nothing yet", one, "", `waits for network "home"`},
		{"nothing yet, of two", two, "", `waits for network "a \"b\" c" or "home"`},
		{"not there", one, "CTRL-EVENT-SCAN-RESULTS \nCTRL-EVENT-NETWORK-NOT-FOUND ", `waits for network "home": no such network is in reach`},
		{"wrong key of WPA2", one, `CTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=15
CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="home" auth_failures=1 duration=10 reason=WRONG_KEY
CTRL-EVENT-NETWORK-NOT-FOUND `, `waits for network "home": the key of "home" is wrong; correct its passphrase in the node config`},
		{"wrong key of the second of two", two, `CTRL-EVENT-SSID-TEMP-DISABLED id=1 ssid="ho\"me" auth_failures=1 duration=10 reason=WRONG_KEY`,
			`waits for network "a \"b\" c" or "home": the key of "home" is wrong; correct its passphrase in the node config`},
		{"wrong key of WPA3", one, `CTRL-EVENT-AUTH-REJECT 02:00:00:00:01:00 auth_type=3 auth_transaction=2 status_code=15
CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="home" auth_failures=1 duration=10 reason=CONN_FAILED
CTRL-EVENT-NETWORK-NOT-FOUND `, `waits for network "home": the key of "home" is wrong; correct its passphrase in the node config`},
		{"no room", one, "CTRL-EVENT-ASSOC-REJECT bssid=02:00:00:00:01:00 status_code=17", `waits for network "home": the access point has no room for another machine`},
		{"refused", one, "CTRL-EVENT-AUTH-REJECT 02:00:00:00:01:00 auth_type=0 auth_transaction=2 status_code=13", `waits for network "home": the access point refuses (IEEE 802.11 status code 13)`},
		{"gives up", one, `CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="home" auth_failures=4 duration=90 reason=CONN_FAILED`, `waits for network "home": no connection with "home" comes about (CONN_FAILED)`},
		{"gone for long after a wrong key", one, `CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="home" auth_failures=1 duration=10 reason=WRONG_KEY
later
CTRL-EVENT-NETWORK-NOT-FOUND `, `waits for network "home": no such network is in reach`},
		{"in", one, "CTRL-EVENT-NETWORK-NOT-FOUND \n<3>CTRL-EVENT-CONNECTED - Connection to 02:00:00:00:01:00 completed [id=0 id_str=]", `in network "home"`},
		{"in, as STATUS tells it", two, "STATUS wpa_state=COMPLETED id=1 key_mgmt=WPA2-PSK-SHA256 freq=2437", `in network "home" (WPA2, 2437 MHz)`},
		{"in, by SAE", one, "STATUS wpa_state=COMPLETED id=0 key_mgmt=SAE freq=5180", `in network "home" (WPA3, 5180 MHz)`},
		{"in, open", two, "STATUS wpa_state=COMPLETED id=0 key_mgmt=NONE freq=2412", `in network "a \"b\" c" (open, 2412 MHz)`},
		{"lost", one, "STATUS wpa_state=COMPLETED id=0 key_mgmt=SAE freq=5180\nCTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=3", `waits for network "home"`},
		{"blocked", one, "STATUS wpa_state=INTERFACE_DISABLED blocked=x", `waits for network "home": the radio is off`},
		{"down", one, "STATUS wpa_state=INTERFACE_DISABLED", `waits for network "home": the card is down`},
	} {
		tr, now := NewTracker(tt.w), time.Unix(1e9, 0)
		for line := range strings.Lines(tt.said) {
			line = strings.TrimSpace(line)
			switch status, ok := strings.CutPrefix(line, "STATUS "); {
			case line == "later":
				now = now.Add(time.Hour)
			case ok:
				blocked := ""
				if strings.Contains(status, "blocked=") {
					blocked = "the radio is off"
				}
				tr.Status(pairs(strings.Fields(status)), blocked)
			default:
				tr.Event(ParseEvent(line), now)
			}
		}
		if h := tr.Health(); h.Text != tt.want || h.Connected != strings.HasPrefix(tt.want, "in ") {
			t.Errorf("%s: %+v, want %s", tt.name, h, tt.want)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add("<3>CTRL-EVENT-CONNECTED - Connection to 02:00:00:00:01:00 completed [id=0 id_str=]")
	f.Add(`<3>CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="ho\"me" auth_failures=1 duration=10 reason=WRONG_KEY`)
	f.Add(`CTRL-EVENT-AUTH-REJECT 02:00:00:00:01:00 auth_type=3 auth_transaction=2 status_code=15`)
	f.Fuzz(func(t *testing.T, text string) {
		tr := NewTracker(everyKind)
		tr.Event(ParseEvent(text), time.Unix(1e9, 0))
		if tr.Health().Text == "" {
			t.Error("it says nothing")
		}
	})
}

// The real wpa_supplicant takes the configuration, under its driver for cables, which needs no radio; and it answers.
func TestRealSupplicant(t *testing.T) {
	program, err := exec.LookPath("wpa_supplicant")
	if err != nil {
		if os.Getenv("SKERRY_TOOLS") != "" {
			t.Fatal("make setup installs it: ", err)
		}
		t.Skip("make setup installs it: ", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	const env = "SKERRY_TEST_IN_NAMESPACE"
	if os.Getenv(env) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), env+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v", err)
		}
		t.Logf("%s", out)
		return
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"near", "far"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	ctrl, file := filepath.Join(dir, "ctrl"), filepath.Join(dir, "conf")
	if err := os.WriteFile(file, Conf(everyKind, ctrl), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.CommandContext(t.Context(), program, "-i", "near", "-D", "wired", "-c", file)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	var c *Client
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err = Dial(ctrl, "near"); err == nil {
			break
		}
		if time.Now().After(end) {
			stop()
			t.Fatalf("%v; it says %s", err, said.String())
		}
	}
	defer c.Close()
	if got, err := c.Ask("PING"); got != "PONG" || err != nil {
		t.Errorf("PING: %q, %v", got, err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, err := c.Status()
		if err == nil && status["wpa_state"] == "ASSOCIATED" && status["id"] == "0" { // a cable knows no more of it
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("STATUS: %v, %v", status, err)
		}
	}
	list, err := c.Ask("LIST_NETWORKS")
	for i, name := range []string{"home", "two", "raw", "three", `caf\xc3\xa9`} { // its numbers are our places
		if err != nil || !strings.Contains(list, fmt.Sprintf("\n%d\t%s\t", i, name)) {
			t.Errorf("network %d is not %s: %s, %v", i, name, list, err)
		}
	}
	if got, _ := c.Ask("GET_NETWORK 4 key_mgmt"); got != "NONE" {
		t.Errorf("the open network: %q", got)
	}
	if got, _ := c.Ask("GET_NETWORK 3 key_mgmt"); got != "SAE" {
		t.Errorf("the network of WPA3: %q", got)
	}
	if got, _ := c.Ask("GET_NETWORK 0 psk"); got != "*" {
		t.Errorf("a key: %q", got)
	}
	if got, _ := c.Ask("GET country"); got != "DE" {
		t.Errorf("country: %q", got)
	}
	if _, err := c.Ask("DISCONNECT"); err != nil {
		t.Error(err)
	}
	heard := false
	for range 20 {
		e, ok, err := c.Next(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if heard = heard || ok && e.Name == "CTRL-EVENT-DISCONNECTED" && e.Fields["reason"] != ""; heard {
			break
		}
	}
	if !heard {
		t.Error("no event says that it disconnected")
	}
	stop()
	if strings.Contains(said.String(), "correct horse") || strings.Contains(said.String(), "please") {
		t.Errorf("it tells a key: %s", said.String())
	}
	if _, err := c.Status(); err == nil {
		t.Error("it answers after its end")
	}
	t.Log(said.String())
}
