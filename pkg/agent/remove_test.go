package agent

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"sigs.k8s.io/knftables"

	"github.com/skerry-os/skerry/pkg/podnet"
)

// Nothing of the node's network is left, twice over, and nobody else's rules are touched.
func TestRemoveNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	space, err := ns.TempNetNS()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	defer space.Close() //nolint:errcheck // a test's
	err = space.Do(func(ns.NetNS) error {
		if err := exec.CommandContext(t.Context(), "nft", "add table ip kube-proxy; add table inet skerry_policy; add table ip6 skerry_hostport; add table inet others").Run(); err != nil {
			return err
		}
		nft, err := knftables.New(knftables.InetFamily, masqTable)
		if err != nil {
			return err
		}
		if err := nft.Run(t.Context(), masqueradeRules(nft, prefixes("10.42.0.0/16"))); err != nil {
			return err
		}
		net, err := podnet.New(podnet.Config{Backend: podnet.VXLAN, Name: "a", Cluster: prefixes("10.42.0.0/16")})
		if err != nil {
			return err
		}
		if err := exec.CommandContext(t.Context(), "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far").Run(); err != nil {
			return err
		}
		if err := exec.CommandContext(t.Context(), "ip", "addr", "add", "192.0.2.5/24", "dev", "eth0").Run(); err != nil {
			return err
		}
		if _, _, err := net.Prepare(testConfig(t.TempDir()).NodeIPs); err != nil {
			return err
		}
		for range 2 {
			if err := RemoveNetwork(t.Context()); err != nil {
				return err
			}
		}
		tables, err := exec.CommandContext(t.Context(), "nft", "list", "tables").Output()
		if err != nil {
			return err
		}
		links, err := exec.CommandContext(t.Context(), "ip", "link").Output()
		if err != nil {
			return err
		}
		if string(tables) != "table inet others\n" || strings.Contains(string(links), "skerry") {
			t.Errorf("left: %s%s", tables, links)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
