package netboot

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// pickInterface finds the interface that can only be meant.
func pickInterface() (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var names, all []string
	for _, i := range list {
		all = append(all, i.Name)
		if !leadsToMachines(i) {
			continue
		}
		if addr, err := addressOf(i.Name); err == nil && !addr.Addr().IsLinkLocalUnicast() {
			names = append(names, fmt.Sprintf("%s (%v)", i.Name, addr))
		}
	}
	return only(names, all)
}

// only gives the name of the one candidate, or says what there is.
func only(candidates, all []string) (string, error) {
	switch len(candidates) {
	case 1:
		name, _, _ := strings.Cut(candidates[0], " ")
		return name, nil
	case 0:
		return "", fmt.Errorf("no network interface is up and has an IPv4 address; give the one towards the machines one, as ip address add 10.11.12.1/24 dev eth1, and name it with --interface; this host has %s", strings.Join(all, ", "))
	}
	return "", errors.New("more than one network interface could lead to the machines: " + strings.Join(candidates, ", ") + "; name the one that does with --interface")
}

// inside are the beginnings of names of interfaces that lead to containers and virtual machines on this host, or through tunnels.
var inside = []string{"docker", "br-", "veth", "cni", "flannel", "cali", "cilium", "lxc", "lxd", "podman", "virbr", "vnet", "vmnet", "vboxnet", "kube-", "dummy", "tun", "tap", "wg", "tailscale", "zt"}

func leadsToMachines(i net.Interface) bool {
	const needs, not = net.FlagUp | net.FlagBroadcast, net.FlagLoopback | net.FlagPointToPoint
	return i.Flags&needs == needs && i.Flags&not == 0 && len(i.HardwareAddr) == 6 &&
		!slices.ContainsFunc(inside, func(begin string) bool { return strings.HasPrefix(i.Name, begin) })
}
