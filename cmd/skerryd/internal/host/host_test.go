package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/machine"
)

// A data folder has one skerryd at a time.
func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	release, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); err == nil || !strings.Contains(err.Error(), "another skerryd uses this folder") {
		t.Errorf("a second claim: %v", err)
	}
	release()
	release, err = Claim(dir)
	if err != nil {
		t.Errorf("after the release: %v", err)
	}
	release()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a folder that others may write to: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in its place: %v", err)
	}
}

func TestNodeIPs(t *testing.T) {
	if ips, err := NodeIPs("127.0.0.1", netip.IPv4Unspecified()); err != nil || len(ips) != 1 || ips[0].String() != "127.0.0.1" {
		t.Errorf("%v, %v", ips, err)
	}
	if _, err := NodeIPs("192.0.2.77,127.0.0.1", netip.IPv4Unspecified()); !errors.Is(err, settings.ErrUsage) || !strings.Contains(err.Error(), "192.0.2.77 is on none of") {
		t.Errorf("an address that is not here: %v", err)
	}
}

// Without a default route the node takes an address of the services' family, whatever else is there and in whatever order.
func TestFirstAddressIsOfTheFamilyAskedFor(t *testing.T) {
	addr := func(text string) net.Addr {
		ip, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		return n
	}
	all := []net.Addr{addr("127.0.0.1/8"), addr("fe80::1/64"), addr("fec0::2/64"), addr("10.0.2.15/24"), addr("192.0.2.1/24")}
	for v6, want := range map[bool]string{false: "10.0.2.15", true: "fec0::2"} {
		if ip, err := first(all, v6); err != nil || ip.String() != want {
			t.Errorf("v6 %v: %v, %v", v6, ip, err)
		}
	}
	if _, err := first(all[:3], false); err == nil || !strings.Contains(err.Error(), "IPv4") {
		t.Errorf("no IPv4 address: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	if n, err := NodeName(machine.Agent{NodeName: "given"}); n != "given" || err != nil {
		t.Errorf("%q, %v", n, err)
	}
	if n, err := NodeName(machine.Agent{}); err == nil && n != strings.ToLower(n) {
		t.Errorf("%q has capitals, which no node name may have", n)
	}
}

// An id is a data folder's: the same at every start, another in another folder.
func TestNodeID(t *testing.T) {
	a := machine.Agent{NodeName: "north", WithNodeID: true, DataDir: t.TempDir()}
	first, err := NodeName(a)
	if err != nil || !regexp.MustCompile(`^north-[0-9a-f]{8}$`).MatchString(first) {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := NodeName(a); again != first || err != nil {
		t.Errorf("%q is called %q after a restart: %v", first, again, err)
	}
	file := filepath.Join(a.DataDir, "agent", "node-id")
	if err := os.WriteFile(file, []byte("../../x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := NodeName(a); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("an id that is none: %q, %v", n, err)
	}
	a.DataDir = t.TempDir()
	if other, err := NodeName(a); other == first || err != nil {
		t.Errorf("two nodes are called %q, %v", other, err)
	}
	a.NodeName = strings.Repeat("n", 55)
	if n, err := NodeName(a); err == nil || !strings.Contains(err.Error(), "64 characters") {
		t.Errorf("a name too long: %q, %v", n, err)
	}
}

// A node starts anew when one of its addresses has given way to another of the same family, whatever became of the other family.
func TestMoved(t *testing.T) {
	ips := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	for name, c := range map[string]struct {
		started, now, here []netip.Addr
		want               bool
	}{
		"nothing has changed":             {ips("192.0.2.1"), ips("192.0.2.1"), ips("192.0.2.1"), false},
		"another address":                 {ips("192.0.2.1"), ips("192.0.2.2"), ips("192.0.2.2"), true},
		"another, and the old is there":   {ips("192.0.2.1"), ips("192.0.2.2"), ips("192.0.2.2", "192.0.2.1"), false},
		"IPv4 of two families":            {ips("192.0.2.1", "2001:db8::1"), ips("192.0.2.2", "2001:db8::1"), ips("192.0.2.2", "2001:db8::1"), true},
		"IPv6 of two families":            {ips("192.0.2.1", "2001:db8::1"), ips("192.0.2.1", "2001:db8::2"), ips("192.0.2.1", "2001:db8::2"), true},
		"both of two families":            {ips("192.0.2.1", "2001:db8::1"), ips("192.0.2.2", "2001:db8::2"), ips("192.0.2.2", "2001:db8::2"), true},
		"IPv6 is away":                    {ips("192.0.2.1", "2001:db8::1"), ips("192.0.2.1"), ips("192.0.2.1"), false},
		"IPv6 came":                       {ips("192.0.2.1"), ips("192.0.2.1", "2001:db8::1"), ips("192.0.2.1", "2001:db8::1"), false},
		"no network":                      {ips("192.0.2.1", "2001:db8::1"), nil, nil, false},
		"IPv4 is away, and IPv6 is other": {ips("2001:db8::1", "192.0.2.1"), ips("2001:db8::2"), ips("2001:db8::2"), true},
	} {
		if got := moved(c.started, c.now, c.here); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if Moved(ips("127.0.0.1"), ips("192.0.2.1")) || !Moved(ips("192.0.2.1"), ips("127.0.0.1")) {
		t.Error("the machine's own addresses are not seen")
	}
}
