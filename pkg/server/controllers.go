package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"github.com/skerry-os/skerry/pkg/csiglobals"
)

type controllerManager struct {
	options *options.KubeControllerManagerOptions
}

func newControllerManager(cfg Config) (*controllerManager, error) {
	s, f := cfg.Settings, cfg.Files
	ours := []arg{
		{"kubeconfig", f.ControllerManager},
		{"use-service-account-credentials", "true"},
		{"service-account-private-key-file", f.ServiceAccountKey},
		{"root-ca-file", f.ServerCA},

		{"allocate-node-cidrs", "true"},
		{"cluster-cidr", s.ClusterCIDR},
		{"service-cluster-ip-range", s.ServiceCIDR},

		{"cluster-signing-kubelet-serving-cert-file", f.ServerCAPair},
		{"cluster-signing-kubelet-serving-key-file", f.ServerCAPair},
		{"cluster-signing-kubelet-client-cert-file", f.ClientCAPair},
		{"cluster-signing-kubelet-client-key-file", f.ClientCAPair},
		{"cluster-signing-kube-apiserver-client-cert-file", f.ClientCAPair},
		{"cluster-signing-kube-apiserver-client-key-file", f.ClientCAPair},
		{"cluster-signing-legacy-unknown-cert-file", f.ServerCAPair},
		{"cluster-signing-legacy-unknown-key-file", f.ServerCAPair},

		// The limits of a client protect a server from strangers. Here they only make the start wait: each controller fetches a
		// token of its own, a hundred requests in all, which took 5 s at the usual 20 per second.
		{"kube-api-qps", "1000"},
		{"kube-api-burst", "2000"},

		{"leader-elect", "false"}, // one server; and a lost lease would end the process
		{"secure-port", "0"},      // its metrics are in the API's, as is everything in this process
		{"profiling", "false"},
		{"controller-shutdown-timeout", "3s"},
	}
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, err
	}
	sets := o.Flags(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	o.ParsedFlags = &sets
	return &controllerManager{options: o}, parse("kube-controller-manager-arg", sets, ours, s.KubeControllerManagerArg)
}

// run says it is ready when the controllers have been told to start: none of them says when it has, and what they do shows
// in the API, where those who need it wait for it.
func (c *controllerManager) run(ctx context.Context, ready func()) error {
	config, err := c.options.Config(ctx, app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err != nil {
		return err
	}
	made := csiglobals.Controllers()
	defer made()
	config.Kubeconfig.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &starting{rt, ctx, made} })
	ready()
	if err := app.Run(ctx, config.Complete()); ctx.Err() == nil {
		return err
	}
	return nil // a controller that is stopped while it starts calls that an error
}

// starting is a client's view of the API while the controller manager starts.
//
// Upstream asks for the health of the API and gives up after ten seconds, which would be the end of the whole server: a slow disk
// or an etcd that elects takes longer now and then. So the question is not answered before the API is healthy.
//
// It calls made at the first question of the controllers' shared informers: upstream starts those when it has made all
// controllers. Before, their client asks for the health of the API alone.
type starting struct {
	http.RoundTripper
	ctx  context.Context //nolint:containedctx // of the service; requests have none of their own
	made func()
}

const healthEvery = time.Second

func (s *starting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/healthz" {
		return s.healthy(r)
	}
	if strings.HasSuffix(r.UserAgent(), "/shared-informers") && strings.HasPrefix(r.URL.Path, "/api") {
		s.made()
	}
	return s.RoundTripper.RoundTrip(r)
}

func (s *starting) healthy(r *http.Request) (*http.Response, error) {
	for said := false; ; said = true {
		resp, err := s.RoundTripper.RoundTrip(r)
		if s.ctx.Err() != nil || err == nil && resp.StatusCode == http.StatusOK {
			return resp, err
		}
		if err == nil {
			err = errors.New(resp.Status)
			_ = resp.Body.Close() // it says no more than the API server's own log
		}
		if !said {
			slog.Warn("kube-controller-manager: waiting until the API is healthy", "err", err)
		}
		select {
		case <-time.After(healthEvery):
		case <-s.ctx.Done():
		}
	}
}
