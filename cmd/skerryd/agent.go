package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/cmd/skerryd/internal/host"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/settings"
	"github.com/skerry-os/skerry/cmd/skerryd/internal/updates"
	"github.com/skerry-os/skerry/pkg/agent"
	"github.com/skerry-os/skerry/pkg/balance"
	"github.com/skerry-os/skerry/pkg/enrol"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/server"
	"github.com/skerry-os/skerry/pkg/supervise"
)

func newAgentCmd() *cobra.Command {
	typed := machine.DefaultAgent()
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node that joins a server",
		Long: "Run a node of a cluster whose servers are elsewhere, until a signal ends it; pods run on. The token is needed once: a node\n" +
			"that has joined has a certificate of its own and renews it. It learns where all servers are, and survives the loss of the\n" +
			"one it joined through.",
		Example: "  skerryd agent --server https://192.0.2.5:6443 --token K10…::server:…\n" +
			"  SKERRY_TOKEN=… skerryd agent --server https://k8s.example.org:6443 --node-label zone=north",
		Args: noArgs,
	}
	config := settings.Bind(cmd.Flags(), &typed)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a := machine.DefaultAgent()
		err := settings.Load(cmd.Flags(), *config, &typed, &a, func(name string, data []byte) error {
			d, err := machine.DecodeAgent(name, data)
			if err == nil {
				a = *d
			}
			return err
		})
		if err != nil {
			return err
		}
		if a.Server == "" {
			return settings.Usage(errors.New("--server: an agent needs the server to join, as https://HOST:6443"))
		}
		return runAgent(cmd.Context(), a)
	}
	return cmd
}

// runAgent is an agent from its settings to its end.
func runAgent(ctx context.Context, a machine.Agent) error {
	return runNode(ctx, "agent", &a, func(ctx context.Context, status func(string)) ([]supervise.Service, error) {
		return agentServices(ctx, a, status)
	})
}

// agentServices joins the cluster, if that has not been done, and lists the node's half with a stand-in for the control plane.
func agentServices(ctx context.Context, a machine.Agent, status func(string)) ([]supervise.Service, error) {
	name, err := host.NodeName(a)
	if err != nil {
		return nil, err
	}
	config := enrol.Config{
		DataDir: a.DataDir, Server: a.Server, Token: a.Token, NodeName: name, Tell: status,
		Addresses: func(shared map[string]any) ([]netip.Addr, error) { return agentIPs(a, shared) },
		Known: func(shared map[string]any) (map[string]any, error) {
			s, err := clusterOf(a, shared)
			return s.Shared(), err
		},
	}
	config.Machine, err = thisMachine(a)
	if err != nil {
		return nil, err
	}
	status("joining " + a.Server)
	state, err := enrol.Ensure(ctx, config)
	if err != nil {
		return nil, err
	}
	s, err := clusterOf(a, state.Settings)
	if err != nil {
		return nil, err
	}
	ips, err := agentIPs(a, state.Settings)
	if err != nil {
		return nil, err
	}
	local := net.JoinHostPort("127.0.0.1", strconv.Itoa(a.LBServerPort))
	files, err := state.Files(a.DataDir, "https://"+local)
	if err != nil {
		return nil, err
	}
	reloadCertificates(state.Lifetime())
	fixed, err := enrol.Addresses(a.Server)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(fixed[0])
	if err != nil {
		return nil, err
	}
	servers, err := balance.New(balance.Config{
		File: filepath.Join(a.DataDir, "agent", "servers.json"), Fixed: fixed, Known: state.Servers,
		Check: balance.Ready(files.ServerCA, "kubernetes.default.svc"), Search: balance.Neighbours(port),
	})
	if err != nil {
		return nil, err
	}
	node, err := nodeConfig(s, name, ips, files)
	if err != nil {
		return nil, err
	}
	services := []supervise.Service{
		{Name: "kube-apiserver", Run: func(ctx context.Context, ready func()) error {
			l, err := net.Listen("tcp", local)
			if err != nil {
				return fmt.Errorf("%w; choose another port with --lb-server-port", err)
			}
			return servers.Run(ctx, l, ready)
		}},
		{Name: "servers", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
			ready()
			return enrol.Follow(ctx, files.KubeProxy, servers.Set)
		}},
		{Name: "certificates", Run: func(ctx context.Context, ready func()) error {
			ready()
			return enrol.Keep(ctx, config, state, servers.Servers, func(s *enrol.State) error {
				_, err := s.Files(a.DataDir, "https://"+local)
				return err
			})
		}},
		addressService(ips, func() ([]netip.Addr, error) { return agentIPs(a, state.Settings) }),
	}
	own := agent.Services(node)
	services = append(services, updates.Service(updates.Options{
		Proxy: node.Proxy, Serves: supervise.ReadyOf(own, agent.KubeProxy),
		Log: slog.Default(), Kubeconfig: node.KubeletKubeconfig, NodeName: node.NodeName, Restart: restart,
		Others: func(context.Context) (bool, error) { return true, nil }, // an agent has a server, at least
	}))
	return append(services, own...), nil
}

// clusterOf is the agent seen as a server of its cluster whose control plane is elsewhere: its own settings, and those that all
// nodes share.
func clusterOf(a machine.Agent, shared map[string]any) (machine.Server, error) {
	s := machine.DefaultServer()
	s.Agent = a
	return s, s.Adopt(shared)
}

// agentIPs are the node's addresses in a cluster of these settings. Before the join the cluster's are not known, and those of a
// cluster with the defaults do.
func agentIPs(a machine.Agent, shared map[string]any) ([]netip.Addr, error) {
	s, err := clusterOf(a, shared)
	if err != nil {
		return nil, err
	}
	return nodeIPs(s)
}

func nodeIPs(s machine.Server) ([]netip.Addr, error) {
	serviceIP, err := server.ServiceIP(s.ServiceCIDR)
	if err != nil {
		return nil, err
	}
	ips, err := host.NodeIPs(s.NodeIP, serviceIP, s.DNS()...)
	if err != nil && s.NodeIP == "" && s.Server != "" {
		// A machine of the other family alone can still join; what the cluster needs it is told then.
		if other, err := host.NodeIPs("", otherFamily(serviceIP)); err == nil {
			return other, nil
		}
	}
	return ips, err
}

func otherFamily(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
