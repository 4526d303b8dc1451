package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/skerry-os/skerry/image/netboot/protocol"
	"github.com/skerry-os/skerry/pkg/machine"
)

// look is how long an interface listens for the server before it asks again.
const look = 3 * time.Second

// Find asks on all interfaces with a cable until a server answers. Whether it is the right one shows the certificate.
func Find(ctx context.Context, log func(format string, a ...any)) (string, error) {
	said := ""
	for {
		names := cards()
		found := make(chan string, len(names))
		var mu sync.Mutex
		var errs []error
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				u, err := findOn(ctx, name)
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
					return
				}
				found <- u
			})
		}
		wg.Wait()
		select {
		case u := <-found:
			return u, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		default:
		}
		why := "this machine has no network card, or none that the installer has a driver for"
		if len(names) > 0 {
			why = errors.Join(errs...).Error()
		}
		if why != said {
			log("looking for the server: %s; asking again", why)
		}
		said = why
		if err := sleep(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// cards are the network cards that are up.
func cards() (out []string) {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range list {
		if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			out = append(out, i.Name)
		}
	}
	return out
}

func findOn(ctx context.Context, iface string) (string, error) {
	c, err := nclient4.New(iface, nclient4.WithTimeout(look), nclient4.WithRetry(1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", iface, err)
	}
	defer c.Close() //nolint:errcheck // nothing is left to send
	m, err := dhcpv4.NewDiscovery(c.InterfaceAddr(), dhcpv4.WithOption(dhcpv4.OptClassIdentifier(protocol.Class)))
	if err != nil {
		return "", err
	}
	r, err := c.SendAndRead(ctx, nclient4.DefaultServers, m, func(r *dhcpv4.DHCPv4) bool {
		return r.MessageType() == dhcpv4.MessageTypeOffer && r.ClassIdentifier() == protocol.Class && serverURL(r.BootFileNameOption())
	})
	if errors.Is(err, nclient4.ErrNoResponse) {
		return "", fmt.Errorf("%s: no answer; is the cable in, and does skerry pxe serve run on its network?", iface)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", iface, err)
	}
	return r.BootFileNameOption(), nil
}

func serverURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.Path == ""
}

// Describe says what this machine is, from its firmware's tables.
func Describe(board string) protocol.Hello {
	h := protocol.Hello{Arch: runtime.GOARCH, Board: board, Firmware: protocol.BIOS, Session: NewSession(), Memory: memory()}
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		h.Firmware = protocol.UEFI
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join("/sys/class/dmi/id", name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(data))
	}
	h.Serial, h.UUID = machine.RealSerial(read("product_serial")), machine.RealUUID(read("product_uuid"))
	h.Model = strings.TrimSpace(read("sys_vendor") + " " + read("product_name"))
	return h
}

// MACs lists the hardware addresses of all cards.
func MACs() (out []string) {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range list {
		if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 {
			out = append(out, i.HardwareAddr.String())
		}
	}
	slices.Sort(out)
	return out
}

// memory is how much can be had, in bytes; 0 when nobody says.
func memory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
