package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/utils"
	"github.com/containernetworking/plugins/pkg/utils/sysctl"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// portMapping is a pod's hostPort.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

type portmapConf struct {
	types.NetConf
	Backend       string `json:"backend"`
	SNAT          *bool  `json:"snat"`
	RuntimeConfig struct {
		PortMaps []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
}

// Names inside nftables. One table per family, so that the other family's rules survive a delete.
const (
	PortTable   = "skerry_hostport"
	portChain   = "hostports"
	masqChain   = "masquerading"
	localAccess = "fib daddr type local jump " + portChain
)

func parsePortmap(args *skel.CmdArgs) (*portmapConf, error) {
	conf := &portmapConf{}
	err := decode(args.StdinData, conf, &conf.NetConf, "masqAll", "markMasqBit", "externalSetMarkChain", "conditionsV4", "conditionsV6")
	if err != nil {
		return nil, err
	}
	if conf.Backend != "" && conf.Backend != "nftables" {
		return nil, fmt.Errorf("network %q: portmap: backend %q is not supported; only nftables is", conf.Name, conf.Backend)
	}
	for _, m := range conf.RuntimeConfig.PortMaps {
		switch {
		case m.HostPort < 1 || m.HostPort > 65535, m.ContainerPort < 1 || m.ContainerPort > 65535:
			return nil, fmt.Errorf("network %q: port mapping %d to %d: ports are 1 to 65535", conf.Name, m.HostPort, m.ContainerPort)
		case m.Protocol != "tcp" && m.Protocol != "udp" && m.Protocol != "sctp":
			return nil, fmt.Errorf("network %q: port mapping %d: protocol %q is none of tcp, udp, sctp", conf.Name, m.HostPort, m.Protocol)
		case m.HostIP != "" && net.ParseIP(m.HostIP) == nil:
			return nil, fmt.Errorf("network %q: port mapping %d: host address %q is not an IP address", conf.Name, m.HostPort, m.HostIP)
		}
	}
	return conf, nil
}

func portmapAdd(args *skel.CmdArgs) error {
	conf, err := parsePortmap(args)
	if err != nil {
		return err
	}
	result, err := previous(&conf.NetConf)
	if err != nil {
		return err
	}
	if len(conf.RuntimeConfig.PortMaps) > 0 {
		for _, pod := range podAddresses(result, args.IfName) {
			if err := forward(conf, args.ContainerID, pod); err != nil {
				return fmt.Errorf("network %q: ports of %s: %w", conf.Name, pod, err)
			}
		}
	}
	return types.PrintResult(conf.PrevResult, conf.CNIVersion)
}

// podAddresses picks the first address of each family that the pod's interface carries.
func podAddresses(result *current.Result, ifName string) []net.IP {
	var v4, v6 net.IP
	for _, address := range result.IPs {
		if i := address.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) {
			if iface := result.Interfaces[*i]; iface.Name != ifName || iface.Sandbox == "" {
				continue
			}
		}
		if address.Address.IP.To4() != nil {
			if v4 == nil {
				v4 = address.Address.IP
			}
		} else if v6 == nil {
			v6 = address.Address.IP
		}
	}
	var found []net.IP
	for _, address := range []net.IP{v4, v6} {
		if address != nil {
			found = append(found, address)
		}
	}
	return found
}

