package server

import (
	"context"
	"fmt"
	"log/slog"
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
// down, and the cluster could lose one less. One server does it; nothing but a deletion that was seen makes it.
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
		ready()
		err = leader.Run(ctx, client, "skerry-etcd-members", cfg.NodeName, func(ctx context.Context) error {
			return removeDeleted(ctx, client, member)
		})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		return err
	}}
}

func removeDeleted(ctx context.Context, client kubernetes.Interface, member *etcd.Store) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	deleted := make(chan string, 64)
	nodes := factory.Core().V1().Nodes().Informer()
	_, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
		if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = unknown.Obj
		}
		if node, ok := obj.(*corev1.Node); ok {
			select {
			case deleted <- node.Name:
			case <-ctx.Done():
			}
		}
	}})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-deleted:
			removeMember(ctx, member, name)
		}
	}
}

// removeMember tries for some minutes: etcd refuses while too few members are together.
func removeMember(ctx context.Context, member *etcd.Store, name string) {
	var err error
	for range 60 {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = member.Remove(try, name)
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
