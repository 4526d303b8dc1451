package cni

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

func hostLocalAdd(args *skel.CmdArgs) error {
	result, confVersion, err := allocate(args)
	if err != nil {
		return err
	}
	return types.PrintResult(result, confVersion)
}

// hostLocalDel gives every address of the container back; one that is not there is no error.
func hostLocalDel(args *skel.CmdArgs) error {
	conf, store, err := openStore(args)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	return release(conf, store, args)
}

func hostLocalCheck(args *skel.CmdArgs) error {
	conf, store, err := openStore(args)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	if !store.FindByID(args.ContainerID, args.IfName) {
		return fmt.Errorf("network %q: no address is recorded for container %s, interface %s", conf.Name, args.ContainerID, args.IfName)
	}
	return nil
}

// openStore opens the folder that holds one file per address in use; closing the store unlocks it.
func openStore(args *skel.CmdArgs) (*allocator.IPAMConfig, *disk.Store, error) {
	conf, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return nil, nil, fmt.Errorf("ipam: %w", err)
	}
	if conf.ResolvConf != "" {
		return nil, nil, fmt.Errorf("network %q: ipam: resolvConf is not supported by Skerry's host-local; kubelet writes a pod's resolv.conf", conf.Name)
	}
	store, err := disk.New(conf.Name, conf.DataDir)
	if err != nil {
		return nil, nil, fmt.Errorf("network %q: ipam: %w", conf.Name, err)
	}
	return conf, store, nil
}

// allocate takes one address from each range set, all or none.
func allocate(args *skel.CmdArgs) (*current.Result, string, error) {
	_, confVersion, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return nil, "", fmt.Errorf("ipam: %w", err)
	}
	conf, store, err := openStore(args)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = store.Close() }()

	wanted := map[string]net.IP{} // addresses asked for by name, until a range gives them
	for _, address := range conf.IPArgs {
		wanted[address.String()] = address
	}
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: conf.Routes}
	for i := range conf.Ranges {
		var ask net.IP
		for key, address := range wanted {
			if conf.Ranges[i].Contains(address) {
				ask = address
				delete(wanted, key)
				break
			}
		}
		got, err := allocator.NewIPAllocator(&conf.Ranges[i], store, i).Get(args.ContainerID, args.IfName, ask)
		if err != nil {
			return nil, "", errors.Join(fmt.Errorf("network %q: no address from range %d: %w", conf.Name, i, err), release(conf, store, args))
		}
		result.IPs = append(result.IPs, got)
	}
	if len(wanted) != 0 {
		return nil, "", errors.Join(fmt.Errorf("network %q: no range contains %v", conf.Name, slices.Sorted(maps.Keys(wanted))), release(conf, store, args))
	}
	return result, confVersion, nil
}

func release(conf *allocator.IPAMConfig, store *disk.Store, args *skel.CmdArgs) error {
	var faults []error
	for i := range conf.Ranges {
		if err := allocator.NewIPAllocator(&conf.Ranges[i], store, i).Release(args.ContainerID, args.IfName); err != nil {
			faults = append(faults, fmt.Errorf("network %q: giving the address of range %d back: %w", conf.Name, i, err))
		}
	}
	return errors.Join(faults...)
}
