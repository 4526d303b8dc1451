package server

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/leader"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// memberService removes a server's etcd member when its node is deleted: a member that is gone for good counts as one that is
// down, and the cluster could lose one less. Nothing but a deletion that was seen makes it. All servers look for deletions; the one
// with the lease acts on them, those of just before it had the lease, too: the last holder may be the one that went.
//
// What is removed is the member that the deleted Node named, see memberAnnotation: a machine that has joined again meanwhile has
// another.
func memberService(cfg Config, member *etcd.Store) supervise.Service {
	return supervise.Service{Name: "etcd-members", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
		config, err := clientcmd.BuildConfigFromFlags("", cfg.Files.Admin)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		gone, stop, err := watchDeleted(ctx, client)
		if err != nil {
			return err
		}
		defer stop()
		ready()
		err = leader.Run(ctx, client, "skerry-etcd-members", cfg.NodeName, func(ctx context.Context) error {
			gone.each(ctx, func(name string, id uint64) { removeMember(ctx, member, name, id) })
			return nil
		})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		return err
	}}
}

// heldFor is how long a deletion is worth something to a server that does not hold the lease: the holder may have been the one whose
// node was deleted, and until the next takes over, nobody else acts on it.
const heldFor = leader.Duration + time.Minute

// deletions are the nodes that a server has seen deleted, and not come back.
type deletions struct {
	mu   sync.Mutex
	seen map[string]deletion // by the node's name
	more chan struct{}       // has one when there may be more to do
}

type deletion struct {
	at     time.Time
	member uint64
}

func newDeletions() *deletions {
	return &deletions{seen: map[string]deletion{}, more: make(chan struct{}, 1)}
}

// watchDeleted watches until ctx ends; stop waits for that.
func watchDeleted(ctx context.Context, client kubernetes.Interface) (d *deletions, stop func(), err error) {
	d = newDeletions()
	factory := informers.NewSharedInformerFactory(client, 0)
	_, err = factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if node, ok := obj.(*corev1.Node); ok {
				d.back(node.Name)
			}
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if node, ok := obj.(*corev1.Node); ok {
				d.gone(node)
			}
		},
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	factory.Start(ctx.Done())
	return d, func() { cancel(); factory.Shutdown() }, nil
}

// gone takes no notice of a node that is no server: it names no member.
func (d *deletions) gone(node *corev1.Node) {
	member, err := strconv.ParseUint(node.Annotations[memberAnnotation], 16, 64)
	if err != nil {
		return
	}
	d.mu.Lock()
	d.seen[node.Name] = deletion{time.Now(), member}
	d.mu.Unlock()
	select {
	case d.more <- struct{}{}:
	default:
	}
}

func (d *deletions) back(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.seen, name)
}

// take gives one that is not too old.
func (d *deletions) take() (name string, member uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, of := range d.seen {
		delete(d.seen, name)
		if time.Since(of.at) < heldFor {
			return name, of.member, true
		}
	}
	return "", 0, false
}

// each calls f for the deletions of late and those to come, until ctx ends.
func (d *deletions) each(ctx context.Context, f func(name string, member uint64)) {
	for {
		for name, member, ok := d.take(); ok && ctx.Err() == nil; name, member, ok = d.take() {
			f(name, member)
		}
		select {
		case <-ctx.Done():
			return
		case <-d.more:
		}
	}
}

// removeMember tries for some minutes: etcd refuses while too few members are together.
func removeMember(ctx context.Context, member *etcd.Store, name string, id uint64) {
	var err error
	for range 60 {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = member.Remove(try, name, id)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return
		}
	}
	slog.Warn("etcd: the member of a deleted node stays", "node", name, "err", fmt.Sprint(err))
}
