// Package controllers runs the components that need no pod: controllers inside the server's process. A pod would cost an image,
// some 20 MB of memory and a start; here a controller costs its informers.
//
// All of them run under one lease, so that of several servers one works, and a cluster at rest writes one renewal for all. Each
// acts as a user of its own, "skerry:<component>", whom the component's manifests give what it needs and no more: the
// administrator's credentials of the process are used to impersonate it.
package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/skerry-os/skerry/pkg/addons"
	"github.com/skerry-os/skerry/pkg/leader"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// Lease is held by the server whose controllers work.
const Lease = "skerry-controllers"

// Controller is a component without pods.
type Controller struct {
	Name string // of the component, as --disable and skerryd disable know it

	// Run works until ctx ends. An error is logged, and Run is called again after a pause.
	Run func(ctx context.Context, k *Kit) error

	// Clean takes back what Run left in the cluster and what would be in the way of others. It is called, as the administrator,
	// when the component is disabled; nil where there is nothing.
	Clean func(ctx context.Context, client kubernetes.Interface) error
}

// Kit is what a controller works with, made for one Run.
type Kit struct {
	Config    *rest.Config // of Client
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // what is asked of it before Loop is watched
	Events    record.EventRecorder
}

// Config says which controllers to run and as whom.
type Config struct {
	Kubeconfig  string // file: the administrator's
	NodeName    string // tells servers apart
	Alone       bool   // there can be no other server
	Controllers []Controller
}

// Service runs the controllers once the components' manifests are applied, which hold their permissions.
func Service(cfg Config) supervise.Service {
	return supervise.Service{Name: "controllers", Needs: []string{"addons"}, Run: func(ctx context.Context, ready func()) error {
		config, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.Kubeconfig, err)
		}
		config.ContentType = runtime.ContentTypeProtobuf
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.Kubeconfig, err)
		}
		ready() // which server works is nothing to wait for
		work := func(ctx context.Context) error {
			var all sync.WaitGroup
			for _, c := range cfg.Controllers {
				all.Go(func() {
					addons.While(ctx, client, c.Name, func(ctx context.Context) {
						again(ctx, c.Name, func(ctx context.Context) error { return c.run(ctx, config) })
					}, func(ctx context.Context) {
						if c.Clean != nil {
							again(ctx, c.Name, func(ctx context.Context) error { return c.Clean(ctx, client) })
						}
					})
				})
			}
			all.Wait()
			<-ctx.Done()
			return nil
		}
		if cfg.Alone {
			return leader.Alone(ctx, Lease, work)
		}
		return leader.Run(ctx, client, Lease, cfg.NodeName, work)
	}}
}

const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// again calls f until it returns nil or ctx ends.
func again(ctx context.Context, name string, f func(context.Context) error) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		slog.Warn("stopped; starting again", "component", name, "in", pause.String(), "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// User is who a component acts as.
func User(component string) string { return "skerry:" + component }

func (c Controller) run(ctx context.Context, config *rest.Config) error {
	own := rest.CopyConfig(config)
	own.Impersonate = rest.ImpersonationConfig{UserName: User(c.Name)}
	own.UserAgent = "skerryd/" + c.Name
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(Slim))
	defer func() { cancel(); factory.Shutdown(); events.Shutdown() }()
	return c.Run(ctx, &Kit{
		Config:    own,
		Client:    client,
		Informers: factory,
		Events:    events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "skerry-" + c.Name}),
	})
}

// Slim drops what no controller reads and informers would keep.
func Slim(object any) (any, error) {
	if m, err := meta.Accessor(object); err == nil {
		m.SetManagedFields(nil)
	}
	if n, ok := object.(*corev1.Node); ok {
		n.Status.Images = nil
	}
	return object, nil
}

// Loop is the work of a controller that, after every change, looks at everything anew.
type Loop struct {
	What   string                      // is done, for the log
	On     []cache.SharedIndexInformer // of the Kit; others must be started
	Settle time.Duration               // changes that come together are one pass
	Retry  time.Duration               // until another pass after one with an error

	// Same says that nothing has changed on a Node that a pass looks at: Nodes change every few seconds.
	Same func(before, now *corev1.Node) bool

	// Pass does what is to be done. It gives when to look again if nothing changes; 0 is never.
	Pass func(ctx context.Context) (again time.Duration, err error)
}

// Loop makes passes until ctx ends, the first when the informers know the cluster.
func (k *Kit) Loop(ctx context.Context, l Loop) error {
	changed := make(chan struct{}, 1)
	note := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: note, DeleteFunc: note, UpdateFunc: func(before, now any) {
		if old, ok := before.(*corev1.Node); !ok || !l.Same(old, now.(*corev1.Node)) {
			note(now)
		}
	}}
	var synced []cache.InformerSynced
	for _, i := range l.On {
		if _, err := i.AddEventHandler(handler); err != nil {
			return err
		}
		synced = append(synced, i.HasSynced)
	}
	k.Informers.Start(ctx.Done())
	cache.WaitForCacheSync(ctx.Done(), synced...)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			next.Reset(l.Settle)
		case <-next.C:
			again, err := l.Pass(ctx)
			if err != nil && ctx.Err() == nil {
				slog.Warn(l.What+": trying again", "in", l.Retry.String(), "err", err)
				again = l.Retry
			}
			if again > 0 {
				next.Reset(again)
			}
		}
	}
}
