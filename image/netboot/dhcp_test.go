package netboot

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/skerry-os/skerry/image/netboot/protocol"
)

var mac1 = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}

// ask is a request as firmware sends it.
func ask(t testing.TB, hw net.HardwareAddr, kind dhcpv4.MessageType, class string, arch iana.Arch, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(hw, append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptClassIdentifier(class)),
		dhcpv4.WithOption(dhcpv4.OptClientArch(arch)),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, append([]byte{0}, 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15)))}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWhoAsks(t *testing.T) {
	for name, c := range map[string]struct {
		m    *dhcpv4.DHCPv4
		want Client
	}{
		"BIOS":           {ask(t, mac1, 1, "PXEClient:Arch:00000:UNDI:002001", iana.INTEL_X86PC), Client{Arch: "amd64", Firmware: protocol.BIOS, By: PXE}},
		"UEFI":           {ask(t, mac1, 1, "PXEClient:Arch:00007:UNDI:003016", iana.EFI_X86_64), Client{Arch: "amd64", Firmware: protocol.UEFI, By: PXE, Code: 7}},
		"old UEFI":       {ask(t, mac1, 1, "PXEClient:Arch:00009:UNDI:003016", iana.EFI_BC), Client{Arch: "amd64", Firmware: protocol.UEFI, By: PXE, Code: 9}},
		"UEFI HTTP":      {ask(t, mac1, 1, "HTTPClient:Arch:00016:UNDI:003001", iana.EFI_X86_64_HTTP), Client{Arch: "amd64", Firmware: protocol.UEFI, By: HTTP, Code: 16}},
		"arm64":          {ask(t, mac1, 1, "PXEClient:Arch:00011:UNDI:003000", iana.EFI_ARM64), Client{Arch: "arm64", Firmware: protocol.UEFI, By: PXE, Code: 11}},
		"arm64 HTTP":     {ask(t, mac1, 1, "HTTPClient:Arch:00019:UNDI:003000", iana.EFI_ARM64_HTTP), Client{Arch: "arm64", Firmware: protocol.UEFI, By: HTTP, Code: 19}},
		"iPXE":           {ask(t, mac1, 1, "PXEClient:Arch:00000:UNDI:002001", iana.INTEL_X86PC, dhcpv4.WithUserClass("iPXE", false)), Client{Arch: "amd64", Firmware: protocol.BIOS, By: IPXE}},
		"iPXE, RFC 3004": {ask(t, mac1, 1, "PXEClient:Arch:00007", iana.EFI_X86_64, dhcpv4.WithUserClass("iPXE", true)), Client{Arch: "amd64", Firmware: protocol.UEFI, By: IPXE, Code: 7}},
		"itanium":        {ask(t, mac1, 1, "PXEClient:Arch:00002:UNDI:003000", iana.EFI_ITANIUM), Client{By: PXE, Code: 2}},
		"no option 93":   {ask(t, mac1, 1, "PXEClient:Arch:00007:UNDI:003000", 0, dhcpv4.WithoutOption(dhcpv4.OptionClientSystemArchitectureType)), Client{Arch: "amd64", Firmware: protocol.UEFI, By: PXE, Code: 7}},
		"says nothing":   {ask(t, mac1, 1, "PXEClient", 0, dhcpv4.WithoutOption(dhcpv4.OptionClientSystemArchitectureType)), Client{By: PXE, Code: unknownArch}},
	} {
		c.want.MAC, c.want.UUID = mac1.String(), "00010203-0405-0607-0809-0a0b0c0d0e0f"
		if got, ok := readClient(c.m); !ok || got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
	if c, ok := readClient(ask(t, mac1, 1, "MSFT 5.0", 0)); !ok || c.By != NoBoot {
		t.Errorf("a plain client: %+v", c)
	}
	if c, ok := readClient(ask(t, mac1, 1, protocol.Class, 0)); !ok || c.By != Installer {
		t.Errorf("our installer: %+v", c)
	}
}

// desk is a server's DHCP half that always has a file.
func desk(t testing.TB, full bool, log *[]string) *dhcp {
	t.Helper()
	self := netip.MustParsePrefix("10.9.0.1/24")
	d := &dhcp{iface: "eth1", self: self, boot: func(c Client) string { return "file-for-" + string(c.By) }, log: func(f string, _ ...any) {
		if log != nil {
			*log = append(*log, f)
		}
	}, warn: func(_, text string) {
		if log != nil {
			*log = append(*log, text)
		}
	}}
	if full {
		r, err := ParseRange("10.9.0.10-10.9.0.11")
		if err != nil {
			t.Fatal(err)
		}
		if d.pool, err = openPool(r, self, filepath.Join(t.TempDir(), "leases.json")); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestBesideAnotherServer(t *testing.T) {
	d := desk(t, false, nil)
	r := d.answer(ask(t, mac1, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007", iana.EFI_X86_64), 67)
	if r == nil || r.MessageType() != dhcpv4.MessageTypeOffer || !r.YourIPAddr.IsUnspecified() || r.BootFileNameOption() != "file-for-PXE" || r.BootFileName != "file-for-PXE" ||
		r.ClassIdentifier() != "PXEClient" || r.ServerIPAddr.String() != "10.9.0.1" || r.Options.Get(dhcpv4.OptionClientMachineIdentifier) == nil ||
		string(r.Options.Get(dhcpv4.OptionVendorSpecificInformation)) != string(useFileName) {
		t.Errorf("the offer: %v", r)
	}
	if r := d.answer(ask(t, mac1, dhcpv4.MessageTypeDiscover, "HTTPClient:Arch:00016", iana.EFI_X86_64_HTTP), 67); r == nil || r.ClassIdentifier() != "HTTPClient" {
		t.Errorf("UEFI HTTP boot: %v", r)
	}
	if r := d.answer(ask(t, mac1, dhcpv4.MessageTypeRequest, "PXEClient:Arch:00007", iana.EFI_X86_64), 4011); r == nil || r.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("the boot server's answer: %v", r)
	}
	for name, m := range map[string]*dhcpv4.DHCPv4{
		"a plain client":           ask(t, mac1, dhcpv4.MessageTypeDiscover, "MSFT 5.0", 0),
		"a request to another one": ask(t, mac1, dhcpv4.MessageTypeRequest, "PXEClient:Arch:00007", 7, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 99)))),
		"a plain request":          ask(t, mac1, dhcpv4.MessageTypeRequest, "PXEClient:Arch:00007", 7),
	} {
		if r := d.answer(m, 67); r != nil {
			t.Errorf("%s got an answer: %v", name, r)
		}
	}
	d.boot = func(Client) string { return "" }
	if r := d.answer(ask(t, mac1, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007", 7), 67); r != nil {
		t.Errorf("an installed machine got an answer: %v", r)
	}
}

func TestAsTheOnlyServer(t *testing.T) {
	var log []string
	d := desk(t, true, &log)
	offer := d.answer(ask(t, mac1, dhcpv4.MessageTypeDiscover, "PXEClient:Arch:00007", 7), 67)
	if offer == nil || offer.YourIPAddr.String() != "10.9.0.10" || offer.SubnetMask().String() != "ffffff00" || offer.BootFileNameOption() != "file-for-PXE" {
		t.Fatalf("offer %v", offer)
	}
	take := func(hw net.HardwareAddr, ip net.IP, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		return d.answer(ask(t, hw, dhcpv4.MessageTypeRequest, "PXEClient:Arch:00007", 7, append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)))...), 67)
	}
	if r := take(mac1, offer.YourIPAddr, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1)))); r == nil || r.MessageType() != dhcpv4.MessageTypeAck || r.IPAddressLeaseTime(0) != time.Hour {
		t.Errorf("ack %v", r)
	}
	mac2, mac3 := net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 3}
	if r := take(mac2, net.IPv4(10, 9, 0, 10)); r == nil || r.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("another machine's address: %v", r)
	}
	if r := take(mac2, net.IPv4(192, 168, 1, 5)); r == nil || r.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("an address of another network: %v", r)
	}
	if r := d.answer(ask(t, mac2, dhcpv4.MessageTypeDiscover, "MSFT 5.0", 0), 67); r == nil || r.YourIPAddr.String() != "10.9.0.11" || r.BootFileNameOption() != "" || r.ClassIdentifier() != "" {
		t.Errorf("a plain client: %v", r)
	}
	if r := d.answer(ask(t, mac3, dhcpv4.MessageTypeDiscover, "", 0), 67); r != nil || !strings.Contains(strings.Join(log, "\n"), "%s: %v") {
		t.Errorf("an address too many: %v, %q", r, log)
	}
	// The lease is there after a restart; a free one that ended is given to somebody else.
	again, err := openPool(d.pool.Range, d.pool.self, d.pool.file)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := again.offer(mac1.String()); err != nil || a.String() != "10.9.0.10" {
		t.Errorf("after a restart: %v, %v", a, err)
	}
	d.pool.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if a, err := d.pool.offer(mac3.String()); err != nil || !a.IsValid() {
		t.Errorf("an ended lease: %v, %v", a, err)
	}
	d.answer(ask(t, mac1, dhcpv4.MessageTypeDecline, "", 0, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 9, 0, 10)))), 67)
	if a, err := d.pool.offer(mac1.String()); err == nil && a.String() == "10.9.0.10" {
		t.Error("an address in use elsewhere is given out again")
	}
	d.answer(ask(t, mac3, dhcpv4.MessageTypeRequest, "", 0, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 66)))), 67)
	if o := d.others(); len(o) != 1 || o[0] != "10.9.0.66" || !strings.Contains(strings.Join(log, "\n"), "second DHCP server") {
		t.Errorf("the other server: %v, %q", o, log)
	}
}

