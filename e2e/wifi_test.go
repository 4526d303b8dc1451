package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/conformance/images"
	"github.com/skerry-os/skerry/e2e/vm"
	"github.com/skerry-os/skerry/image/oci"
)

const (
	wifiKey, wifiOther = "correct horse battery", "another horse battery"
	apImage            = "skerry.local/e2e/hostapd:1"
)

// apScript is the access point: hostapd and a DHCP server on the machine's second radio. Its first argument is the part of
// hostapd's configuration that says how the network is secured.
const apScript = `
printf 'interface=wlan1\ndriver=nl80211\nctrl_interface=/tmp/hostapd\nssid=skerry\nhw_mode=g\nchannel=6\nauth_algs=1\nwpa=2\nrsn_pairwise=CCMP\n%b' "$1" >/tmp/hostapd.conf
printf 'interface wlan1\nstart 10.98.0.20\nend 10.98.0.20\noption subnet 255.255.255.0\noption lease 600\nlease_file /tmp/leases\npidfile /tmp/udhcpd.pid\n' >/tmp/udhcpd.conf
touch /tmp/leases
hostapd -t /tmp/hostapd.conf & ap=$!
trap 'kill $ap; wait $ap; exit 0' TERM
until hostapd_cli -p /tmp/hostapd -i wlan1 status | grep -q state=ENABLED; do kill -0 $ap || exit 1; sleep 1; done
ip addr add 10.98.0.1/24 dev wlan1 || true
udhcpd -f /tmp/udhcpd.conf &
wait $ap`

// A machine with two radios: wlan0 joins a network as its config says, and a pod is the access point on wlan1. It joins by WPA2, then
// by WPA3, has its own address and one by DHCP through the air; a key that is wrong is told as that, for both. All it needs for that,
// the access point's image too, is said to image build, which makes a release that has it.
func TestWiFi(t *testing.T) {
	o := machineOf(t)
	out, err := filepath.Abs(*outDir)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(out, "wifi")
	archive, overlay := filepath.Join(dir, "hostapd.tar"), t.TempDir()
	makeAccessPoint(t, dir, archive)
	text, err := os.ReadFile(built(t, "run/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "node.yaml")
	text = fmt.Appendf(text, `modules: [mac80211_hwsim radios=2]
network:
  interfaces:
    - {name: eth0, dhcp4: true}
    - {name: wlan0, dhcp4: true, addresses: [10.99.0.2/24], wifi: {ssid: skerry, passphrase: %s, country: DE}}
server: {disable: [ingress, local-storage, metrics-server, network-policy, servicelb]}
`, wifiKey)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Image, o.Forwards = filepath.Join(t.TempDir(), "wifi.img"), []vm.Forward{{Guest: 6443}}
	if err := errors.Join(os.MkdirAll(filepath.Join(overlay, "usr/share/own"), 0o755), os.WriteFile(filepath.Join(overlay, "usr/share/own/note"), []byte("of the overlay"), 0o644)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	run(t, built(t, "bin/skerry"), "image", "build", "--board", "x86-uefi", "--quiet", "--keys", built(t, "keys"), "--wifi", "--extra-module", "mac80211_hwsim",
		"--image-archive", archive, "--overlay", overlay, "--kernel-arg", "skerry_e2e=own", "--config", config, "-o", o.Image)
	t.Logf("the image and its release are built after %v", time.Since(began).Round(time.Second))

	n := power(t, o)
	// This one first: the machine is not kept waiting by a network that is not there yet.
	n.expect(long, `skerry: wlan0: WiFi: waits for network "skerry"`)
	n.expect(long, `skerry: node: Ready`)
	c := n.clusterOf(config)
	c.ready()
	u := &updates{t: t, o: o}
	fail := func(format string, a ...any) {
		t.Helper()
		t.Log(c.radios()) // the machine ends with the test
		n.PowerCut()
		t.Logf("wpa_supplicant on the machine:\n%s", u.wifiLog())
		t.Fatalf(format, a...)
	}
	expect := func(expr string) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("waited %v", patience))
		defer cancel()
		if found, err := n.WaitConsole(ctx, expr); err != nil {
			fail("%v", err)
		} else {
			t.Log(found[0])
		}
	}
	// sees waits until the pod's program says all parts.
	sees := func(parts []string, args ...string) {
		t.Helper()
		var out string
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Second) {
			out, err = c.try(t.Context(), "", append([]string{"exec", "ap", "--"}, args...)...)
			if err == nil && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(out, p) }) {
				return
			}
		}
		fail("%s does not say %q within %v: %v\n%s", strings.Join(args, " "), parts, patience, err, out)
	}
	stations := []string{"hostapd_cli", "-p", "/tmp/hostapd", "-i", "wlan1", "all_sta"}
	if text := n.Text(); !strings.Contains(text, `skerry| note      wlan0: WiFi: waits for network "skerry"`) {
		t.Errorf("the display does not tell that wlan0 waits")
	}

	const wpa2, wpa3 = `wpa_key_mgmt=WPA-PSK\n`, `wpa_key_mgmt=SAE\nieee80211w=2\nsae_require_mfp=1\n`
	pass := func(key string) string { return `wpa_passphrase=` + key + `\n` }
	inTwo := `skerry: wlan0: WiFi: in network "skerry" \(WPA2, 2437 MHz\)`
	c.accessPoint(wpa2 + pass(wifiKey))
	sees([]string{"of the overlay"}, "cat", "/own/note")
	sees([]string{" skerry_e2e=own"}, "cat", "/proc/cmdline")
	expect(inTwo)
	expect(`skerry: wlan0: address 10\.98\.0\.20/24 by DHCP`)
	sees([]string{"10.99.0.2/24", "10.98.0.20/24"}, "ip", "-4", "addr", "show", "dev", "wlan0")
	// The access point says the same of the other end: suite 2 of 00-0f-ac is a pre-shared key, 8 is SAE.
	sees([]string{"[AUTHORIZED]", "AKMSuiteSelector=00-0f-ac-2"}, stations...)

	c.accessPoint(wpa3 + pass(wifiKey))
	expect(`skerry: wlan0: WiFi: in network "skerry" \(WPA3, 2437 MHz\)`)
	expect(`skerry: wlan0: back in a wireless network; asking whether 10\.98\.0\.20/24 is still right`)
	sees([]string{"[AUTHORIZED]", "AKMSuiteSelector=00-0f-ac-8"}, stations...)

	const wrong = `skerry: wlan0: WiFi: waits for network "skerry": the key of "skerry" is wrong; correct its passphrase in the node config`
	c.accessPoint(wpa2 + pass(wifiOther))
	expect(wrong)
	expect(`skerry\| note      wlan0: WiFi: waits for network "skerry": the key of "skerry" is wrong`)
	c.accessPoint(wpa2 + pass(wifiKey))
	expect(inTwo)
	c.accessPoint(wpa3 + pass(wifiOther))
	expect(wrong)

	n.PowerCut()
	if strings.Contains(n.Text(), wifiKey) {
		t.Error("the console shows the key")
	}
	log := u.wifiLog()
	if !strings.Contains(log, "CTRL-EVENT-CONNECTED") || strings.Contains(log, wifiKey) {
		t.Errorf("the machine's log of wpa_supplicant tells the key, or no connection:\n%s", log)
	}
}

