// Package cni is the pod network's CNI plugins: ptp, host-local, loopback and portmap, under the names and with the
// configuration keys of the reference plugins, as functions that one small program calls by the name it was started with.
//
// The reference plugins are programs (package main), so they cannot be linked together; these are written on the same
// project's libraries (addresses and links, the address store, the command skeleton) and on knftables. They do less: what
// Skerry does not use is refused by name, never ignored.
//
// A pod hangs on a routed veth pair (ptp), not on a bridge: every packet between two pods then passes the node's routing and
// connection tracking, so that a Service's replies find their way back without the br_netfilter module, pods cannot spoof
// each other's ARP, and no bridge port has to be waited for.
package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// Plugins maps a plugin's name, the base name of the file that is run, to what it does.
func Plugins() map[string]skel.CNIFuncs {
	return map[string]skel.CNIFuncs{
		"ptp":        {Add: ptpAdd, Del: ptpDel, Check: ptpCheck},
		"host-local": {Add: hostLocalAdd, Del: hostLocalDel, Check: hostLocalCheck},
		"loopback":   {Add: loopbackAdd, Del: loopbackDel, Check: loopbackCheck},
		"portmap":    {Add: portmapAdd, Del: portmapDel, Check: portmapCheck},
	}
}

// Names lists the plugins.
func Names() []string { return slices.Sorted(maps.Keys(Plugins())) }

// Main runs the named plugin as the CNI specification wants a program to behave (command in the environment, configuration on
// standard input) and reports whether there is one of that name.
func Main(name, release string) bool {
	funcs, ok := Plugins()[name]
	if !ok {
		return false
	}
	runtime.LockOSThread() // network namespaces belong to threads
	skel.PluginMainFuncs(funcs, version.All, "CNI "+name+" plugin of Skerry "+release)
	return true
}

// decode reads a plugin's configuration and its previous result, if it is chained. A key in refused that is set to anything
// but its zero value is an error: running without it would build a network other than the one asked for.
func decode(data []byte, into any, common *types.NetConf, refused ...string) error {
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	var keys map[string]any
	if err := json.Unmarshal(data, &keys); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	for _, key := range refused {
		switch value := keys[key]; value {
		case nil, false, "", 0.0:
		default:
			return fmt.Errorf("network %q: %s: %v is not supported by Skerry's %s plugin; remove it, or put the reference plugin into /opt/cni/bin under another name",
				common.Name, key, value, common.Type)
		}
	}
	if common.RawPrevResult != nil {
		if err := version.ParsePrevResult(common); err != nil {
			return fmt.Errorf("network %q: prevResult: %w", common.Name, err)
		}
	}
	return nil
}

// previous is the result of the plugin before this one, in the newest form.
func previous(conf *types.NetConf) (*current.Result, error) {
	if conf.PrevResult == nil {
		return nil, fmt.Errorf("network %q: %s has no prevResult; it must come after another plugin in the list", conf.Name, conf.Type)
	}
	result, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("network %q: prevResult: %w", conf.Name, err)
	}
	return result, nil
}
