package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"k8s.io/kubernetes/pkg/proxy/metrics"
)

// KubeProxy is the service that makes Services reachable through this node.
const KubeProxy = "kube-proxy"

// runKubeProxy runs kube-proxy in this process. It is ready when the rules of services are there. It has no way to stop: once ctx
// ends its watches do, and the rest of it waits for the end of the process. The rules stay, so that running pods keep their Services.
//
// Left alone it would end the process without a word when its Node is deleted or changes its address; see ownNode.
func (l *layout) runKubeProxy(ctx context.Context, ready func()) error {
	if err := l.extendPath(); err != nil {
		return err
	}
	own := newOwnNode(l.NodeName)
	kubeconfig, err := own.kubeconfig(l.KubeProxyKubeconfig, l.run)
	if err != nil {
		return fmt.Errorf("kube-proxy: %w", err)
	}
	opts, err := l.kubeProxyOptions(kubeconfig)
	if err != nil {
		return fmt.Errorf("kube-proxy: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if l.waitRules(ctx) == nil {
			ready()
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- opts.Run(ctx) }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("kube-proxy: %w", err)
		}
		return nil
	case news := <-own.news:
		return l.again(ctx, news)
	case <-ctx.Done():
		return nil
	}
}

// waitRules waits until kube-proxy has written the rules of all the cluster's families once in this process; on a slow machine they are
// seconds apart. Its health does not tell: it is up to date from before the first rule (Proxier.SyncLoop).
func (l *layout) waitRules(ctx context.Context) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for _, c := range l.ClusterCIDR {
		family := corev1.IPv6Protocol
		if c.Addr().Is4() {
			family = corev1.IPv4Protocol
		}
		for !rulesWritten(family) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// rulesWritten reads the time at which kube-proxy last wrote a family's rules, which it keeps for Prometheus.
func rulesWritten(family corev1.IPFamily) bool {
	var last dto.Metric
	err := metrics.SyncProxyRulesLastTimestamp.WithLabelValues(string(family)).Write(&last)
	return err == nil && last.GetGauge().GetValue() > 0
}

// kubeProxyKubeconfig is in the run folder from when kube-proxy has run to the next start of the machine, as its rules are.
const kubeProxyKubeconfig = "kube-proxy.kubeconfig"

// runNoKubeProxy is for a node whose services are somebody else's. The rules of a kube-proxy that ran here before would stay and
// lead to endpoints that are gone.
func (l *layout) runNoKubeProxy(ctx context.Context, ready func()) error {
	if err := l.extendPath(); err != nil {
		return err
	}
	if err := l.forgetKubeProxy(func() error { return removeTables(ctx, kubeProxyTables) }); err != nil {
		slog.Warn("kube-proxy's rules from before stay until the machine starts again", "err", err)
	}
	ready()
	<-ctx.Done()
	return nil
}

// forgetKubeProxy removes the rules if they are of our kube-proxy: those of a person's own have the same names.
func (l *layout) forgetKubeProxy(remove func() error) error {
	ours := filepath.Join(l.run, kubeProxyKubeconfig)
	if _, err := os.Stat(ours); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := remove(); err != nil {
		return err
	}
	return os.Remove(ours)
}

func (l *layout) kubeProxyOptions(kubeconfig string) (*app.Options, error) {
	opts := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	opts.AddFlags(fs)
	cidrs := make([]string, 0, len(l.ClusterCIDR))
	for _, c := range l.ClusterCIDR {
		cidrs = append(cidrs, c.String())
	}
	own := []string{
		"kubeconfig=" + kubeconfig,
		"hostname-override=" + l.NodeName,
		"proxy-mode=nftables",
		"cluster-cidr=" + strings.Join(cidrs, ","),
	}
	if err := parseArgs(fs, "kube-proxy-arg", append(own, l.Settings.KubeProxyArg...)); err != nil {
		return nil, err
	}
	if err := opts.Complete(fs); err != nil {
		return nil, err
	}
	return opts, opts.Validate()
}
