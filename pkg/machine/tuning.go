package machine

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Runtime holds what a node seldom needs to be told of its containers and of kubelet.
type Runtime struct {
	PauseImage                     string `yaml:"pause-image" help:"image whose container holds a pod's namespaces (default: the release's own, which is never pulled)"`
	Snapshotter                    string `yaml:"snapshotter" help:"how containerd keeps layers: overlayfs or native (default: the former where the data folder can carry it)"`
	DefaultRuntime                 string `yaml:"default-runtime" help:"what runs the containers of pods that name no RuntimeClass: runc, or of crun, nvidia, nvidia-cdi, wasmtime and others what is installed on this node (default: runc)"`
	NonrootDevices                 bool   `yaml:"nonroot-devices" help:"give the devices of a container to the user and group of its securityContext, so that it needs no root to use them"`
	DisableDefaultRegistryEndpoint bool   `yaml:"disable-default-registry-endpoint" help:"pull images of a registry that has mirrors in private-registry from these alone, never from the registry itself unless it is one of the endpoints"`
	ResolvConf                     string `yaml:"resolv-conf" help:"file with the name servers that pods get (default: the host's, without those that only the host can reach)"`
	ProtectKernelDefaults          bool   `yaml:"protect-kernel-defaults" help:"fail rather than change kernel settings that kubelet wants otherwise"`
	CredentialProviderBinDir       string `yaml:"image-credential-provider-bin-dir" help:"folder of kubelet's programs that know registries' passwords"`
	CredentialProviderConfig       string `yaml:"image-credential-provider-config" help:"kubelet's file that says which of them to ask for which image"`
}

// Listen holds how the Kubernetes API is reached.
type Listen struct {
	BindAddress          string `yaml:"bind-address" help:"address that the Kubernetes API listens on (default: all)"`
	AdvertiseAddress     string `yaml:"advertise-address" help:"address that pods and other nodes reach the API at (default: the node's)"`
	ServiceNodePortRange string `yaml:"service-node-port-range" shared:"" help:"ports for services of type NodePort"`
	WriteKubeconfigGroup string `yaml:"write-kubeconfig-group" help:"group of the administrator's kubeconfig"`
	EnablePprof          bool   `yaml:"enable-pprof" help:"serve Go's profiles below /debug/pprof of the API, to administrators"`
}

const defaultNodePorts = "30000-32767"

// Snapshotters that --snapshotter knows.
var Snapshotters = []string{"overlayfs", "native"}

// Runtimes that --default-runtime knows. All but runc come from elsewhere; a node offers those whose programs it has.
var Runtimes = []string{"runc", "crun", "lunatic", "nvidia", "nvidia-cdi", "nvidia-experimental", "slight", "spin", "wasmedge", "wasmer", "wasmtime", "wws"}

var portRange = regexp.MustCompile(`^[0-9]{1,5}-[0-9]{1,5}$`)

func (p *problems) runtime(r *Runtime) {
	if r.Snapshotter != "" && !slices.Contains(Snapshotters, r.Snapshotter) {
		p.addf([]any{"snapshotter"}, "%q is not a snapshotter of this release; known are %s", r.Snapshotter, strings.Join(Snapshotters, ", "))
	}
	if r.DefaultRuntime != "" && !slices.Contains(Runtimes, r.DefaultRuntime) {
		p.addf([]any{"default-runtime"}, "%q is not a runtime; known are %s", r.DefaultRuntime, strings.Join(Runtimes, ", "))
	}
	for key, value := range map[string]string{
		"resolv-conf": r.ResolvConf, "image-credential-provider-bin-dir": r.CredentialProviderBinDir, "image-credential-provider-config": r.CredentialProviderConfig,
	} {
		if value != "" && !strings.HasPrefix(value, "/") {
			p.addf([]any{key}, "%q is not an absolute path", value)
		}
	}
	if (r.CredentialProviderBinDir == "") != (r.CredentialProviderConfig == "") {
		p.addf([]any{"image-credential-provider-config"}, "goes together with image-credential-provider-bin-dir; give both or none")
	}
}

func (p *problems) listen(l *Listen) {
	for key, value := range map[string]string{"bind-address": l.BindAddress, "advertise-address": l.AdvertiseAddress} {
		if value == "" {
			continue
		}
		if _, err := netip.ParseAddr(value); err != nil {
			p.addf([]any{key}, "%q is not an IP address", value)
		}
	}
	if !portRange.MatchString(l.ServiceNodePortRange) {
		p.addf([]any{"service-node-port-range"}, "%q is not a range of ports, as in %s", l.ServiceNodePortRange, defaultNodePorts)
	}
}
