package agent

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/knftables"

	"github.com/skerry-os/skerry/pkg/cni"
	"github.com/skerry-os/skerry/pkg/netpol"
	"github.com/skerry-os/skerry/pkg/podnet"
)

// RemoveNetwork takes off the machine what the node's network has left in the kernel, whatever the settings were: the tunnels and
// routes to other nodes (pkg/podnet), and the nftables tables of masquerading, of network policies, of pods' host ports and of
// kube-proxy. Pods' own links go with their network namespaces. What is not there is no error. It is for an engine that has
// ended: one that runs makes everything anew.
func RemoveNetwork(ctx context.Context) error {
	return errors.Join(podnet.Remove(), removeTables(ctx, append([]table{
		{knftables.InetFamily, masqTable}, {knftables.InetFamily, netpol.Table},
		{knftables.IPv4Family, cni.PortTable}, {knftables.IPv6Family, cni.PortTable},
	}, kubeProxyTables...)))
}

// table is one of nftables.
type table struct {
	family knftables.Family
	name   string
}

var kubeProxyTables = []table{{knftables.IPv4Family, "kube-proxy"}, {knftables.IPv6Family, "kube-proxy"}}

func removeTables(ctx context.Context, tables []table) error {
	var faults []error
	for _, t := range tables {
		nft, err := knftables.New(t.family, t.name)
		if err != nil {
			return errors.Join(append(faults, fmt.Errorf("nftables: %w", err))...)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{}) // deleting what is not there is an error
		tx.Delete(&knftables.Table{})
		if err := nft.Run(ctx, tx); err != nil {
			faults = append(faults, fmt.Errorf("nftables: table %s %s: %w", t.family, t.name, err))
		}
	}
	return errors.Join(faults...)
}