func TestRangesThatCannotBe(t *testing.T) {
	self := netip.MustParsePrefix("10.9.0.1/24")
	for text, says := range map[string]string{"10.9.0.10": "not a range", "10.9.0.20-10.9.0.10": "lower one first", "fd00::1-fd00::9": "IPv4", "10.8.0.1-10.8.0.9": "not within", "x-y": "unable to parse"} {
		r, err := ParseRange(text)
		if err == nil {
			_, err = openPool(r, self, "")
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(ask(f, mac1, 1, "PXEClient:Arch:00007:UNDI:003016", 7).ToBytes(), true)
	f.Add(ask(f, mac1, 3, "HTTPClient:Arch:00016", 16, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 9, 0, 10)))).ToBytes(), true)
	f.Add(ask(f, mac1, 4, "", 0).ToBytes(), false)
	full, proxy := desk(f, true, nil), desk(f, false, nil)
	full.pool.file = ""
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		d := proxy
		if whole {
			d = full
		}
		for _, port := range []int{67, 4011} {
			r := d.answer(m, port)
			if r == nil {
				continue
			}
			if !whole && r.YourIPAddr != nil && !r.YourIPAddr.IsUnspecified() {
				t.Errorf("gives an address beside another server: %v", r)
			}
			if _, err := dhcpv4.FromBytes(r.ToBytes()); err != nil {
				t.Errorf("an answer nobody can read: %v", err)
			}
			whereTo(m, r, &net.UDPAddr{}, port)
		}
	})
}
