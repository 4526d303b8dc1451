package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/addons"
	"github.com/skerry-os/skerry/pkg/agent"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/controllers"
	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/helm"
	"github.com/skerry-os/skerry/pkg/localstorage"
	"github.com/skerry-os/skerry/pkg/lostnodes"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/metricsserver"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/outbound"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/rollout"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/server/membership"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/servicelb"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// defaultWriteKubeconfig is also where K3s's path leads to on the image.
const defaultWriteKubeconfig = "/etc/skerry/skerry.yaml"

func newServerCmd() *cobra.Command {
	typed := machine.DefaultServer()
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a control plane and a node",
		Long: "Run a control plane and a node, until a signal ends it; pods run on. Every flag may stand in the file of --config, under\n" +
			"the same name.",
		Example: "  skerryd server --data-dir /srv/skerry --node-name north-1 --tls-san k8s.example.org\n" +
			"  skerryd server --config /etc/skerry/config.yaml --kubelet-arg max-pods=50",
		Args: noArgs,
	}
	config := settings.Bind(cmd.Flags(), &typed)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := machine.DefaultServer()
		err := settings.Load(cmd.Flags(), *config, &typed, &s, func(name string, data []byte) error {
			d, err := machine.DecodeServer(name, data)
			if err == nil {
				s = *d
			}
			return err
		})
		if err != nil {
			return err
		}
		return runServer(cmd.Context(), s)
	}
	return cmd
}

// runServer is a server from its settings to its end.
func runServer(ctx context.Context, s machine.Server) error {
	if s.ClusterReset {
		return resetCluster(ctx, s)
	}
	if err := readAgentToken(&s); err != nil {
		return settings.Usage(err)
	}
	return runNode(ctx, "server", &s.Agent, func(ctx context.Context, status func(string)) ([]supervise.Service, error) {
		return serverServices(ctx, s, status)
	})
}

// askOthers is how long a fleet's first server asks the others for a cluster before it begins one. They may be starting too.
const askOthers = 30 * time.Second

