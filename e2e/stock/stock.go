// Package stock runs Kubernetes as upstream ships it, one process for each component, all built from the modules that skerryd is
// built from, so that both can be measured in one run. It is set up as kubeadm would, and wherever kubeadm's way would cost time
// that is not Kubernetes' own (image pulls, static pods' back-off, a pod network that comes later), the faster way is taken.
package stock

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-os/skerry/e2e/nodes"
	"github.com/skerry-os/skerry/pkg/pki"
)

// Programs are the files that a folder of stock programs must hold; `make stock` builds them.
var Programs = []string{"etcd", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}

// restart is how long a program that ended is left alone, as systemd does by default.
const restart = 100 * time.Millisecond

// Cluster is a control plane and a node on one machine of the test.
type Cluster struct {
	t        testing.TB
	node     *nodes.Node
	programs string
	helpers  string // folder of runc and the shim, with the CNI plugins below it
	dir      string
	files    *pki.Files
	began    time.Time
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// New prepares a cluster on a node: certificates, configuration; nothing runs yet. helpers is the folder with runc,
// containerd-shim-runc-v2 and, in cni, the plugins.
func New(t testing.TB, node *nodes.Node, programs, helpers string) *Cluster {
	t.Helper()
	c := &Cluster{t: t, node: node, programs: programs, helpers: helpers, dir: filepath.Join(node.Dir, "stock")}
	var err error
	c.files, err = pki.Ensure(pki.Config{
		DataDir: c.dir, NodeName: node.Name, NodeIPs: []netip.Addr{node.IP}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		Domain: "cluster.local", Port: 6443, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"kubelet.yaml":           c.kubelet(),
		"containerd.toml":        c.containerd(),
		"net.d/10-pods.conflist": `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
	} {
		file := filepath.Join(c.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.Stop)
	return c
}

func (c *Cluster) kubelet() string {
	return strings.NewReplacer("DIR", c.dir, "PAIR", c.files.KubeletPair, "CLIENTCA", c.files.ClientCA).Replace(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
tlsCertFile: PAIR
tlsPrivateKeyFile: PAIR
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: CLIENTCA}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://DIR/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [10.43.0.10]
clusterDomain: cluster.local
podLogsDir: DIR/logs
volumePluginDir: DIR/volumeplugins
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
`)
}

func (c *Cluster) containerd() string {
	return strings.NewReplacer("DIR", c.dir, "CNI", filepath.Join(c.helpers, "cni"), "HELPERS", c.helpers).Replace(`version = 4
root = "DIR/containerd"
state = "DIR/run"
[plugins."io.containerd.server.v1.grpc"]
address = "DIR/containerd.sock"
[plugins."io.containerd.server.v1.ttrpc"]
address = "DIR/containerd.sock.ttrpc"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["CNI"]
conf_dir = "DIR/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "HELPERS/containerd-shim-runc-v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "HELPERS/runc"
`)
}

// arguments are what each program is started with: kubeadm's, on this cluster's files.
func (c *Cluster) arguments() map[string][]string {
	f := c.files
	return map[string][]string{
		"etcd": {
			"--data-dir=" + filepath.Join(c.dir, "etcd"), "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--snapshot-count=10000",
		},
		"containerd": {"--config=" + filepath.Join(c.dir, "containerd.toml")},
		"kube-apiserver": {
			"--advertise-address=" + c.node.IP.String(), "--allow-privileged=true", "--authorization-mode=Node,RBAC", "--client-ca-file=" + f.ClientCA,
			"--enable-admission-plugins=NodeRestriction", "--etcd-servers=http://127.0.0.1:2379", "--kubelet-certificate-authority=" + f.ServerCA,
			"--kubelet-client-certificate=" + f.APIServerKubeletPair, "--kubelet-client-key=" + f.APIServerKubeletPair,
			"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname", "--proxy-client-cert-file=" + f.AuthProxyPair, "--proxy-client-key-file=" + f.AuthProxyPair,
			"--requestheader-allowed-names=" + pki.AuthProxyName, "--requestheader-client-ca-file=" + f.RequestHeaderCA,
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
			"--secure-port=6443", "--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + f.ServiceAccountKey,
			"--service-account-signing-key-file=" + f.ServiceAccountKey, "--service-cluster-ip-range=10.43.0.0/16",
			"--tls-cert-file=" + f.APIServerPair, "--tls-private-key-file=" + f.APIServerPair, "--watch-cache=true",
		},
		"kube-controller-manager": {
			"--allocate-node-cidrs=true", "--bind-address=127.0.0.1", "--cluster-cidr=10.42.0.0/16", "--service-cluster-ip-range=10.43.0.0/16",
			"--cluster-signing-cert-file=" + f.ClientCAPair, "--cluster-signing-key-file=" + f.ClientCAPair, "--kubeconfig=" + f.ControllerManager,
			"--authentication-kubeconfig=" + f.ControllerManager, "--authorization-kubeconfig=" + f.ControllerManager,
			"--leader-elect=true", "--root-ca-file=" + f.ServerCA, "--service-account-private-key-file=" + f.ServiceAccountKey, "--use-service-account-credentials=true",
			"--cert-dir=" + filepath.Join(c.dir, "kcm"),
		},
		"kube-scheduler": {
			"--bind-address=127.0.0.1", "--kubeconfig=" + f.Scheduler, "--authentication-kubeconfig=" + f.Scheduler, "--authorization-kubeconfig=" + f.Scheduler,
			"--leader-elect=true", "--cert-dir=" + filepath.Join(c.dir, "scheduler"),
		},
		"kubelet": {
			"--config=" + filepath.Join(c.dir, "kubelet.yaml"), "--kubeconfig=" + f.Kubelet, "--hostname-override=" + c.node.Name, "--node-ip=" + c.node.IP.String(),
			"--root-dir=" + filepath.Join(c.dir, "kubelet"),
		},
		"kube-proxy": {"--kubeconfig=" + f.KubeProxy, "--hostname-override=" + c.node.Name, "--proxy-mode=nftables", "--cluster-cidr=10.42.0.0/16"},
	}
}

// Start runs all programs at once, each again whenever it ends.
func (c *Cluster) Start() {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Join(c.dir, "log"), 0o755); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	c.stop, c.began = cancel, time.Now()
	for name, args := range c.arguments() {
		log, err := os.OpenFile(c.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			c.t.Fatal(err)
		}
		c.running.Go(func() {
			defer log.Close() //nolint:errcheck // a log of a test
			for ctx.Err() == nil {
				cmd := c.node.Command(ctx, c.Program(name), args...)
				cmd.Stdout, cmd.Stderr = log, log
				cmd.Env = append(os.Environ(), "PATH="+c.helpers+":"+os.Getenv("PATH"))
				cmd.Cancel = func() error { return terminate(cmd) }
				cmd.WaitDelay = 20 * time.Second
				err := cmd.Run()
				fmt.Fprintf(log, "== ended: %v\n", err)
				select {
				case <-ctx.Done():
				case <-time.After(restart):
				}
			}
		})
	}
}

// terminate asks the program behind nsenter to end.
func terminate(cmd *exec.Cmd) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		return err
	}
	for _, child := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all programs and waits.
func (c *Cluster) Stop() {
	if c.stop == nil {
		return
	}
	c.stop()
	c.running.Wait()
	c.stop = nil
}

// Program is the file of a program, Log where it writes.
func (c *Cluster) Program(name string) string { return filepath.Join(c.programs, name) }

// Log is where a program writes.
func (c *Cluster) Log(name string) string { return filepath.Join(c.dir, "log", name) }

// Admin is the administrator's kubeconfig, for a client on the node.
func (c *Cluster) Admin() string { return c.files.Admin }
