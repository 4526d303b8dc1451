package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// keepalive keeps the ways through firewalls and address translators between nodes open.
const keepalive = 25 * time.Second

// wireguardOverhead: the outer IP header, UDP, WireGuard's header and seal.
func wireguardOverhead(outer netip.Addr) int {
	if outer.Is6() {
		return 40 + 8 + 32
	}
	return 20 + 8 + 32
}

// ensureWireGuard gives the tunnel with this node's key, and the public half of it.
func ensureWireGuard(keyFile string, outer netip.Addr, under *device) (*device, string, error) {
	key, err := ensureKey(keyFile)
	if err != nil {
		return nil, "", err
	}
	link, err := findLink(wireguardName)
	if err != nil {
		return nil, "", err
	}
	if link == nil {
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: wireguardName}}); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil, "", fmt.Errorf("WireGuard: %w; load the module wireguard, or choose another --flannel-backend", ErrUnsupported)
			}
			return nil, "", fmt.Errorf("%s: making it: %w", wireguardName, err)
		}
		if link, err = findLink(wireguardName); link == nil {
			return nil, "", fmt.Errorf("%s: went away: %w", wireguardName, err)
		}
	}
	control, err := wgctrl.New()
	if err != nil {
		return nil, "", fmt.Errorf("WireGuard: %w", err)
	}
	defer control.Close() //nolint:errcheck // a socket
	have, err := control.Device(wireguardName)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", wireguardName, err)
	}
	if port := WireGuardPort; have.PrivateKey != key || have.ListenPort != port {
		if err := control.ConfigureDevice(wireguardName, wgtypes.Config{PrivateKey: &key, ListenPort: &port}); err != nil {
			return nil, "", fmt.Errorf("%s: listening on UDP port %d: %w", wireguardName, port, err)
		}
	}
	dev, err := raise(link, under.mtu-wireguardOverhead(outer))
	return dev, key.PublicKey().String(), err
}

// ensureKey reads the node's key, or makes one. A file that is damaged is replaced: the others learn the new key.
func ensureKey(file string) (wgtypes.Key, error) {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wgtypes.Key{}, err
	}
	if key, err := parseKey(strings.TrimSpace(string(data))); err == nil {
		return key, nil
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return wgtypes.Key{}, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o711); err != nil {
		return wgtypes.Key{}, err
	}
	return key, atomicfile.Write(file, []byte(key.String()+"\n"), 0o600)
}

// parseKey never repeats the text: it may be a private key.
func parseKey(text string) (wgtypes.Key, error) {
	key, err := wgtypes.ParseKey(text)
	if err != nil {
		return key, errors.New("is not 32 bytes in base64")
	}
	return key, nil
}

// syncPeers makes the device's peers the others, and touches those that changed alone: a peer that is configured anew loses
// what it has in flight.
func syncPeers(dev *device, others []Node) error {
	control, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("WireGuard: %w", err)
	}
	defer control.Close() //nolint:errcheck // a socket
	have, err := control.Device(dev.name)
	if err != nil {
		return fmt.Errorf("%s: %w", dev.name, err)
	}
	changes := peerChanges(have.Peers, others)
	if len(changes) == 0 {
		return nil
	}
	if err := control.ConfigureDevice(dev.name, wgtypes.Config{Peers: changes}); err != nil {
		return fmt.Errorf("%s: peers: %w", dev.name, err)
	}
	return nil
}

// peerChanges puts removals first, because a pod network belongs to one peer: a node that came back with another key takes it
// from what it was before.
func peerChanges(have []wgtypes.Peer, others []Node) (changes []wgtypes.PeerConfig) {
	want := map[wgtypes.Key]wgtypes.PeerConfig{}
	var order []wgtypes.Key
	for _, o := range others {
		key, err := parseKey(o.PublicKey)
		if err != nil {
			continue // usable has refused it
		}
		p := wgtypes.PeerConfig{
			PublicKey:                   key,
			Endpoint:                    net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.Addresses[0], WireGuardPort)),
			PersistentKeepaliveInterval: ptr(keepalive),
			ReplaceAllowedIPs:           true,
		}
		for _, s := range o.Subnets {
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(s))
		}
		if _, twice := want[key]; !twice {
			order = append(order, key)
		}
		want[key] = p
	}
	for _, h := range have {
		w, ok := want[h.PublicKey]
		if !ok {
			changes = append(changes, wgtypes.PeerConfig{PublicKey: h.PublicKey, Remove: true})
			continue
		}
		if samePeer(h, w) {
			delete(want, h.PublicKey)
		}
	}
	for _, key := range order {
		if p, ok := want[key]; ok {
			changes = append(changes, p)
		}
	}
	return changes
}

func samePeer(have wgtypes.Peer, want wgtypes.PeerConfig) bool {
	return have.PersistentKeepaliveInterval == *want.PersistentKeepaliveInterval &&
		have.Endpoint != nil && have.Endpoint.IP.Equal(want.Endpoint.IP) && have.Endpoint.Port == want.Endpoint.Port &&
		slices.Equal(netTexts(have.AllowedIPs), netTexts(want.AllowedIPs))
}

func netTexts(nets []net.IPNet) []string {
	out := make([]string, 0, len(nets))
	for _, n := range nets {
		out = append(out, n.String())
	}
	slices.Sort(out)
	return out
}

func ptr[T any](v T) *T { return &v }
