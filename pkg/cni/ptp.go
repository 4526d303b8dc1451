package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/ipam"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/utils/sysctl"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

type ptpConf struct {
	types.NetConf
	MTU    int    `json:"mtu"`
	Policy string `json:"policySocket"` // of the engine, which is asked before the pod starts
}

func parsePTP(args *skel.CmdArgs) (*ptpConf, error) {
	conf := &ptpConf{}
	// The node masquerades for the whole cluster range with one rule; a rule per pod would cost an nft run per pod.
	if err := decode(args.StdinData, conf, &conf.NetConf, "ipMasq"); err != nil {
		return nil, err
	}
	if conf.IPAM.Type == "" {
		return nil, fmt.Errorf("network %q: ipam.type is missing; use host-local", conf.Name)
	}
	return conf, nil
}

// ptpAdd makes a veth pair, one end in the pod. Pod and node see each other as the only neighbour: the pod has its address
// with a full-length mask and routes everything through the gateway, which is the node's end; the node has one route per pod.
func ptpAdd(args *skel.CmdArgs) (err error) {
	conf, err := parsePTP(args)
	if err != nil {
		return err
	}
	result, err := ipamAdd(conf, args)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ipamDel(conf, args))
		}
	}()
	if err := ip.EnableForward(result.IPs); err != nil {
		return fmt.Errorf("network %q: switching IP forwarding on: %w", conf.Name, err)
	}
	pod, err := ns.GetNS(args.Netns)
	if err != nil {
		return fmt.Errorf("network %q: network namespace: %w", conf.Name, err)
	}
	defer func() { _ = pod.Close() }()

	var hostName string
	err = pod.Do(func(host ns.NetNS) error {
		hostEnd, podEnd, err := ip.SetupVeth(args.IfName, conf.MTU, "", host)
		if err != nil {
			return err
		}
		hostName = hostEnd.Name
		result.Interfaces = []*current.Interface{
			{Name: hostEnd.Name, Mac: hostEnd.HardwareAddr.String()},
			{Name: podEnd.Name, Mac: podEnd.HardwareAddr.String(), Sandbox: args.Netns},
		}
		return configurePod(podEnd.Name, result)
	})
	if err != nil {
		return fmt.Errorf("network %q: pod's end: %w", conf.Name, err)
	}
	if err := configureHost(hostName, result); err != nil {
		return fmt.Errorf("network %q: node's end: %w", conf.Name, err)
	}
	if err := admit(conf.Policy, args.Args, result); err != nil {
		// The namespace is the caller's, and stays for the next try; the link must not.
		return errors.Join(fmt.Errorf("network %q: %w", conf.Name, err), pod.Do(func(ns.NetNS) error { return ip.DelLinkByName(args.IfName) }))
	}
	if conf.DNS.Nameservers != nil || conf.DNS.Domain != "" || conf.DNS.Search != nil || conf.DNS.Options != nil {
		result.DNS = conf.DNS
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func ipamAdd(conf *ptpConf, args *skel.CmdArgs) (*current.Result, error) {
	var result *current.Result
	if conf.IPAM.Type == "host-local" { // the same program: no second process
		got, _, err := allocate(args)
		if err != nil {
			return nil, err
		}
		result = got
	} else {
		raw, err := ipam.ExecAdd(conf.IPAM.Type, args.StdinData)
		if err != nil {
			return nil, fmt.Errorf("network %q: ipam %s: %w", conf.Name, conf.IPAM.Type, err)
		}
		if result, err = current.NewResultFromResult(raw); err != nil {
			return nil, fmt.Errorf("network %q: ipam %s: %w", conf.Name, conf.IPAM.Type, err)
		}
	}
	if len(result.IPs) == 0 {
		return nil, fmt.Errorf("network %q: ipam %s gave no address", conf.Name, conf.IPAM.Type)
	}
	for _, address := range result.IPs {
		if address.Gateway == nil {
			return nil, errors.Join(fmt.Errorf("network %q: ipam %s gave %v without a gateway", conf.Name, conf.IPAM.Type, address.Address.IP), ipamDel(conf, args))
		}
		address.Interface = current.Int(1)
		address.Address.Mask = hostMask(address.Address.IP)
	}
	return result, nil
}

func ipamDel(conf *ptpConf, args *skel.CmdArgs) error {
	if conf.IPAM.Type == "host-local" {
		return hostLocalDel(args)
	}
	if err := ipam.ExecDel(conf.IPAM.Type, args.StdinData); err != nil {
		return fmt.Errorf("network %q: ipam %s: %w", conf.Name, conf.IPAM.Type, err)
	}
	return nil
}

// configurePod runs in the pod's network namespace.
func configurePod(name string, result *current.Result) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, address := range result.IPs {
		if address.Address.IP.To4() == nil {
			for _, iface := range []string{"lo", name} {
				if _, err := sysctl.Sysctl("net/ipv6/conf/"+iface+"/disable_ipv6", "0"); err != nil {
					return fmt.Errorf("%s: switching IPv6 on: %w", iface, err)
				}
			}
		}
		if err := addAddress(link, address.Address); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	for _, address := range result.IPs {
		gateway := net.IPNet{IP: address.Gateway, Mask: hostMask(address.Gateway)}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: &gateway, Scope: netlink.SCOPE_LINK, Src: address.Address.IP}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("%s: route to the gateway %s: %w", name, address.Gateway, err)
		}
	}
	for _, route := range result.Routes {
		gateway := route.GW
		for _, address := range result.IPs {
			if gateway == nil && (address.Gateway.To4() == nil) == (route.Dst.IP.To4() == nil) {
				gateway = address.Gateway
			}
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &route.Dst, Gw: gateway, Priority: route.Priority}); err != nil {
			return fmt.Errorf("%s: route to %s via %s: %w", name, &route.Dst, gateway, err)
		}
	}
	return nil
}

