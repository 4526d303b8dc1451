// Package agent is the node's half of the engine: containerd, the component images, kubelet, kube-proxy and the pod network, as
// a list of services in one process. It never imports the control plane; cmd/skerryd joins the two lists.
//
// The upstream parts are started through their own option types, never through their cobra commands: those set up signal
// handling that may exist once in a process. Feature gates and logging are process-wide and are cmd/skerryd's business.
package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/localstorage"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/podnet"
	"github.com/skerry-os/skerry/pkg/registries"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// Config is what a node's half needs to know. Settings come from the flags or the node config; the rest is made by the caller.
type Config struct {
	Settings machine.Agent

	NodeName string       // as it is registered
	NodeIPs  []netip.Addr // on an interface of this machine; one, or one of each family

	ClusterCIDR   []netip.Prefix // what pods get addresses from; traffic from it to elsewhere is masqueraded
	ClusterDNS    []netip.Addr
	ClusterDomain string

	// How pods reach those of other nodes: the servers' settings of the same names, and this node's --node-external-ip.
	FlannelBackend    string
	FlannelExternalIP bool
	NodeExternalIPs   []netip.Addr

	DisableKubeProxy bool // somebody else leads to services

	ClientCA            string // file: who may ask the kubelet's server
	KubeletPair         string // file: certificate and key of that server, in one PEM file
	KubeletKubeconfig   string // file: system:node:<name>
	KubeProxyKubeconfig string // file: system:kube-proxy

	Proxy func(*url.URL) (*url.URL, error) `json:"-"` // for image pulls; nil: none

	Libexec string // folder with containerd-shim-runc-v2, runc and cni/
	Share   string // folder with images/
}

// Services is the node's half in the order it starts. The list needs "kube-apiserver" from the control plane, or from the
// caller's stand-in for a remote one.
func Services(cfg Config) []supervise.Service {
	l := newLayout(cfg)
	node := newNode(l)
	kubeProxy := l.runKubeProxy
	if cfg.DisableKubeProxy {
		kubeProxy = l.runNoKubeProxy
	}
	return []supervise.Service{
		{Name: "registries", Run: l.registries().Run},
		{Name: "containerd", Run: l.runContainerd},
		{Name: "images", Needs: []string{"containerd"}, Run: l.runImages},
		{Name: "pod-network", Needs: []string{"kube-apiserver"}, Run: node.runNetwork},
		{Name: "network-policy", Needs: []string{"kube-apiserver"}, Run: l.runNetworkPolicy},
		{Name: "kubelet", Needs: []string{"containerd", "images", "registries", "kube-apiserver"}, Run: l.runKubelet},
		{Name: "node-addresses", Needs: []string{"kube-apiserver"}, Run: node.runAddresses},
		{Name: KubeProxy, Needs: []string{"kube-apiserver", "pod-network", "node-addresses"}, Run: kubeProxy},
		{Name: "local-storage", Needs: []string{"kube-apiserver", "pod-network"}, Run: l.localStorage().Run},
		{Name: "node-ready", Needs: []string{"kubelet", "pod-network"}, Run: node.runReady},
	}
}

// localStorage makes the folders of volumes on this node, as the cluster's controller asks for them.
func (l *layout) localStorage() localstorage.Node {
	root := l.Settings.LocalStorage
	if root == "" {
		root = filepath.Join(l.Settings.DataDir, "storage")
	}
	return localstorage.Node{Name: l.NodeName, Kubeconfig: l.KubeletKubeconfig, Root: root}
}

// Socket is containerd's socket for a data folder; ctr and crictl need it.
func Socket(dataDir string) string { return filepath.Join(runDir(dataDir), "containerd.sock") }

// layout is where the node keeps its files.
type layout struct {
	Config
	data string // survives a restart
	run  string // gone after one, as the containers are
	pods string // kubelet's root
	logs string // of containers
}

func newLayout(cfg Config) *layout {
	l := &layout{Config: cfg, data: filepath.Join(cfg.Settings.DataDir, "agent"), run: runDir(cfg.Settings.DataDir)}
	// Storage and device plugins expect kubelet's usual folders; a node with a data folder of its own (tests, a second node on
	// a machine) must not touch them.
	l.pods, l.logs = "/var/lib/kubelet", "/var/log/pods"
	if filepath.Clean(cfg.Settings.DataDir) != machine.DataDir {
		l.pods, l.logs = filepath.Join(l.data, "kubelet"), filepath.Join(l.data, "logs")
	}
	return l
}

// runDir is short, because a socket's path may have 107 bytes, and differs for every data folder.
func runDir(dataDir string) string {
	dataDir = filepath.Clean(dataDir)
	if dataDir == machine.DataDir {
		return "/run/skerry"
	}
	sum := sha256.Sum256([]byte(dataDir))
	return "/run/skerry-" + hex.EncodeToString(sum[:4])
}

func (l *layout) socket() string     { return filepath.Join(l.run, "containerd.sock") }
func (l *layout) cniConfDir() string { return filepath.Join(l.data, "cni") }

// cniReadDir is where containerd looks: with a network of somebody else's, where the whole world puts it.
func (l *layout) cniReadDir() string {
	if l.FlannelBackend == string(podnet.None) {
		return "/etc/cni/net.d"
	}
	return l.cniConfDir()
}

func (l *layout) certsDir() string     { return filepath.Join(l.run, "certs.d") } // made at every start, on a full disk too
func (l *layout) cniBinDir() string    { return filepath.Join(l.Libexec, "cni") }
func (l *layout) policySocket() string { return filepath.Join(l.run, "policy.sock") }
func (l *layout) cniConf() string      { return filepath.Join(l.cniConfDir(), "10-skerry.conflist") }

func (l *layout) registries() *registries.Server {
	return registries.New(registries.Config{File: l.Settings.PrivateRegistry, Hosts: l.certsDir(), Proxy: l.Proxy, MirrorsOnly: l.Settings.DisableDefaultRegistryEndpoint})
}

// program finds a helper: beside the other helpers first, then in PATH.
func (l *layout) program(name string) (string, error) { return findProgram(l.Libexec, name) }

// extendPath lets upstream code find nft, mount and the helpers by name. A root shell's PATH often lacks the sbin folders.
func (l *layout) extendPath() error {
	have := filepath.SplitList(os.Getenv("PATH"))
	for _, dir := range []string{l.Libexec, "/usr/sbin", "/sbin"} {
		if !slices.Contains(have, dir) {
			have = append(have, dir)
		}
	}
	return os.Setenv("PATH", strings.Join(have, string(filepath.ListSeparator)))
}

// until runs f, which upstream wrote without a way to stop it, and comes back when f does or when ctx ends, whichever is
// first. What f left running ends with the process.
func until(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil
	}
}
