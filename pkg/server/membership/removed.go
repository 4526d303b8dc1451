package membership

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Removed says whether the node was removed from the cluster, as far as this server has heard. Its certificates are good for months,
// and may be in a stranger's hands.
func (m *Members) Removed(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removed[node]
}

// followRemoved keeps what Removed says right until ctx ends; stop waits for that.
func (m *Members) followRemoved(ctx context.Context, client kubernetes.Interface) (stop func(), err error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(kubeSystem),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "type=" + string(recordType) }))
	hear := func(obj any, there bool) {
		s, ok := obj.(*corev1.Secret)
		if !ok || s.Type != recordType {
			return
		}
		r := readRecord(s)
		m.mu.Lock()
		defer m.mu.Unlock()
		if there && r.Removed {
			m.removed[r.Node] = true
		} else {
			delete(m.removed, r.Node)
		}
	}
	_, err = factory.Core().V1().Secrets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { hear(obj, true) },
		UpdateFunc: func(_, obj any) { hear(obj, true) },
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			hear(obj, false)
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	factory.Start(ctx.Done())
	return func() { cancel(); factory.Shutdown() }, nil
}
