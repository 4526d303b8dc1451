package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
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

// memberAnnotation says which of etcd's members a server is, as etcdctl writes it.
const memberAnnotation = "skerry/etcd-member"

// roleMarks are all that a server says of itself on its Node.
func roleMarks(store datastore.Store) metav1.ObjectMeta {
	marks := metav1.ObjectMeta{Labels: roleLabels(store.Kind())}
	if member, ok := store.(*etcd.Store); ok {
		marks.Annotations = map[string]string{memberAnnotation: strconv.FormatUint(member.ID(), 16)}
	}
	return marks
}

// rolesService keeps the marks on this server's Node, also on one that is made anew.
func rolesService(cfg Config, store datastore.Store) supervise.Service {
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
		return keepMarks(ctx, client, cfg.NodeName, roleMarks(store))
	}}
}

// keepMarks puts labels and annotations back onto a Node whenever they are not there, until ctx ends.
func keepMarks(ctx context.Context, client kubernetes.Interface, name string, marks metav1.ObjectMeta) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": marks.Labels, "annotations": marks.Annotations}})
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	look := func(o any) {
		n, ok := o.(*corev1.Node)
		if !ok || n.Name != name || has(n.Labels, marks.Labels) && has(n.Annotations, marks.Annotations) {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
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

// has says whether all of want is there.
func has(have, want map[string]string) bool {
	for key, value := range want {
		if have[key] != value {
			return false
		}
	}
	return true
}
