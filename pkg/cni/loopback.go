package cni

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// loopbackAdd sets lo up; the kernel gives it its addresses.
func loopbackAdd(args *skel.CmdArgs) error {
	conf := &types.NetConf{}
	if err := decode(args.StdinData, conf, conf); err != nil {
		return err
	}
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{
		{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: args.Netns},
	}}
	err := ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		addresses, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			result.IPs = append(result.IPs, &current.IPConfig{Interface: current.Int(0), Address: *address.IPNet})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("network %q: lo: %w", conf.Name, err)
	}
	if conf.PrevResult != nil {
		return types.PrintResult(conf.PrevResult, conf.CNIVersion)
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// loopbackDel leaves lo alone: it goes with its namespace.
func loopbackDel(*skel.CmdArgs) error { return nil }

func loopbackCheck(args *skel.CmdArgs) error {
	return ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("lo: %w", err)
		}
		if link.Attrs().RawFlags&1 == 0 { // IFF_UP
			return fmt.Errorf("lo: is down")
		}
		return nil
	})
}