// wifiLog reads wpa_supplicant's log off the disk of the machine, which is off.
func (u *updates) wifiLog() string {
	raw := filepath.Join(u.t.TempDir(), "disk.raw")
	u.raw(raw)
	start, _ := partition(u.t, raw, "data")
	out, err := exec.CommandContext(context.Background(), "debugfs", "-R", "cat /log/skerry/wifi-wlan0.log", fmt.Sprintf("%s?offset=%d", raw, start)).Output()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// makeAccessPoint makes an image of Debian's hostapd.
func makeAccessPoint(t *testing.T, dir, archive string) {
	t.Helper()
	b := &images.Builder{Source: "..", Work: filepath.Join(dir, "work"), Arch: "amd64", Log: t.Logf}
	files, err := b.Debian(t.Context(), "hostapd", "iw")
	if err != nil {
		t.Fatal(err)
	}
	files["access-point"] = oci.File{Data: []byte(apScript), Mode: 0o755}
	layer, err := oci.Tar(files)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = oci.WriteLayered(f, []oci.Layered{{
		Refs: []string{apImage}, Arch: "amd64", Layers: [][]byte{layer}, Entrypoint: []string{"/usr/bin/sh", "/access-point"},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, WorkingDir: "/",
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// accessPoint puts one on the second radio, in the place of the one before, and waits until it is on.
func (c cluster) accessPoint(secured string) {
	c.Helper()
	c.do("", "delete", "pod", "ap", "--ignore-not-found", "--wait", "--timeout=5m")
	c.Logf("access point: %s", strings.ReplaceAll(secured, `\n`, " "))
	c.do(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"ap","namespace":"default"},"spec":{"hostNetwork":true,"restartPolicy":"Never","terminationGracePeriodSeconds":10,
"containers":[{"name":"ap","image":%q,"imagePullPolicy":"Never","args":[%q],"securityContext":{"privileged":true},"volumeMounts":[{"name":"own","mountPath":"/own","readOnly":true}]}],"volumes":[{"name":"own","hostPath":{"path":"/usr/share/own"}}]}}`, apImage, secured), "create", "-f", "-")
	on := func(out string) bool { return strings.Contains(out, "AP-ENABLED") }
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	for {
		out, err := c.try(ctx, "", "logs", "ap")
		if err == nil && on(out) {
			return
		}
		state, serr := c.try(ctx, "", "get", "pod", "ap", "-o", "jsonpath={.status.phase}")
		if ctx.Err() != nil || serr == nil && (state == "Failed" || state == "Succeeded") {
			c.Fatalf("the access point does not come up: it is %s; its log: %s, %v", state, out, err)
		}
		time.Sleep(time.Second)
	}
}

// radios is what there is to see of both ends, for a test that failed.
func (c cluster) radios() string {
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"describe", "pod", "ap"},
		{"logs", "ap", "--tail=60"},
		{"exec", "ap", "--", "ip", "addr"},
		{"exec", "ap", "--", "iw", "dev"},
		{"exec", "ap", "--", "iw", "reg", "get"},
		{"exec", "ap", "--", "hostapd_cli", "-p", "/tmp/hostapd", "-i", "wlan1", "all_sta"},
		{"exec", "ap", "--", "sh", "-c", "dmesg | grep -iE 'wlan|80211|regul|crypto|hwsim' | tail -40; cat /proc/modules | grep -iE '80211|hwsim|ccm|cmac|gcm'"},
	} {
		out, err := c.try(context.Background(), "", args...)
		fmt.Fprintf(&b, "$ kubectl %s\n%s\n", strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}
