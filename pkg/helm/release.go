package helm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// inputsLabel is on a release, with the digest of what it was made of.
const inputsLabel = "skerry.io/inputs"

// mostHistory is how many revisions of a release stay, as Secrets.
const mostHistory = 5

// getter gives Helm its clients.
type getter struct {
	config    *rest.Config
	namespace string
	discovery discovery.CachedDiscoveryInterface
}

func newGetter(config *rest.Config, namespace string) (*getter, error) {
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &getter{config: config, namespace: namespace, discovery: memory.NewMemCacheClient(d)}, nil
}

func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }
func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.discovery, nil
}
func (g *getter) ToRESTMapper() (meta.RESTMapper, error) {
	return restmapper.NewDeferredDiscoveryRESTMapper(g.discovery), nil
}

func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: g.namespace}})
}

// releases is Helm for one namespace.
type releases struct {
	cfg       *action.Configuration
	namespace string
}

func newReleases(config *rest.Config, namespace string) (*releases, error) {
	g, err := newGetter(config, namespace)
	if err != nil {
		return nil, err
	}
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(quiet{slog.Default().Handler()}))
	if err := cfg.Init(g, namespace, "secret"); err != nil {
		return nil, err
	}
	return &releases{cfg: cfg, namespace: namespace}, nil
}

// quiet takes Helm's own words down a step: what is wrong is told by whoever called it.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// last is the newest revision of a release, nil when there is none.
func (r *releases) last(name string) (*release.Release, error) {
	found, err := r.cfg.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) || errors.Is(err, driver.ErrNoDeployedReleases) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rel, ok := found.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("release %s is of a kind that this version does not know (%T)", name, found)
	}
	return rel, nil
}

// deployed says whether some revision is, so that an upgrade has something to start from.
func (r *releases) deployed(name string) bool {
	_, err := r.cfg.Releases.Deployed(name)
	return err == nil
}

// request is one wish: this chart, with these values, as this release.
type request struct {
	name      string
	namespace string
	chart     *chartv2.Chart
	values    map[string]any
	inputs    string
	create    bool // the namespace
	adopt     bool // objects that others made
	timeout   time.Duration
	policy    string
}

// ensure makes the release be as wanted, and says what it did.
func (r *releases) ensure(ctx context.Context, q request) (did string, err error) {
	last, err := r.last(q.name)
	if err != nil {
		return "", err
	}
	if last == nil {
		return "installed", r.install(ctx, q)
	}
	status := last.Info.Status
	if status.IsPending() {
		// Whoever was at it is gone: one process at a time works on releases, and it is this.
		last.SetStatus(common.StatusFailed, "interrupted")
		if err := r.cfg.Releases.Update(last); err != nil {
			return "", err
		}
	}
	switch {
	case r.deployed(q.name) && status != common.StatusUninstalling:
		return "upgraded", r.upgrade(ctx, q)
	case q.policy == abort && status != common.StatusUninstalled:
		return "", fmt.Errorf("release %s is %s and none of its revisions is deployed; failurePolicy abort leaves it to you (helm uninstall -n %s %s)",
			q.name, status, q.namespace, q.name)
	}
	if err := r.uninstall(q.name, q.timeout); err != nil {
		return "", err
	}
	return "installed again", r.install(ctx, q)
}

func (r *releases) install(ctx context.Context, q request) error {
	i := action.NewInstall(r.cfg)
	i.ReleaseName, i.Namespace, i.CreateNamespace = q.name, q.namespace, q.create
	i.Timeout, i.WaitStrategy, i.TakeOwnership = q.timeout, kube.HookOnlyStrategy, q.adopt
	i.Labels = map[string]string{inputsLabel: q.inputs}
	i.ForceConflicts = true // the object says how it shall be
	_, err := i.RunWithContext(ctx, q.chart, q.values)
	return err
}

func (r *releases) upgrade(ctx context.Context, q request) error {
	u := action.NewUpgrade(r.cfg)
	u.Namespace, u.MaxHistory, u.ResetValues = q.namespace, mostHistory, true
	u.Timeout, u.WaitStrategy, u.TakeOwnership = q.timeout, kube.HookOnlyStrategy, q.adopt
	u.Labels = map[string]string{inputsLabel: q.inputs}
	u.ServerSideApply = "auto"
	_, err := u.RunWithContext(ctx, q.name, q.chart, q.values)
	return err
}

func (r *releases) uninstall(name string, timeout time.Duration) error {
	u := action.NewUninstall(r.cfg)
	u.IgnoreNotFound, u.Timeout, u.WaitStrategy, u.DeletionPropagation = true, timeout, kube.HookOnlyStrategy, "background"
	_, err := u.Run(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil
	}
	return err
}
