package controller

import (
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/skerry-os/skerry/pkg/gateway"
)

// protobuf is a copy of a config for the API's own kinds.
func protobuf(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.AcceptContentTypes, c.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	c.QPS, c.Burst = 50, 200
	return c
}

// gatewayClient speaks of the Gateway API's kinds.
func gatewayClient(c *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := gatewayv1.Install(scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(scheme, metav1.Unversioned)
	c = rest.CopyConfig(c)
	version := schema.GroupVersion(gatewayv1.GroupVersion)
	c.APIPath, c.GroupVersion, c.NegotiatedSerializer = "/apis", &version, serializer.NewCodecFactory(scheme).WithoutConversion()
	c.QPS, c.Burst = 100, 400
	return rest.RESTClientFor(c)
}

// watcher has all objects that matter in memory, and of them only what is read.
type watcher struct {
	namespace string
	all       []cache.SharedIndexInformer
	stores    map[string]cache.Store
}

func newWatcher(client kubernetes.Interface, gateways rest.Interface, namespace string, changed func()) *watcher {
	w := &watcher{namespace: namespace, stores: map[string]cache.Store{}}
	add := func(c cache.Getter, resource string, kind runtime.Object, filter fields.Selector) {
		i := cache.NewSharedIndexInformer(cache.NewListWatchFromClient(c, resource, metav1.NamespaceAll, filter), kind, 0, cache.Indexers{})
		_ = i.SetTransform(w.trim)
		_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			DeleteFunc: func(any) { changed() },
			UpdateFunc: func(before, after any) {
				a, errA := meta.Accessor(before)
				b, errB := meta.Accessor(after)
				if errA != nil || errB != nil || a.GetResourceVersion() != b.GetResourceVersion() {
					changed()
				}
			},
		})
		w.all = append(w.all, i)
		w.stores[resource] = i.GetStore()
	}
	every := fields.Everything()
	core := client.CoreV1().RESTClient()
	add(core, "namespaces", &corev1.Namespace{}, every)
	add(core, "services", &corev1.Service{}, every)
	add(core, "configmaps", &corev1.ConfigMap{}, every)
	// Other Secrets are none of our business, and may be many and large.
	add(core, "secrets", &corev1.Secret{}, fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS)))
	add(client.DiscoveryV1().RESTClient(), "endpointslices", &discoveryv1.EndpointSlice{}, every)
	add(client.NetworkingV1().RESTClient(), "ingresses", &networkingv1.Ingress{}, every)
	add(client.NetworkingV1().RESTClient(), "ingressclasses", &networkingv1.IngressClass{}, every)
	add(gateways, "gatewayclasses", &gatewayv1.GatewayClass{}, every)
	add(gateways, "gateways", &gatewayv1.Gateway{}, every)
	add(gateways, "listenersets", &gatewayv1.ListenerSet{}, every)
	add(gateways, "httproutes", &gatewayv1.HTTPRoute{}, every)
	add(gateways, "grpcroutes", &gatewayv1.GRPCRoute{}, every)
	add(gateways, "tlsroutes", &gatewayv1.TLSRoute{}, every)
	add(gateways, "referencegrants", &gatewayv1.ReferenceGrant{}, every)
	add(gateways, "backendtlspolicies", &gatewayv1.BackendTLSPolicy{}, every)
	return w
}

// trim drops what nobody reads before an object is kept.
func (w *watcher) trim(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	switch x := o.(type) {
	case *corev1.ConfigMap:
		if x.Namespace != w.namespace {
			maps.DeleteFunc(x.Data, func(k, _ string) bool { return k != "ca.crt" })
			x.BinaryData, x.Annotations, x.Labels = nil, nil, nil
		}
	case *corev1.Secret:
		maps.DeleteFunc(x.Data, func(k string, _ []byte) bool { return k != corev1.TLSCertKey && k != corev1.TLSPrivateKeyKey })
	case *discoveryv1.EndpointSlice:
		for i := range x.Endpoints {
			x.Endpoints[i].Hints, x.Endpoints[i].TargetRef, x.Endpoints[i].DeprecatedTopology = nil, nil, nil
		}
	}
	return o, nil
}

// start watches and returns when everything has been seen once, or ctx ends.
func (w *watcher) start(ctx context.Context) error {
	var synced []cache.InformerSynced
	for _, i := range w.all {
		go i.RunWithContext(ctx)
		synced = append(synced, i.HasSynced)
	}
	for !cache.WaitForCacheSync(ctx.Done(), synced...) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(settle)
	}
	return nil
}

func list[T any](w *watcher, resource string) []T {
	items := w.stores[resource].List()
	out := make([]T, 0, len(items))
	for _, x := range items {
		if t, ok := x.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

func (w *watcher) snapshot() *gateway.Snapshot {
	s := &gateway.Snapshot{
		Namespace:       w.namespace,
		Classes:         list[*gatewayv1.GatewayClass](w, "gatewayclasses"),
		Gateways:        list[*gatewayv1.Gateway](w, "gateways"),
		ListenerSets:    list[*gatewayv1.ListenerSet](w, "listenersets"),
		HTTPRoutes:      list[*gatewayv1.HTTPRoute](w, "httproutes"),
		GRPCRoutes:      list[*gatewayv1.GRPCRoute](w, "grpcroutes"),
		TLSRoutes:       list[*gatewayv1.TLSRoute](w, "tlsroutes"),
		Grants:          list[*gatewayv1.ReferenceGrant](w, "referencegrants"),
		BackendPolicies: list[*gatewayv1.BackendTLSPolicy](w, "backendtlspolicies"),
		IngressClasses:  list[*networkingv1.IngressClass](w, "ingressclasses"),
		Ingresses:       list[*networkingv1.Ingress](w, "ingresses"),
		Namespaces:      list[*corev1.Namespace](w, "namespaces"),
		Services:        list[*corev1.Service](w, "services"),
		Slices:          list[*discoveryv1.EndpointSlice](w, "endpointslices"),
		Secrets:         list[*corev1.Secret](w, "secrets"),
		ConfigMaps:      list[*corev1.ConfigMap](w, "configmaps"),
	}
	s.ACME = w.configMap(acmeConfig) != nil
	return s
}

// configMap is one of the ingress's own.
func (w *watcher) configMap(name string) *corev1.ConfigMap {
	x, ok, err := w.stores["configmaps"].GetByKey(w.namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	c, _ := x.(*corev1.ConfigMap)
	return c
}

// challenge is what an ACME issuer wants to read for a token.
func (w *watcher) challenge(token string) string {
	if c := w.configMap(acmeChallenges); c != nil {
		return c.Data[token]
	}
	return ""
}
