package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/gateway/controller"
	"github.com/skerry-os/skerry/pkg/gateway/proxy"
	"github.com/skerry-os/skerry/pkg/version"
)

// leaving is how long connections are still taken after the signal to end: other nodes need a moment to hear of it.
const leaving = 4 * time.Second

// ingress serves Ingress and Gateway API objects until a signal ends it.
func ingress(args []string) error {
	flags := flag.NewFlagSet("ingress", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "file that says where the API is (default: what a pod is told)")
	namespace := flags.String("namespace", os.Getenv("POD_NAMESPACE"), "the ingress's own namespace")
	identity := flags.String("identity", os.Getenv("POD_NAME"), "name of this instance, unlike any other's")
	status := flags.String("status", ":9080", "address for /healthz, /readyz and /metrics")
	grace := flags.Duration("grace", 50*time.Second, "how long requests may take to finish after a signal to end")
	debug := flags.Bool("debug", false, "log in detail")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *namespace == "" || *identity == "" || flags.NArg() > 0 {
		return errors.New("set --namespace and --identity, or POD_NAMESPACE and POD_NAME; there are no other arguments")
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level})))
	config, err := apiConfig(*kubeconfig)
	if err != nil {
		return err
	}
	config.UserAgent = "skerry-ingress/" + version.Version()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return serveIngress(ctx, config, *namespace, *identity, *status, *grace)
}

func apiConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

func serveIngress(ctx context.Context, config *rest.Config, namespace, identity, status string, grace time.Duration) error {
	registry := prometheus.NewRegistry()
	var c *controller.Controller
	server := proxy.New(proxy.Options{
		Metrics:   proxy.NewMetrics(registry),
		Challenge: func(w http.ResponseWriter, r *http.Request) bool { return c.ServeChallenge(w, r) },
	})
	var ready atomic.Bool
	c, err := controller.New(controller.Options{
		Config: config, Namespace: namespace, Identity: identity, Server: server, Synced: func() { ready.Store(true); slog.Info("serves") },
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", status)
	if err != nil {
		return fmt.Errorf("--status: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() || ctx.Err() != nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = web.Serve(l) }()
	defer web.Close() //nolint:errcheck // the process ends

	// The controller works on while requests finish: endpoints still change.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- c.Run(work) }()
	select {
	case <-ctx.Done():
	case err := <-done:
		end()
		return err
	}
	slog.Info("ending: no new connections soon", "in", leaving.String())
	time.Sleep(leaving)
	finish, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	server.Shutdown(finish)
	end()
	return <-done
}
