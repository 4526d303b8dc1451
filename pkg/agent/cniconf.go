package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}

// writeCNI writes the configuration when it would change: containerd reloads it each time.
func (n *node) writeCNI(subnets []netip.Prefix, mtu int) error {
	want, err := cniConfig(subnets, mtu, n.run+"/cni", n.policySocket())
	if err != nil {
		return err
	}
	return n.putCNI(want)
}

// putCNI is writeCNI with the configuration made.
func (n *node) putCNI(want []byte) error {
	have, err := os.ReadFile(n.cniConf())
	if err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if have != nil {
		slog.Warn("the node's pod network or its largest packet changed; pods made before keep what they have until they are made again")
	}
	if err := os.MkdirAll(n.cniConfDir(), 0o755); err != nil {
		return err
	}
	// containerd reads the folder whenever a file in it is written or renamed, but not when one appears. So the file is written
	// elsewhere, appears under another name, and gets its own by a rename: one reading, of a whole file.
	made, waiting := filepath.Join(n.data, "cni.new"), filepath.Join(n.cniConfDir(), ".new")
	if err := atomicfile.Write(made, want, 0o644); err != nil {
		return err
	}
	if err := os.Rename(made, waiting); err != nil {
		return err
	}
	return os.Rename(waiting, n.cniConf())
}

// cniConfig renders the list of plugins that make a pod's network. Addresses in use are remembered below run, because they
// are as short-lived as the network namespaces that have them.
func cniConfig(subnets []netip.Prefix, mtu int, run, policySocket string) ([]byte, error) {
	type m = map[string]any
	var ranges, routes []any
	for _, s := range subnets {
		ranges = append(ranges, []any{m{"subnet": s.String()}})
		all := "0.0.0.0/0"
		if s.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, m{"dst": all})
	}
	data, err := json.MarshalIndent(m{
		"cniVersion": "1.0.0",
		"name":       "skerry",
		"plugins": []any{
			m{"type": "ptp", "mtu": mtu, "policySocket": policySocket, "ipam": m{"type": "host-local", "dataDir": run, "ranges": ranges, "routes": routes}},
			m{"type": "portmap", "backend": "nftables", "capabilities": m{"portMappings": true}},
		},
	}, "", "  ")
	return append(data, '\n'), err
}