// configureHost gives the node's end the gateway's address, the same on every pod's link, and routes the pod's address there.
func configureHost(name string, result *current.Result) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// A pod must not hand the node a default route.
	if _, err := sysctl.Sysctl("net/ipv6/conf/"+name+"/accept_ra", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: accept_ra: %w", name, err)
	}
	for _, address := range result.IPs {
		if err := addAddress(link, net.IPNet{IP: address.Gateway, Mask: hostMask(address.Gateway)}); err != nil {
			return err
		}
		pod := address.Address
		err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &pod, Scope: netlink.SCOPE_LINK, Src: address.Gateway})
		if err != nil {
			return fmt.Errorf("%s: route to the pod's %s: %w", name, pod.IP, err)
		}
	}
	return nil
}

// addAddress skips duplicate address detection: nobody else is on the link, and detection would hold the address back for a second.
func addAddress(link netlink.Link, address net.IPNet) error {
	flags := 0
	if address.IP.To4() == nil {
		flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &address, Flags: flags}); err != nil {
		return fmt.Errorf("%s: address %s: %w", link.Attrs().Name, &address, err)
	}
	return nil
}

func hostMask(address net.IP) net.IPMask {
	if address.To4() != nil {
		return net.CIDRMask(32, 32)
	}
	return net.CIDRMask(128, 128)
}

// ptpDel may be called any number of times, with a namespace that is gone or never was.
func ptpDel(args *skel.CmdArgs) error {
	conf, err := parsePTP(args)
	if err != nil {
		return err
	}
	if args.Netns != "" {
		err := ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
			err := ip.DelLinkByName(args.IfName) // the peer and the node's routes go with it
			if errors.Is(err, ip.ErrLinkNotFound) {
				return nil
			}
			return err
		})
		var gone ns.NSPathNotExistErr
		if err != nil && !errors.As(err, &gone) {
			return fmt.Errorf("network %q: removing %s: %w", conf.Name, args.IfName, err)
		}
	}
	return ipamDel(conf, args) // last: an address is free only when nothing carries it
}

func ptpCheck(args *skel.CmdArgs) error {
	conf, err := parsePTP(args)
	if err != nil {
		return err
	}
	result, err := previous(&conf.NetConf)
	if err != nil {
		return err
	}
	if conf.IPAM.Type == "host-local" {
		err = hostLocalCheck(args)
	} else {
		err = ipam.ExecCheck(conf.IPAM.Type, args.StdinData)
	}
	if err != nil {
		return err
	}
	err = ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		return checkPod(args.IfName, result)
	})
	if err != nil {
		return fmt.Errorf("network %q: %w", conf.Name, err)
	}
	return nil
}

// checkPod runs in the pod's network namespace.
func checkPod(name string, result *current.Result) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s: is down", name)
	}
	addresses, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("%s: addresses: %w", name, err)
	}
	for _, want := range result.IPs {
		if !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(want.Address.IP) }) {
			return fmt.Errorf("%s: address %s is gone", name, want.Address.IP)
		}
	}
	return ip.ValidateExpectedRoute(result.Routes)
}
