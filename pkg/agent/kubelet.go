package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"

	"github.com/skerry-os/skerry/pkg/csiglobals"
)

// runKubelet runs kubelet in this process. Once ctx ends it returns at once; some of kubelet's loops only end with the
// process. Pods live on.
func (l *layout) runKubelet(ctx context.Context, ready func()) error {
	server, err := l.kubeletServer()
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	if err := l.beCloud(ctx, server); err != nil || ctx.Err() != nil {
		return err
	}
	resolv := l.resolvConf()
	changed, err := resolv.update()
	if err != nil {
		return err
	}
	dns, err := l.newDNS()
	if err != nil {
		return err
	}
	if changed {
		dns.changed()
	}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if port := server.HealthzPort; port > 0 {
			url := "http://" + net.JoinHostPort(server.HealthzBindAddress, strconv.Itoa(int(port))) + "/healthz"
			if waitHealthy(ctx, url) != nil {
				return
			}
		}
		ready()
	}()
	var followers sync.WaitGroup
	followers.Go(func() {
		if err := resolv.follow(ctx, dns.changed); err != nil {
			slog.Warn("pods keep the nameservers of the start", "err", err)
		}
	})
	followers.Go(func() { dns.run(ctx) })
	defer func() { cancel(); followers.Wait() }()
	csiglobals.Kubelet(ctx)
	return until(ctx, func() error {
		if err := app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate); err != nil {
			return fmt.Errorf("kubelet: %w", err)
		}
		return nil
	})
}

// kubeletServer is kubelet's whole configuration: upstream's defaults, ours, and then the flags a person gave.
func (l *layout) kubeletServer() (*options.KubeletServer, error) {
	flags := options.NewKubeletFlags()
	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	l.kubeletFlags(flags)
	if err := l.kubeletConfig(config); err != nil {
		return nil, err
	}
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, config)
	options.AddGlobalFlags(fs)
	if err := parseArgs(fs, "kubelet-arg", l.Settings.KubeletArg); err != nil {
		return nil, err
	}
	if flags.KubeletConfigFile != "" || flags.KubeletDropinConfigDirectory != "" {
		return nil, fmt.Errorf("kubelet-arg: config and config-dir are not supported; give single settings, as in kubelet-arg: [max-pods=50]")
	}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, err
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(config.FeatureGates); err != nil {
		return nil, err
	}
	if err := validation.ValidateKubeletConfiguration(config, utilfeature.DefaultFeatureGate); err != nil {
		return nil, err
	}
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, nil
}

func (l *layout) kubeletFlags(f *options.KubeletFlags) {
	f.KubeConfig = l.KubeletKubeconfig
	f.HostnameOverride = l.NodeName
	f.RootDirectory = l.pods
	f.CertDirectory = filepath.Join(l.data, "kubelet-pki") // unused: its certificate is given; the default would make a folder
	f.NodeIP = joinText(l.NodeIPs, ",")
	f.ImageCredentialProviderBinDir = l.Settings.CredentialProviderBinDir
	f.ImageCredentialProviderConfigPath = l.Settings.CredentialProviderConfig
	f.NodeLabels = map[string]string{}
	for _, label := range l.Settings.NodeLabel {
		key, value, _ := strings.Cut(label, "=")
		f.NodeLabels[key] = value
	}
}

func (l *layout) kubeletConfig(c *kubeletconfig.KubeletConfiguration) error {
	// Who may talk to it: the API server with a certificate, everybody else as the API allows. Nobody without a name.
	c.ReadOnlyPort = 0
	c.TLSCertFile, c.TLSPrivateKeyFile = l.KubeletPair, l.KubeletPair
	c.Authentication.Anonymous.Enabled = false
	c.Authentication.Webhook.Enabled = true
	c.Authentication.X509.ClientCAFile = l.ClientCA
	c.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	c.RotateCertificates = false
	c.SeccompDefault = true

	c.ContainerRuntimeEndpoint = "unix://" + l.socket()
	c.CgroupDriver = "cgroupfs"
	c.FailCgroupV1 = pureCgroup2("/sys/fs/cgroup")
	c.FailSwapOn = false // swap is left alone: containers do not use it unless a person says so
	c.MakeIPTablesUtilChains = false
	c.SerializeImagePulls = false
	c.PodLogsDir = l.logs
	c.VolumePluginDir = filepath.Join(l.pods, "volumeplugins") // the default is on the read-only root
	c.ResolverConfig = cmp.Or(l.Settings.ResolvConf, l.resolvConf().file)
	c.ProtectKernelDefaults = l.Settings.ProtectKernelDefaults
	c.ClusterDomain = l.ClusterDomain
	c.ClusterDNS = strings.Fields(joinText(l.ClusterDNS, " "))

	// Upstream's shares are meant for big disks: 15 % of a small one is most of what is free.
	c.EvictionHard = map[string]string{
		"memory.available":   "100Mi",
		"nodefs.available":   "5%",
		"nodefs.inodesFree":  "5%",
		"imagefs.available":  "5%",
		"imagefs.inodesFree": "5%",
	}
	c.EvictionMinimumReclaim = map[string]string{"nodefs.available": "5%", "imagefs.available": "5%"}

	for _, text := range l.Settings.NodeTaint {
		taint, err := parseTaint(text)
		if err != nil {
			return err
		}
		c.RegisterWithTaints = append(c.RegisterWithTaints, taint)
	}
	return nil
}

func parseTaint(text string) (corev1.Taint, error) {
	rest, effect, ok := strings.Cut(text, ":")
	key, value, _ := strings.Cut(rest, "=")
	if !ok || key == "" {
		return corev1.Taint{}, fmt.Errorf("node-taint: %q is not a taint; write key=value:NoSchedule", text)
	}
	return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}, nil
}

// parseArgs reads extra flags, written as name=value without dashes.
func parseArgs(fs *pflag.FlagSet, setting string, args []string) error {
	dashed := make([]string, 0, len(args))
	for _, arg := range args {
		dashed = append(dashed, "--"+strings.TrimLeft(arg, "-"))
	}
	if err := fs.Parse(dashed); err != nil {
		return fmt.Errorf("%s: %w", setting, err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%s: %q is not a flag; write name=value", setting, fs.Arg(0))
	}
	return nil
}

func joinText(list []netip.Addr, sep string) string {
	texts := make([]string, 0, len(list))
	for _, a := range list {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, sep)
}

// waitHealthy asks until the address answers 200. Upstream offers no other sign that its loops run.
func waitHealthy(ctx context.Context, url string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
