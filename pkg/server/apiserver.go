package server

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	extensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	encryption "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/client-go/tools/cache"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
)

// drain is how long the server waits at a stop for watches and other requests without an end; the others have had their answer
// by then, and our own clients are gone.
const drain = 100 * time.Millisecond

type apiServer struct {
	cfg     Config
	options *options.ServerRunOptions
	config  *app.Config   // made by prepare
	stored  chan struct{} // closed when the datastore is ready
	runs    atomic.Bool   // and closes the listener
	specs   atomic.Pointer[specs]
	extend  func(*genericapiserver.GenericAPIServer) error // adds API groups; may be nil
}

func newAPIServer(cfg Config, store datastore.Store) (*apiServer, error) {
	s, f := cfg.Settings, cfg.Files
	issuer := "https://kubernetes.default.svc." + s.ClusterDomain
	ours := []arg{
		{"advertise-address", cmp.Or(s.AdvertiseAddress, cfg.NodeIPs[0].String())},
		{"bind-address", cmp.Or(s.BindAddress, "::")},
		{"secure-port", strconv.Itoa(s.HTTPSListenPort)},
		{"tls-cert-file", f.APIServerPair},
		{"tls-private-key-file", f.APIServerPair},
		{"tls-min-version", "VersionTLS13"},

		{"authentication-config", cfg.Secrets.AuthenticationFile},
		{"client-ca-file", f.ClientCA},
		{"requestheader-client-ca-file", f.RequestHeaderCA},
		{"requestheader-allowed-names", pki.AuthProxyName},
		{"requestheader-username-headers", "X-Remote-User"},
		{"requestheader-group-headers", "X-Remote-Group"},
		{"requestheader-extra-headers-prefix", "X-Remote-Extra-"},
		{"proxy-client-cert-file", f.AuthProxyPair},
		{"proxy-client-key-file", f.AuthProxyPair},

		{"authorization-mode", "Node,RBAC"},
		{"enable-admission-plugins", "NodeRestriction"},
		{"allow-privileged", "true"},
		{"profiling", strconv.FormatBool(s.EnablePprof)},

		{"service-account-issuer", issuer},
		{"service-account-key-file", f.ServiceAccountKey},
		{"service-account-signing-key-file", f.ServiceAccountKey},

		{"kubelet-certificate-authority", f.ServerCA},
		{"kubelet-client-certificate", f.APIServerKubeletPair},
		{"kubelet-client-key", f.APIServerKubeletPair},
		{"kubelet-preferred-address-types", "InternalIP,Hostname"},

		{"service-cluster-ip-range", s.ServiceCIDR},
		{"service-node-port-range", s.ServiceNodePortRange},
		{"encryption-provider-config", cfg.Secrets.EncryptionFile},
		{"encryption-provider-config-automatic-reload", "true"},
		{"etcd-servers", store.Endpoint()},
		// An interval, two at most: that is how long a client can go on with a list in pieces. kine compacts by itself, just as
		// often; but the API's caches forget what is compacted only when the API compacts, too. Upstream's five minutes can be
		// longer than the ten that its own conformance test waits.
		{"etcd-compaction-interval", "4m"},
	}
	if Alone(s) { // several servers would need a lease each, written every ten seconds
		ours = append(ours, arg{"endpoint-reconciler-type", string(reconcilers.MasterCountReconcilerType)})
	}
	o := options.NewServerRunOptions()
	if err := parse("kube-apiserver-arg", o.Flags(), ours, s.KubeAPIServerArg); err != nil {
		return nil, err
	}
	return &apiServer{cfg: cfg, options: o, stored: make(chan struct{})}, nil
}

// prepare does what needs no datastore yet; half of it is the making of RSA keys for the server's calls to itself. It runs
// as a service of its own, while the datastore opens, and is ready when the configuration is there.
func (a *apiServer) prepare(ctx context.Context, ready func()) error {
	// Upstream would open the port after seconds of work, and say little when it is taken.
	address, port := a.options.SecureServing.BindAddress, a.options.SecureServing.BindPort
	listener, err := listen(ctx, address, port)
	if err != nil {
		return err
	}
	if !address.IsUnspecified() && !address.IsLoopback() { // this node's own clients come in by the loopback
		local, err := listen(ctx, net.IPv4(127, 0, 0, 1), port)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		listener = newMerged(listener, local)
	}
	defer func() {
		if !a.runs.Load() { // or the server ends the process, when it takes longer to stop than it may
			_ = listener.Close()
		}
	}()
	a.options.SecureServing.Listener = listener

	// How often it looks whether the file has changed; a rotation of keys waits for that three times.
	encryption.EncryptionConfigFileChangePollDuration = 5 * time.Second
	completed, err := a.options.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return errors.Join(errs...)
	}
	if a.config, err = a.newConfig(ctx, completed); err != nil || ctx.Err() != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}

// newConfig begins without the datastore, which it needs in the end, and gives it twenty seconds. One that waits for its other members,
// for room or for a database takes longer; then it is made again.
func (a *apiServer) newConfig(ctx context.Context, o options.CompletedOptions) (*app.Config, error) {
	config, err := app.NewConfig(o)
	if err == nil {
		return config, nil
	}
	select {
	case <-a.stored:
		return app.NewConfig(o)
	case <-ctx.Done():
		return nil, nil
	}
}