// serverServices prepares the files of a server and joins the two halves of a node.
func serverServices(ctx context.Context, s machine.Server, status func(string)) ([]supervise.Service, error) {
	name, err := host.NodeName(s.Agent)
	if err != nil {
		return nil, err
	}
	serviceIP, err := server.ServiceIP(s.ServiceCIDR)
	if err != nil {
		return nil, err
	}
	ips, err := nodeIPs(s)
	if err != nil {
		return nil, err
	}
	self, err := thisMachine(s.Agent)
	if err != nil {
		return nil, err
	}
	if s.Server == "" && s.DatastoreEndpoint == "" {
		through, text, err := enrol.Elsewhere(ctx, s.DataDir, askOthers, status)
		if err != nil {
			return nil, err
		}
		if through != "" {
			s.Server, s.Token, s.ClusterInit = through, text, false
		}
	}
	if s.Server == "" {
		if err := enrol.TakeSeed(s.DataDir); err != nil {
			return nil, err
		}
	}
	if err := joinServers(ctx, s, name, self, status); err != nil {
		return nil, err
	}
	if err := enrol.TakeSeed(s.DataDir); err != nil { // of a cluster that was joined instead: it goes
		return nil, err
	}
	if s.Server != "" {
		s.Token = "" // it was for joining, and may be this node's alone; the cluster's own came with the answer
	}
	if err := server.TakeShared(ctx, server.StoredConfig{Settings: s, NodeName: name, NodeIP: ips[0]}, status); errors.Is(err, datastore.ErrDamaged) {
		return nil, err
	} else if err != nil {
		return nil, settings.Usage(err)
	}
	certificates := pki.Config{
		DataDir: s.DataDir, NodeName: name, NodeIPs: ips, ServiceIP: serviceIP, Domain: s.ClusterDomain,
		Port: s.HTTPSListenPort, SANs: s.TLSSAN, Lifetime: s.Lifetime(), Etcd: server.UsesEtcd(s), Now: time.Now(),
	}
	files, err := pki.Ensure(certificates)
	if err != nil {
		return nil, err
	}
	datastoreOf := beforeUpdate{settings: s, node: name, ip: ips[0]}
	if err := datastoreOf.undo(ctx); err != nil {
		return nil, fmt.Errorf("taking the datastore back to before the update that failed: %w", err)
	}
	reloadCertificates(s.Lifetime())
	secret, err := secrets.Ensure(s.DataDir, s.Token, files.ServerCA)
	if err != nil {
		return nil, err
	}
	if err := writeKubeconfig(s, files.Admin); err != nil {
		return nil, err
	}
	members := membership.New(membersConfig(s, name, self, ips, files, secret))
	services, err := server.Services(server.Config{Settings: s, NodeName: name, NodeIPs: ips, Nodes: nodeAddresses(files.Admin), Files: files, Secrets: secret, Join: members.Handler(), Removed: members.Removed})
	if err != nil {
		return nil, settings.Usage(err)
	}
	node, err := nodeConfig(s, name, ips, files)
	if err != nil {
		return nil, err
	}
	services = append(services,
		members.Service(),
		certificatesService(certificates, func() error { return writeKubeconfig(s, files.Admin) }),
		addressService(ips, func() ([]netip.Addr, error) { return nodeIPs(s) }),
	)
	services = append(services, addons.Service(addons.Config{
		Kubeconfig:    files.Admin,
		Node:          name,
		Alone:         server.Alone(s),
		Components:    filepath.Join(node.Share, "manifests"),
		InProcess:     []string{servicelb.Name, localstorage.Name, metricsserver.Name, helm.Name, rollout.Name},
		Disable:       disabled(s),
		Manifests:     filepath.Join(s.DataDir, "server", "manifests"),
		ClusterDNS:    node.ClusterDNS,
		ClusterDomain: s.ClusterDomain,
	}))
	inProcess := []controllers.Controller{servicelb.Controller(nodePorts(s)...), localstorage.Controller(), helmController(node.Proxy), rollout.Controller()}
	if after := s.RemoveAfter(); after > 0 {
		inProcess = append(inProcess, lostnodes.Controller(after))
	}
	services = append(services, controllers.Service(controllers.Config{Kubeconfig: files.Admin, NodeName: name, Alone: server.Alone(s), Controllers: inProcess}))
	own := agent.Services(node)
	services = append(services, updates.Service(updates.Options{
		Proxy: node.Proxy, Serves: supervise.ReadyOf(own, agent.KubeProxy),
		Log: slog.Default(), Kubeconfig: files.Kubelet, NodeName: name, Restart: restart,
		Snapshot: datastoreOf.save, Needs: datastoreOf.needs,
		Others: func(ctx context.Context) (bool, error) { return otherNodes(ctx, files.Admin) },
	}))
	return append(services, own...), nil
}

// helmController is pkg/helm's as one of the server's.
func helmController(proxy func(*url.URL) (*url.URL, error)) controllers.Controller {
	return controllers.Controller{Name: helm.Name, Run: func(ctx context.Context, k *controllers.Kit) error {
		c, err := helm.New(k.Config, k.Client, k.Events, proxy)
		if err != nil {
			return err
		}
		return c.Run(ctx)
	}}
}

// nodePorts are what the engine listens on at the nodes' addresses: the API, kubelet and etcd.
func nodePorts(s machine.Server) []int32 {
	return []int32{int32(s.HTTPSListenPort), 10250, 2379, 2380} //nolint:gosec // the setting is checked to be a port
}

