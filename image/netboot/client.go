package netboot

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/skerry-os/skerry/image/netboot/protocol"
)

// Means is by what a machine asks to be started.
type Means string

// The means, in the order a machine may use them one after the other.
const (
	NoBoot    Means = ""          // asks for an address, nothing more
	PXE       Means = "PXE"       // firmware: a file by TFTP
	HTTP      Means = "HTTP boot" // UEFI firmware: a URL
	IPXE      Means = "iPXE"      // a script
	Installer Means = "installer" // our own, looking for its server
)

// Client is a machine as its DHCP request describes it.
type Client struct {
	MAC      string // small letters
	UUID     string // as firmware and /sys/class/dmi show it; "" when it does not say
	Arch     string // amd64, arm64; "" for one that no release is made for
	Firmware string // protocol.UEFI or protocol.BIOS
	Code     iana.Arch
	By       Means
}

// kinds are the architectures of option 93 that can be served (RFC 4578, RFC 5970 and IANA's list).
var kinds = map[iana.Arch]struct{ arch, firmware string }{
	iana.INTEL_X86PC:      {"amd64", protocol.BIOS},
	iana.INTEL_X86PC_HTTP: {"amd64", protocol.BIOS},
	iana.EFI_BC:           {"amd64", protocol.UEFI}, // what firmware of the first years says, against the list
	iana.EFI_X86_64:       {"amd64", protocol.UEFI},
	iana.EFI_X86_64_HTTP:  {"amd64", protocol.UEFI},
	iana.EFI_BC_HTTP:      {"amd64", protocol.UEFI},
	iana.EFI_ARM64:        {"arm64", protocol.UEFI},
	iana.EFI_ARM64_HTTP:   {"arm64", protocol.UEFI},
}

// readClient takes out of a request what we decide by. ok is false for one that no machine we serve sends.
func readClient(m *dhcpv4.DHCPv4) (c Client, ok bool) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet || len(m.ClientHWAddr) != 6 {
		return c, false
	}
	c.MAC = m.ClientHWAddr.String()
	class := m.ClassIdentifier()
	switch {
	case strings.HasPrefix(class, protocol.Class):
		c.By = Installer
		return c, true
	case hasIPXE(m):
		c.By = IPXE
	case strings.HasPrefix(class, "HTTPClient"):
		c.By = HTTP
	case strings.HasPrefix(class, "PXEClient"):
		c.By = PXE
	default:
		return c, true
	}
	if b := m.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(b) == 17 && b[0] == 0 {
		c.UUID = uuid(b[1:])
	}
	archs := m.ClientArch()
	if len(archs) == 0 {
		archs = []iana.Arch{archOfClass(class)}
	}
	c.Code = archs[0]
	for _, a := range archs { // firmware may name several, best first
		if k, ok := kinds[a]; ok {
			c.Code, c.Arch, c.Firmware = a, k.arch, k.firmware
			break
		}
	}
	return c, true
}

// hasIPXE looks for iPXE's user class, which it sends without the length that RFC 3004 wants; others send it with.
func hasIPXE(m *dhcpv4.DHCPv4) bool {
	class := string(m.Options.Get(dhcpv4.OptionUserClassInformation))
	return class == "iPXE" || class == "\x04iPXE"
}

// archOfClass reads PXEClient:Arch:00007:UNDI:003016, for firmware that leaves option 93 out.
func archOfClass(class string) iana.Arch {
	parts := strings.Split(class, ":")
	var n uint16
	if len(parts) < 3 || parts[1] != "Arch" {
		return unknownArch
	}
	if _, err := fmt.Sscanf(parts[2], "%d", &n); err != nil {
		return unknownArch
	}
	return iana.Arch(n)
}

const unknownArch iana.Arch = 0xffff

// uuid writes an SMBIOS UUID, whose first three fields are little-endian.
func uuid(b []byte) string {
	return fmt.Sprintf("%s-%s-%s-%s-%s", hex.EncodeToString([]byte{b[3], b[2], b[1], b[0]}), hex.EncodeToString([]byte{b[5], b[4]}),
		hex.EncodeToString([]byte{b[7], b[6]}), hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:]))
}

// NormalMAC gives a hardware address as this package writes it; ok is false for what is none.
func NormalMAC(text string) (string, bool) {
	hw, err := net.ParseMAC(strings.TrimSpace(text))
	if err != nil || len(hw) != 6 {
		return "", false
	}
	return hw.String(), true
}
