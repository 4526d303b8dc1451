package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// roleLabels say that a node is a server, as K3s and kubeadm say it: `kubectl get nodes` shows them, and selectors and taints of
// others go by them. A kubelet may not give them to itself.
func roleLabels(kind string) map[string]string {
	labels := map[string]string{"node-role.kubernetes.io/control-plane": "true"}
	if kind == datastore.Etcd {
		labels["node-role.kubernetes.io/etcd"] = "true"
	}
	return labels
}

// rolesService keeps the labels on this server's Node, also on one that is made anew.
func rolesService(cfg Config, kind string) supervise.Service {
	return supervise.Service{Name: "node-roles", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
		ready()
		config, err := clientcmd.BuildConfigFromFlags("", cfg.Files.Admin)
		if err != nil {
			return err
		}
		config.ContentType = "application/vnd.kubernetes.protobuf"
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		return keepLabels(ctx, client, cfg.NodeName, roleLabels(kind))
	}}
}

// keepLabels puts labels back onto a Node whenever they are not there, until ctx ends.
func keepLabels(ctx context.Context, client kubernetes.Interface, name string, labels map[string]string) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	look := func(o any) {
		n, ok := o.(*corev1.Node)
		if !ok {
			return
		}
		for key, value := range labels {
			if n.Name == name && n.Labels[key] != value {
				select {
				case changed <- struct{}{}:
				default:
				}
				return
			}
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + name }))
	if _, err := factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, now any) { look(now) }}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{}); err != nil && ctx.Err() == nil {
			slog.Warn("the node's roles: trying again", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
				changed <- struct{}{}
			}
		}
	}
}