func (a *apiServer) run(ctx context.Context, ready func()) error {
	a.runs.Store(true)
	config := a.config
	a.tune(config)
	generic := config.KubeAPIs.ControlPlane.Generic
	complete, err := config.Complete()
	if err != nil {
		return err
	}
	server, err := app.CreateServerChain(complete)
	if err != nil {
		return err
	}
	// Watches never end by themselves, and at a stop the server would wait a minute for them.
	server.GenericAPIServer.ShutdownTimeout = drain
	behind, ok := server.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok {
		return fmt.Errorf("the aggregator stands in front of a %T, not of the built-in APIs", server.GenericAPIServer.NextDelegate())
	}
	if err := server.GenericAPIServer.AddPostStartHook(bootstrapHook, bootstrap); err != nil {
		return err
	}
	if a.extend != nil {
		if err := a.extend(behind); err != nil {
			return err
		}
	}
	specs := newSpecs(behind.Handler, generic.OpenAPIConfig, generic.OpenAPIV3Config)
	a.specs.Store(specs)
	informer := config.KubeAPIs.ControlPlane.Extra.VersionedInformers.Admissionregistration().V1().MutatingAdmissionPolicies().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { specs.ask() }}); err != nil {
		return err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return err
	}
	// The descriptions are built by now. What they were built from is 15 MB, and can be made again from GetDefinitions.
	config.KubeAPIs.ControlPlane.Generic.OpenAPIV3Config.Definitions = nil

	stopped := make(chan struct{})
	defer close(stopped)
	go waitReady(server, stopped, ready)
	return prepared.Run(ctx)
}

// tune changes what upstream's flags do not reach.
func (a *apiServer) tune(config *app.Config) {
	aggregator := config.Aggregator.GenericConfig
	aggregator.BuildHandlerChainFunc = a.guarded(aggregator.BuildHandlerChainFunc)
	aggregator.Authentication.Authenticator = remaining{aggregator.Authentication.Authenticator, a.cfg.Removed}
	generic := config.KubeAPIs.ControlPlane.Generic
	generic.SkipOpenAPIInstallation = true // see specs
	// The server of custom resources describes them itself. For its own API it needs few of the definitions that it is given.
	extensions := config.ApiExtensions.GenericConfig
	few := *extensions.OpenAPIConfig
	few.GetDefinitions = openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(extensionsopenapi.GetOpenAPIDefinitions)
	extensions.OpenAPIConfig = &few
	generic.DisabledPostStartHooks = generic.DisabledPostStartHooks.Union(upstreamsHooks())
	// What servers tell each other through the datastore. A server that is gone is forgotten after an hour, whether it said every ten
	// seconds that it was there or every ten minutes.
	controlplane.IdentityLeaseRenewIntervalPeriod = 10 * time.Minute
	if Alone(a.cfg.Settings) {
		config.KubeAPIs.ControlPlane.PeerEndpointReconcileInterval = 24 * time.Hour
	}
}

type chain = func(http.Handler, *genericapiserver.Config) http.Handler

// guarded answers what is Skerry's own in front of Kubernetes' authentication, for whoever asks there has no certificate yet.
// What needs the descriptions of APIs is held behind it: a stranger is refused at once, and neither keeps a connection nor has
// descriptions made. The server's own look, which may be held for good, is held in front: behind it there are a limit for
// requests, and an end of the server that waits for them.
func (a *apiServer) guarded(kubernetes chain) chain {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler {
		inside := kubernetes(a.described(h), c)
		self := []byte("Bearer " + c.LoopbackClientConfig.BearerToken)
		own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), self) == 1 {
				a.specs.Load().ourselves(inside).ServeHTTP(w, r)
				return
			}
			inside.ServeHTTP(w, r)
		})
		ours := http.NewServeMux()
		ours.Handle(join.KubeconfigPath, a.cfg.Join)
		ours.Handle(join.Path, a.cfg.Join)
		ours.Handle(openAPIV3, own)
		ours.Handle(openAPIV3+"/", own)
		ours.Handle("/", inside)
		return ours
	}
}

func (a *apiServer) described(kubernetes http.Handler) http.Handler {
	held := http.NewServeMux()
	hold := func(path string, f func(*specs, *http.Request) http.Handler) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(a.specs.Load(), r).ServeHTTP(w, r) })
		held.Handle(path, h)
		held.Handle(path+"/", h)
	}
	hold(openAPIV3, func(s *specs, r *http.Request) http.Handler {
		if who, ok := request.UserFrom(r.Context()); ok && who.GetName() == user.APIServerUser {
			return kubernetes // has waited
		}
		return s.clients(kubernetes)
	})
	hold(policies, func(s *specs, _ *http.Request) http.Handler { return s.before(kubernetes) })
	held.Handle("/", kubernetes)
	return held
}

// waitReady calls ready as soon as /readyz says ok. The server has some thirty checks and no signal for all of them at
// once, so this asks the handler itself, which costs a few microseconds and no connection.
func waitReady(server *aggregatorapiserver.APIAggregator, stopped <-chan struct{}, ready func()) {
	request, err := http.NewRequest(http.MethodGet, "/readyz", nil)
	if err != nil {
		panic(err) // the arguments are constants
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var r status
		server.GenericAPIServer.Handler.NonGoRestfulMux.ServeHTTP(&r, request)
		if r == http.StatusOK {
			ready()
			return
		}
		select {
		case <-tick.C:
		case <-stopped:
			return
		}
	}
}

// status is a response of which nothing but the status is kept.
type status int

func (s *status) Header() http.Header  { return http.Header{} }
func (s *status) WriteHeader(code int) { *s = status(code) }
func (s *status) Write(b []byte) (int, error) {
	if *s == 0 {
		*s = http.StatusOK
	}
	return len(b), nil
}

func listen(ctx context.Context, address net.IP, port int) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is taken by another program; stop it, or choose another with --https-listen-port", port)
	}
	return l, err
}
