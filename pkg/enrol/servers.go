package enrol

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Servers reads the addresses of the API servers out of the slices of the Service "kubernetes".
func Servers(all []*discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range all {
		for _, p := range s.Ports {
			if p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// OfKubernetes selects the slices of that Service, in the namespace default.
const OfKubernetes = discoveryv1.LabelServiceName + "=kubernetes"

// Follow tells set which servers the cluster has, now and at every change. kubeconfig is one that may read EndpointSlices.
func Follow(ctx context.Context, kubeconfig string, set func([]string) error) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = OfKubernetes }))
	slices := factory.Discovery().V1().EndpointSlices()
	see := func(any) {
		all, err := slices.Lister().List(labels.Everything())
		if err == nil {
			err = set(Servers(all))
		}
		if err != nil {
			slog.Warn("the cluster's servers are not remembered", "err", err)
		}
	}
	_, err = slices.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, now any) { see(now) }, DeleteFunc: see})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer factory.Shutdown()
	defer cancel()
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}
