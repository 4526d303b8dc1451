package helm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// Name is the component's.
const Name = "helm-controller"

const (
	finalizer    = Group + "/uninstall"
	k3sFinalizer = "wrangler.cattle.io/on-helm-chart-remove"

	workers    = 2
	firstRetry = 2 * time.Second
	lastRetry  = 10 * time.Minute
	lookAgain  = 30 * time.Minute // for a release that somebody uninstalled

	// lookAtSecrets is how often the Secrets are read that a chart has values from: few charts do, and a watch of all Secrets would be
	// memory for each server.
	lookAtSecrets = time.Minute
)

// Controller keeps releases as the objects say.
type Controller struct {
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	events  record.EventRecorder
	proxy   func(*url.URL) (*url.URL, error)

	charts, configs cache.GenericLister
	queue           workqueue.TypedRateLimitingInterface[cache.ObjectName]
}

// New makes a Controller that acts as config says. proxy is for fetching charts; nil is none.
func New(config *rest.Config, client kubernetes.Interface, events record.EventRecorder, proxy func(*url.URL) (*url.URL, error)) (*Controller, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = "application/json", "" // custom resources and Helm know no other
	config.QPS = -1
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Controller{config: config, client: client, dynamic: dyn, events: events, proxy: proxy,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](firstRetry, lastRetry))}, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	factory := dynamicinformer.NewDynamicSharedInformerFactory(c.dynamic, lookAgain)
	for _, r := range []schema.GroupVersionResource{charts, configs} {
		informer := factory.ForResource(r)
		if err := informer.Informer().SetTransform(slim); err != nil {
			return err
		}
		if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: c.enqueue, UpdateFunc: func(_, o any) { c.enqueue(o) }, DeleteFunc: c.enqueue, // a config has its chart's name
		}); err != nil {
			return err
		}
	}
	c.charts, c.configs = factory.ForResource(charts).Lister(), factory.ForResource(configs).Lister()
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	factory.WaitForCacheSync(ctx.Done())
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for c.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	c.queue.ShutDown()
	all.Wait()
	return nil
}

func slim(object any) (any, error) {
	if m, err := meta.Accessor(object); err == nil {
		m.SetManagedFields(nil)
	}
	return object, nil
}

func (c *Controller) enqueue(o any) {
	if name, err := cache.DeletionHandlingObjectToName(o); err == nil {
		c.queue.Add(name)
	}
}

func (c *Controller) next(ctx context.Context) bool {
	name, stop := c.queue.Get()
	if stop {
		return false
	}
	defer c.queue.Done(name)
	if err := c.reconcile(ctx, name); err != nil {
		if ctx.Err() == nil && !apierrors.IsConflict(err) {
			slog.Warn("helm: trying again later", "chart", name.String(), "tries", c.queue.NumRequeues(name), "err", err)
		}
		c.queue.AddRateLimited(name)
		return true
	}
	c.queue.Forget(name)
	return true
}

// reconcile makes one release be as its objects say.
func (c *Controller) reconcile(ctx context.Context, name cache.ObjectName) error {
	o, err := c.charts.ByNamespace(name.Namespace).Get(name.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	u := o.(*unstructured.Unstructured).DeepCopy()
	var h chart
	if err := decode(u, &h); err != nil {
		return c.failed(ctx, u, err)
	}
	if h.DeletionTimestamp != nil {
		return c.remove(ctx, u, &h)
	}
	if !slices.Contains(h.Finalizers, finalizer) {
		if u, err = c.finalizers(ctx, u, append(slices.Clone(h.Finalizers), finalizer)); err != nil {
			return err
		}
	}
	did, version, err := c.ensure(ctx, &h)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return c.failed(ctx, u, err)
	}
	if did != "" {
		slog.Info("helm: "+did, "chart", name.String(), "version", version, "namespace", h.namespace())
		c.events.Eventf(c.about(u), corev1.EventTypeNormal, "Helm"+strings.ToUpper(did[:1])+strings.ReplaceAll(did[1:], " again", ""), "%s %s in %s", did, version, h.namespace())
	}
	return c.status(ctx, u, nil)
}

// ensure does the work; did is empty when there was nothing to do.
func (c *Controller) ensure(ctx context.Context, h *chart) (did, version string, err error) {
	var config chartConfig
	switch o, err := c.configs.ByNamespace(h.Namespace).Get(h.Name); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return "", "", err
	default:
		if err := decode(o.(*unstructured.Unstructured), &config); err != nil {
			return "", "", err
		}
	}
	policy := h.policy(&config)
	if policy != reinstall && policy != abort {
		return "", "", fmt.Errorf("failurePolicy: %q is neither %s nor %s", policy, reinstall, abort)
	}
	v, err := values(ctx, c.client, h, &config, false)
	if err != nil {
		return "", "", err
	}
	counted, err := values(ctx, c.client, h, &config, true)
	if err != nil {
		return "", "", err
	}
	if follows(h, &config) {
		c.queue.AddAfter(cache.ObjectName{Namespace: h.Namespace, Name: h.Name}, lookAtSecrets)
	}
	made, err := inputs(h.Spec, counted)
	if err != nil {
		return "", "", err
	}
	r, err := newReleases(c.config, h.namespace())
	if err != nil {
		return "", "", err
	}
	last, err := r.last(h.Name)
	if err != nil {
		return "", "", err
	}
	if last != nil && last.Info.Status == "deployed" && last.Labels[inputsLabel] == made {
		return "", "", nil
	}
	from, err := c.origin(ctx, h)
	if err != nil {
		return "", "", err
	}
	ch, err := fetch(ctx, h.Spec, from)
	if err != nil {
		return "", "", err
	}
	did, err = r.ensure(ctx, request{
		name: h.Name, namespace: h.namespace(), chart: ch, values: v, inputs: made,
		create: h.Spec.CreateNamespace, adopt: h.Spec.TakeOwnership, timeout: h.timeout(), policy: policy,
	})
	if err == nil && ch.Metadata != nil {
		version = ch.Metadata.Name + " " + ch.Metadata.Version
	}
	return did, version, err
}

