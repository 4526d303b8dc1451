package agent

import (
	"context"
	"errors"

	"github.com/skerry-os/skerry/pkg/netpol"
)

// runNetworkPolicy enforces NetworkPolicies on this node's pods, with kube-proxy's credential and the rights that the component
// gives it. It is ready at once: the rules of before are in force, and a pod that starts waits for its own (netpol.Admit).
func (l *layout) runNetworkPolicy(ctx context.Context, ready func()) error {
	if err := l.extendPath(); err != nil {
		return err
	}
	client, err := clientFor(l.KubeProxyKubeconfig)
	if err != nil {
		return err
	}
	controller, err := netpol.New(l.NodeName, client)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- controller.Serve(ctx, l.policySocket())
		cancel()
	}()
	ready()
	err = controller.Run(ctx, func() {})
	cancel()
	return errors.Join(err, <-served)
}
