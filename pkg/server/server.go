// Package server is the control plane's half of the engine: the datastore, kube-apiserver, kube-controller-manager and
// kube-scheduler as a list of services in one process, from unpatched upstream packages. It never imports the node's half;
// cmd/skerryd joins the two lists.
//
// The upstream parts are started through their own option types, never through their cobra commands: those set up signal
// handling that may exist once in a process. Feature gates and logging are process-wide; the latter is cmd/skerryd's business.
//
// Below the data folder:
//
//	server/tls, server/cred, agent   keys, certificates and kubeconfigs (pkg/pki)
//	server/db                        the datastore (pkg/datastore)
//	server/token, server/node-token  the cluster's secret, bare and in K3s's form
//	server/settings.yaml             the settings it runs with, for the commands beside it
//	server/encryption.yaml           the key that secrets are stored under
//	server/authentication.yaml       who may stay anonymous
package server

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/datastore/etcd"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/metricsserver"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// Config is what the control plane needs to know. Settings come from the flags or the node config; the rest is made by the
// caller.
type Config struct {
	Settings machine.Server
	NodeName string
	NodeIPs  []netip.Addr        // the first is the one that other nodes and pods are told
	Nodes    func() []netip.Addr // of the cluster, as far as they are known
	Files    *pki.Files
	Secrets  *secrets.Files
	Join     http.Handler           // answers at pkg/join's paths, in front of the API's authentication
	Removed  func(node string) bool // its certificates open nothing
}

// ServiceIP is the address of the service "kubernetes": the first of the service network.
func ServiceIP(serviceCIDR string) (netip.Addr, error) {
	first, _, err := firstPrefix(serviceCIDR)
	if err != nil {
		return netip.Addr{}, err
	}
	return first.Masked().Addr().Next(), nil
}

// Services is the control plane in the order it starts. Settings that a component does not take are errors here, before
// anything runs.
func Services(cfg Config) ([]supervise.Service, error) {
	events := newEvents(cfg.Files.Admin, cfg.NodeName)
	stored, err := OpenStored(StoredConfig{Settings: cfg.Settings, NodeName: cfg.NodeName, NodeIP: cfg.NodeIPs[0], Nodes: cfg.Nodes, Tell: events.tell})
	if err != nil {
		return nil, err
	}
	api, err := newAPIServer(cfg, stored.Store)
	if err != nil {
		return nil, err
	}
	controllers, err := newControllerManager(cfg)
	if err != nil {
		return nil, err
	}
	scheduler, err := newScheduler(cfg)
	if err != nil {
		return nil, err
	}
	// Feature gates are the process's. All flags are parsed by now, so that one Set makes the gates of all of them final.
	if err := api.options.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("feature gates: %w", err)
	}
	services := []supervise.Service{
		datastoreService(stored.Store, cfg.Settings.DataDir, sync.OnceFunc(func() { close(api.stored) })),
		bootstrapDataService(stored.Store, cfg.Settings),
		events.service(),
		{Name: "kube-apiserver-config", Run: api.prepare},
		{Name: "kube-apiserver", Needs: []string{datastore.Name, "kube-apiserver-config"}, Run: api.run},
		{Name: "first-node", Needs: []string{"kube-apiserver"}, Run: newFirstNode(cfg, stored.Store.Kind()).run},
		{Name: "kube-controller-manager", Needs: []string{"first-node"}, Run: elected(cfg, "controller-manager", false, controllers.run), Grace: 20 * time.Second},
		{Name: "kube-scheduler", Needs: []string{"kube-apiserver"}, Run: elected(cfg, "scheduler", true, scheduler.run)},
		rolesService(cfg, stored.Store),
	}
	if !cfg.Settings.DisableSnapshots {
		snapshots, err := snapshotService(stored, cfg.Settings.SnapshotScheduleCron)
		if err != nil {
			return nil, fmt.Errorf("snapshot-schedule-cron: %w", err)
		}
		services = append(services, snapshots)
	}
	if member, ok := stored.Store.(*etcd.Store); ok {
		services = append(services, memberService(cfg, member))
	}
	if !slices.Contains(cfg.Settings.Disable, metricsserver.Name) {
		metrics := metricsserver.New(cfg.Files.APIServerKubeletPair, cfg.Files.ServerCA)
		api.extend = metrics.Install
		services = append(services, supervise.Service{Name: metricsserver.Name, Needs: []string{"kube-apiserver"}, Run: metrics.Run})
	}
	return services, keepSettings(cfg.Settings)
}
