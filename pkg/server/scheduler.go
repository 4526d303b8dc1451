package server

import (
	"context"

	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/configz"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

type kubeScheduler struct {
	options *options.Options
}

func newScheduler(cfg Config) (*kubeScheduler, error) {
	ours := []arg{
		{"kubeconfig", cfg.Files.Scheduler},
		{"leader-elect", "false"},
		{"secure-port", "0"},
		{"profiling", "false"},
		{"kube-api-qps", "1000"}, // see kube-controller-manager's
		{"kube-api-burst", "2000"},
	}
	o := options.NewOptions()
	return &kubeScheduler{options: o}, parse("kube-scheduler-arg", *o.Flags, ours, cfg.Settings.KubeSchedulerArg)
}

// run is ready when the scheduler has seen every node and pod there is, and so can place one.
func (s *kubeScheduler) run(ctx context.Context, ready func()) error {
	name, err := cache.NewInformerName("kube-scheduler")
	if err != nil {
		return err
	}
	// With both names free again it can run once more in this process.
	defer name.Release()
	defer configz.Delete("componentconfig")
	s.options.InformerName = name
	config, scheduler, err := app.Setup(ctx, s.options)
	if err != nil {
		return err
	}
	seen := make(chan struct{})
	defer func() { <-seen }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(seen)
		if err := scheduler.WaitForHandlersSync(ctx); err == nil {
			ready()
		}
	}()
	if err := app.Run(ctx, config, scheduler); ctx.Err() == nil {
		return err
	}
	return nil // upstream calls a stop that was asked for an error
}
