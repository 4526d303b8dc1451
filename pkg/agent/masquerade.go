package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"sigs.k8s.io/knftables"
)

// masqTable is the node's own table; other programs' rules live in theirs.
const masqTable = "skerry"

// masquerade gives packets of pods that leave the cluster the node's address, with one rule for all pods.
func (n *node) masquerade(ctx context.Context) error {
	nft, err := knftables.New(knftables.InetFamily, masqTable)
	if err != nil {
		return fmt.Errorf("nftables: %w; the kernel needs nf_tables and the node needs the program nft", err)
	}
	return inTime(ctx, nftPatience, func(ctx context.Context) error {
		if err := nft.Run(ctx, masqueradeRules(nft, n.ClusterCIDR)); err != nil {
			return fmt.Errorf("nftables: table %s: %w", masqTable, err)
		}
		return nil
	})
}

// inTime does what hangs now and then, such as a program whose disk is busy, and does it again when it took too long: to fail would
// start the whole node anew, on a machine that is late already.
func inTime(ctx context.Context, patience time.Duration, do func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, patience)
		err := do(limited)
		late := limited.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !late {
			return err
		}
		slog.Warn("it took too long; trying again", "patience", patience, "err", err)
	}
}

func masqueradeRules(nft knftables.Interface, clusterCIDR []netip.Prefix) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pods to the world")})
	chain := &knftables.Chain{
		Name: "postrouting", Type: knftables.PtrTo(knftables.NATType),
		Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority),
	}
	tx.Add(chain)
	tx.Flush(chain)
	for _, pods := range clusterCIDR {
		word, multicast := "ip", "224.0.0.0/4"
		if pods.Addr().Is6() {
			word, multicast = "ip6", "ff00::/8"
		}
		from := []string{word, "saddr", pods.String()}
		for _, kept := range []string{pods.String(), multicast} {
			tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(from, word, "daddr", kept, "return")})
		}
		tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(from, "masquerade")})
	}
	return tx
}
