package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skerry-os/skerry/pkg/server/membership"
)

const (
	addressesFor   = time.Minute
	addressesLimit = 5 * time.Second // whoever asks wants to fetch something
)

// nodeAddresses gives the addresses of the cluster's nodes, as the API had them within the last minute; those of before while it
// does not answer. They are asked for when somebody wants to know.
func nodeAddresses(kubeconfig string) func() []netip.Addr {
	var mu sync.Mutex
	var known []netip.Addr
	var asked time.Time
	return func() []netip.Addr {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(asked) < addressesFor {
			return known
		}
		asked = time.Now()
		if now, err := askAddresses(kubeconfig); err == nil {
			known = now
		} else {
			slog.Debug("the nodes' addresses are not known", "err", err)
		}
		return known
	}
}

func askAddresses(kubeconfig string) (all []netip.Addr, err error) {
	client, err := membership.Client(kubeconfig)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), addressesLimit)
	defer cancel()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				all = append(all, ip)
			}
		}
	}
	return all, nil
}