// origin gathers what fetching a chart needs, from the objects that its spec names.
func (c *Controller) origin(ctx context.Context, h *chart) (origin, error) {
	o := origin{proxy: c.proxy, ca: []byte(h.Spec.RepoCA), insecure: h.Spec.InsecureSkipTLSVerify, plain: h.Spec.PlainHTTP, passOn: h.Spec.AuthPassCredentials}
	if ref := h.Spec.RepoCAConfigMap; ref != nil {
		m, err := c.client.CoreV1().ConfigMaps(h.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return o, fmt.Errorf("spec.repoCAConfigMap: %w", err)
		}
		for _, text := range m.Data {
			o.ca = append(append(o.ca, '\n'), text...)
		}
	}
	if ref := h.Spec.AuthSecret; ref != nil {
		s, err := c.client.CoreV1().Secrets(h.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return o, fmt.Errorf("spec.authSecret: %w", err)
		}
		o.username, o.password = string(s.Data[corev1.BasicAuthUsernameKey]), string(s.Data[corev1.BasicAuthPasswordKey])
	}
	if ref := h.Spec.DockerRegistrySecret; ref != nil {
		s, err := c.client.CoreV1().Secrets(h.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return o, fmt.Errorf("spec.dockerRegistrySecret: %w", err)
		}
		if o.docker = dockerCredentials(s.Data[corev1.DockerConfigJsonKey]); o.docker == nil {
			return o, fmt.Errorf("spec.dockerRegistrySecret: %s holds no .dockerconfigjson", ref.Name)
		}
	}
	return o, nil
}

// remove uninstalls the release of a HelmChart that is being deleted, and lets it go.
func (c *Controller) remove(ctx context.Context, u *unstructured.Unstructured, h *chart) error {
	rest := slices.DeleteFunc(slices.Clone(h.Finalizers), func(f string) bool { return f == finalizer || f == k3sFinalizer })
	if len(rest) == len(h.Finalizers) {
		return nil
	}
	r, err := newReleases(c.config, h.namespace())
	if err != nil {
		return err
	}
	if err := r.uninstall(h.Name, h.timeout()); err != nil {
		return c.failed(ctx, u, fmt.Errorf("uninstalling: %w", err))
	}
	slog.Info("helm: uninstalled", "chart", h.Namespace+"/"+h.Name)
	c.events.Eventf(c.about(u), corev1.EventTypeNormal, "HelmUninstalled", "uninstalled from %s", h.namespace())
	_, err = c.finalizers(ctx, u, rest)
	return err
}

func (c *Controller) finalizers(ctx context.Context, u *unstructured.Unstructured, list []string) (*unstructured.Unstructured, error) {
	u = u.DeepCopy()
	u.SetFinalizers(list)
	now, err := c.dynamic.Resource(charts).Namespace(u.GetNamespace()).Update(ctx, u, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return u, nil
	}
	return now, err
}

func (c *Controller) failed(ctx context.Context, u *unstructured.Unstructured, err error) error {
	c.events.Event(c.about(u), corev1.EventTypeWarning, "HelmFailed", short(err.Error()))
	return errors.Join(err, c.status(ctx, u, err))
}

// status says in the object how it went: K3s's conditions, and Ready, which tools that wait look for.
func (c *Controller) status(ctx context.Context, u *unstructured.Unstructured, fault error) error {
	ok, failed, reason, message := "True", "False", "Deployed", ""
	if fault != nil {
		ok, failed, reason, message = "False", "True", "Failed", short(fault.Error())
	}
	old, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	conditions := []any{
		map[string]any{"type": "Ready", "status": ok, "reason": reason, "message": message},
		map[string]any{"type": "Failed", "status": failed, "reason": reason, "message": message},
	}
	same := len(old) == len(conditions)
	for i := range conditions {
		m := conditions[i].(map[string]any)
		m["lastTransitionTime"] = time.Now().UTC().Format(time.RFC3339)
		for _, o := range old {
			if o, isMap := o.(map[string]any); isMap && o["type"] == m["type"] {
				if o["status"] == m["status"] {
					m["lastTransitionTime"] = o["lastTransitionTime"]
				}
				same = same && o["status"] == m["status"] && o["message"] == m["message"]
			}
		}
	}
	if same {
		return nil
	}
	u = u.DeepCopy()
	if err := unstructured.SetNestedSlice(u.Object, conditions, "status", "conditions"); err != nil {
		return err
	}
	_, err := c.dynamic.Resource(charts).Namespace(u.GetNamespace()).UpdateStatus(ctx, u, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return err
}

func (c *Controller) about(u *unstructured.Unstructured) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: Group + "/v1", Kind: "HelmChart", Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID()}
}

// short is what an event has room for.
func short(s string) string {
	const most = 900
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
