// Package host answers what the engine must know of the machine it starts on, and takes the data folder for it.
package host

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
)

// NodeName is --node-name, or the host's name as Kubernetes can take it; --with-node-id appends this node's id.
func NodeName(a machine.Agent) (string, error) {
	name, err := baseName(a.NodeName)
	if err != nil || !a.WithNodeID {
		return name, err
	}
	if n := len(name) + 1 + machine.NodeIDLength; n > machine.MaxNodeName {
		return "", settings.Usage(fmt.Errorf("--with-node-id: %s and an id have %d characters, and a node's name at most %d; set a shorter --node-name", name, n, machine.MaxNodeName))
	}
	id, err := nodeID(filepath.Join(a.DataDir, "agent", "node-id"))
	return name + "-" + id, err
}

// nodeID is made once and kept: a node must not change its name. It is no part of the machine, so that copies of a machine differ.
func nodeID(name string) (string, error) {
	data, err := os.ReadFile(name)
	id := strings.TrimSpace(string(data))
	switch {
	case err == nil && nodeIDForm.MatchString(id):
		return id, nil
	case err == nil:
		return "", fmt.Errorf("%s: is not a node's id, which is %d hexadecimal digits; write the last ones of its name, or remove the file for a new name", name, machine.NodeIDLength)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	b := make([]byte, machine.NodeIDLength/2)
	_, _ = rand.Read(b) // never fails
	id = hex.EncodeToString(b)
	if err := os.MkdirAll(filepath.Dir(name), 0o711); err != nil {
		return "", err
	}
	return id, atomicfile.Write(name, []byte(id+"\n"), 0o600)
}

var nodeIDForm = regexp.MustCompile(fmt.Sprintf("^[0-9a-f]{%d}$", machine.NodeIDLength))

func baseName(setting string) (string, error) {
	if setting != "" {
		return setting, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	name = strings.ToLower(name)
	if name == "" || name == "localhost" || name == "(none)" {
		return "", settings.Usage(fmt.Errorf("this machine is called %q, which cannot tell nodes apart; give it a name or set --node-name", name))
	}
	return name, nil
}

// NodeIPs is the setting, or the address that the machine would send from to others of service's family: the API server
// refuses an IPv6 address of its own for a cluster whose services have IPv4 ones. In a dual-stack cluster, more of which is in
// the other families, the machine's address of such a family comes along if it has one.
func NodeIPs(setting string, service netip.Addr, more ...netip.Addr) ([]netip.Addr, error) {
	if setting == "" {
		ip, err := outgoing(service.Is6())
		if err != nil {
			return nil, err
		}
		ips := []netip.Addr{ip}
		for _, m := range more {
			if m.Is6() == service.Is6() {
				continue
			}
			if ip, err := outgoing(m.Is6()); err == nil {
				ips = append(ips, ip)
				break
			}
		}
		return ips, nil
	}
	here, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	for text := range strings.SplitSeq(setting, ",") {
		ip, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, settings.Usage(fmt.Errorf("--node-ip: %w", err))
		}
		found := false
		for _, a := range here {
			n, ok := a.(*net.IPNet)
			found = found || ok && n.IP.Equal(ip.AsSlice())
		}
		if !found {
			return nil, settings.Usage(fmt.Errorf("--node-ip: %s is on none of this machine's interfaces", ip))
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

// outgoing asks the kernel which address it would send from; connecting a UDP socket sends nothing. A machine without a
// default route, on a network of its own, uses the first address it has.
func outgoing(v6 bool) (netip.Addr, error) {
	network, far := "udp4", "192.0.2.1:9"
	if v6 {
		network, far = "udp6", "[2001:db8::1]:9"
	}
	if c, err := net.Dial(network, far); err == nil {
		local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return local, c.Close()
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	return first(addrs, v6)
}

// first picks the first address of a family that others can send to.
func first(addrs []net.Addr, v6 bool) (netip.Addr, error) {
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().Is6() == v6 {
			return ip.Unmap(), nil
		}
	}
	family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
	return netip.Addr{}, fmt.Errorf("no interface has an %s address, which --service-cidr asks for; wait for the network, set --node-ip, or choose other networks for the cluster", family)
}

// Moved says whether the node must go from the addresses it started with to those it would start with now: one of the former is
// gone, and another of its family is there. A family that is gone without another is waited out, as a network that is down is.
func Moved(started, now []netip.Addr) bool {
	here, err := net.InterfaceAddrs()
	if err != nil {
		return false // nothing is known, so nothing has changed
	}
	var has []netip.Addr
	for _, a := range here {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				has = append(has, ip.Unmap())
			}
		}
	}
	return moved(started, now, has)
}

func moved(started, now, here []netip.Addr) bool {
	return slices.ContainsFunc(started, func(old netip.Addr) bool {
		return !slices.Contains(here, old) && slices.ContainsFunc(now, func(ip netip.Addr) bool { return ip.Is6() == old.Is6() })
	})
}

// Claim makes the data folder and locks it for this process. The lock goes with the process, however it ends.
func Claim(dataDir string) (release func(), err error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return nil, err
	}
	info, err := os.Stat(dataDir)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s: others may write to it (mode %04o), and it holds the cluster's keys; run chmod go-w on it", dataDir, info.Mode().Perm())
	}
	name := filepath.Join(dataDir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: another skerryd uses this folder; stop it, or choose another with --data-dir", dataDir)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return func() { _ = f.Close() }, nil
}

// SharedDirs are the folders of the helper programs and of the component images, beside the folder this program is in.
func SharedDirs() (libexec, share string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	usr := filepath.Dir(filepath.Dir(self))
	return filepath.Join(usr, "libexec", "skerry"), filepath.Join(usr, "share", "skerry"), nil
}
