package server

import (
	"context"
	"errors"
	"sync/atomic"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/leader"
)

// errElectedAgain ends the process: upstream's components cannot start twice in one.
var errElectedAgain = errors.New("this server lost its lease and has it again; it starts anew")

// elected runs a component on one server of several at a time. Upstream's own election would end the process when the lease is
// lost, and at every stop; here the component stops, the server lives on, and starts anew only if it is elected again.
func elected(cfg Config, name string, run func(ctx context.Context, ready func()) error) func(ctx context.Context, ready func()) error {
	if !cfg.Settings.Multiple() && !UsesEtcd(cfg.Settings) {
		return run
	}
	return func(ctx context.Context, ready func()) error {
		config, err := clientcmd.BuildConfigFromFlags("", cfg.Files.Admin)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		ready() // of a component that waits for its turn, nothing more can be said
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var ran atomic.Bool
		err = leader.Run(ctx, client, "skerry-"+name, cfg.NodeName, func(ctx context.Context) error {
			if ran.Swap(true) {
				cancel(errElectedAgain)
				return errElectedAgain
			}
			err := run(ctx, func() {})
			if ctx.Err() == nil && err == nil {
				err = errors.New("stopped by itself")
			}
			if ctx.Err() == nil {
				cancel(err)
			}
			return err
		})
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return err
	}
}
