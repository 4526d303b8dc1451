package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/leader"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// elected runs a component on one server of several at a time. Upstream's own election would end the process when the lease is
// lost, and at every stop; here the component stops and the server lives on.
//
// When it is elected again, a component that can start twice in a process does. The controller manager cannot: it keeps the name
// of its informers for good. For it, everything is started anew, in order, as after a change of address: the API of this server
// is away for seconds, pods run on. That happens only if no other server has taken the lease meanwhile.
func elected(cfg Config, name string, twice bool, run func(ctx context.Context, ready func()) error) func(ctx context.Context, ready func()) error {
	if Alone(cfg.Settings) {
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
			if ran.Swap(true) && !twice {
				err := fmt.Errorf("this server lost its lease and has it again: %w", supervise.ErrAgain)
				cancel(err)
				return err
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