// forward sends the node's ports to the pod. Rules carry the container as comment, which is how they are found again.
func forward(conf *portmapConf, container string, pod net.IP) error {
	family, word, netFamily := knftables.IPv4Family, "ip", netlink.InetFamily(unix.AF_INET)
	if pod.To4() == nil {
		family, word, netFamily = knftables.IPv6Family, "ip6", netlink.InetFamily(unix.AF_INET6)
	}
	nft, err := knftables.New(family, PortTable)
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("host ports of pods")})
	tx.Add(&knftables.Chain{Name: portChain})
	for name, hook := range map[string]knftables.BaseChainHook{"prerouting": knftables.PreroutingHook, "output": knftables.OutputHook} {
		tx.Add(&knftables.Chain{Name: name, Type: knftables.PtrTo(knftables.NATType), Hook: &hook, Priority: knftables.PtrTo(knftables.DNATPriority)})
		tx.Flush(&knftables.Chain{Name: name})
		tx.Add(&knftables.Rule{Chain: name, Rule: localAccess})
	}
	for _, m := range conf.RuntimeConfig.PortMaps {
		var match []any
		if host := net.ParseIP(m.HostIP); host != nil {
			if (host.To4() == nil) != (pod.To4() == nil) {
				continue // the other family's turn
			}
			if !host.IsUnspecified() {
				match = []any{word, "daddr", host.String()}
			}
		}
		tx.Add(&knftables.Rule{
			Chain:   portChain,
			Rule:    knftables.Concat(append(match, m.Protocol, "dport", m.HostPort, "dnat to", net.JoinHostPort(pod.String(), strconv.Itoa(m.ContainerPort)))...),
			Comment: &container,
		})
	}
	if conf.SNAT == nil || *conf.SNAT {
		// A pod that reaches itself through its host port, and the node's own 127.0.0.1, need another source to get an answer.
		tx.Add(&knftables.Chain{Name: masqChain, Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority)})
		tx.Add(&knftables.Rule{Chain: masqChain, Rule: knftables.Concat(word, "saddr", pod, word, "daddr", pod, "masquerade"), Comment: &container})
		if pod.To4() != nil {
			tx.Add(&knftables.Rule{Chain: masqChain, Rule: knftables.Concat("ip saddr 127.0.0.1 ip daddr", pod, "masquerade"), Comment: &container})
			if err := allowLocalnet(pod); err != nil {
				return err
			}
		}
	}
	if err := nft.Run(context.Background(), tx); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// An UDP flow that started before keeps its old way until its entry is gone; without conntrack netlink it times out by itself.
	for _, m := range conf.RuntimeConfig.PortMaps {
		if m.Protocol == "udp" {
			if err := utils.DeleteConntrackEntriesForDstPort(uint16(m.HostPort), unix.IPPROTO_UDP, netFamily); err != nil {
				fmt.Fprintf(os.Stderr, "portmap: old UDP flows to port %d stay until they time out: %v\n", m.HostPort, err)
			}
		}
	}
	return nil
}

// allowLocalnet lets packets from 127.0.0.1 leave on the link that leads to the pod.
func allowLocalnet(pod net.IP) error {
	routes, err := netlink.RouteGet(pod)
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("no route leads to the pod's %s: %w", pod, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return err
	}
	_, err = sysctl.Sysctl("net/ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1")
	return err
}

// eachRule visits the container's rules in both families. A table or chain that does not exist holds none.
func eachRule(container string, visit func(nft knftables.Interface, tx *knftables.Transaction, rule *knftables.Rule)) error {
	for _, family := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
		nft, err := knftables.New(family, PortTable)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		tx := nft.NewTransaction()
		for _, chain := range []string{portChain, masqChain} {
			rules, err := nft.ListRules(context.Background(), chain)
			if err != nil && !knftables.IsNotFound(err) {
				return fmt.Errorf("nftables: table %s: %w", PortTable, err)
			}
			for _, rule := range rules {
				if rule.Comment != nil && *rule.Comment == container {
					visit(nft, tx, rule)
				}
			}
		}
		if tx.NumOperations() > 0 {
			if err := nft.Run(context.Background(), tx); err != nil {
				return fmt.Errorf("nftables: table %s: %w", PortTable, err)
			}
		}
	}
	return nil
}

func portmapDel(args *skel.CmdArgs) error {
	conf, err := parsePortmap(args)
	if err != nil {
		return err
	}
	if len(conf.RuntimeConfig.PortMaps) == 0 {
		return nil // nothing was added: spare the pod four runs of nft
	}
	return eachRule(args.ContainerID, func(_ knftables.Interface, tx *knftables.Transaction, rule *knftables.Rule) { tx.Delete(rule) })
}

func portmapCheck(args *skel.CmdArgs) error {
	conf, err := parsePortmap(args)
	if err != nil || len(conf.RuntimeConfig.PortMaps) == 0 {
		return err
	}
	found := 0
	err = eachRule(args.ContainerID, func(_ knftables.Interface, _ *knftables.Transaction, rule *knftables.Rule) {
		if rule.Chain == portChain {
			found++
		}
	})
	if err == nil && found == 0 {
		err = errors.New("portmap: the rules of container " + args.ContainerID + " are gone")
	}
	return err
}