func nodeConfig(s machine.Server, name string, ips []netip.Addr, files *pki.Files) (agent.Config, error) {
	libexec, share, err := host.SharedDirs()
	if err != nil {
		return agent.Config{}, err
	}
	c := agent.Config{
		Settings:            s.Agent,
		NodeName:            name,
		NodeIPs:             ips,
		ClusterDNS:          s.DNS(),
		ClusterDomain:       s.ClusterDomain,
		FlannelBackend:      s.FlannelBackend,
		FlannelExternalIP:   s.FlannelExternalIP,
		DisableKubeProxy:    s.DisableKubeProxy,
		ClientCA:            files.ClientCA,
		KubeletPair:         files.KubeletPair,
		KubeletKubeconfig:   files.Kubelet,
		KubeProxyKubeconfig: files.KubeProxy,
		Libexec:             libexec,
		Share:               share,
	}
	for text := range strings.SplitSeq(s.ClusterCIDR, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return c, fmt.Errorf("cluster-cidr: %w", err)
		}
		c.ClusterCIDR = append(c.ClusterCIDR, p)
	}
	for text := range strings.FieldsFuncSeq(s.NodeExternalIP, func(r rune) bool { return r == ',' || r == ' ' }) {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return c, fmt.Errorf("node-external-ip: %w", err)
		}
		c.NodeExternalIPs = append(c.NodeExternalIPs, ip)
	}
	networks, err := s.Networks()
	if err != nil {
		return c, err
	}
	proxy := outbound.Settings{HTTP: s.HTTPProxy, HTTPS: s.HTTPSProxy, No: s.NoProxy}
	c.Proxy = proxy.Func(outbound.Never(networks, s.ClusterDomain, append(slices.Clone(ips), c.NodeExternalIPs...)), nodeAddresses(files.KubeProxy))
	return c, nil
}

// disabled lists the components not to run, however that was said.
func disabled(s machine.Server) []string {
	all := slices.Clone(s.Disable)
	if s.DisableNetworkPolicy {
		all = append(all, "network-policy")
	}
	if s.DisableHelmController {
		all = append(all, helm.Name)
	}
	return all
}

// writeKubeconfig puts the administrator's kubeconfig where people look for it.
func writeKubeconfig(s machine.Server, admin string) error {
	name := s.WriteKubeconfig
	if name == "" {
		name = defaultWriteKubeconfig
	}
	mode, err := strconv.ParseUint(s.WriteKubeconfigMode, 8, 32)
	if err != nil {
		return settings.Usage(fmt.Errorf("--write-kubeconfig-mode: %w", err))
	}
	data, err := pki.Embed(admin)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("--write-kubeconfig: %w", err)
	}
	if old, err := os.ReadFile(name); err == nil && string(old) == string(data) {
		return errors.Join(os.Chmod(name, fs.FileMode(mode)), changeGroup(name, s.WriteKubeconfigGroup))
	}
	if err := atomicfile.Write(name, data, fs.FileMode(mode)); err != nil {
		return fmt.Errorf("--write-kubeconfig: %w", err)
	}
	return changeGroup(name, s.WriteKubeconfigGroup)
}

// changeGroup gives a file to a group, by its name or number; "" leaves it alone.
func changeGroup(file, group string) error {
	if group == "" {
		return nil
	}
	id, err := strconv.Atoi(group)
	if err != nil {
		g, err := user.LookupGroup(group)
		if err != nil {
			return settings.Usage(fmt.Errorf("--write-kubeconfig-group: %w", err))
		}
		if id, err = strconv.Atoi(g.Gid); err != nil {
			return err
		}
	}
	return os.Chown(file, -1, id)
}

// tell keeps the supervisor above us (init, systemd) informed until ctx ends: what is waited for, and READY once, when
// atReady is called too.
func tell(ctx context.Context, log *slog.Logger, supervisor notify.Sender, group *supervise.Group, atReady func()) {
	ready := group.Ready()
	last, mute := "", false
	for {
		status, changed := group.Status()
		var lines []string
		select {
		case <-ready:
			ready = nil // once
			lines = append(lines, notify.Ready)
			atReady()
		default:
		}
		if len(status.In(supervise.Stopping)) > 0 && last != notify.Stopping {
			lines, last = append(lines, notify.Stopping), notify.Stopping
		}
		if err := supervisor.Send(append(lines, notify.Status(status.String()))...); err != nil {
			if !mute {
				log.Warn("nobody hears how far the start is", "err", err)
			}
			mute = true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
