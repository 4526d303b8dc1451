package agent

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins" // its plugins register themselves
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	"github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
)

// PauseImage holds a pod's namespaces open. It comes with the release and is never pulled.
const PauseImage = "skerry.local/pause:1"

// runContainerd runs containerd in this process. When it stops, shims and containers live on; the next start finds them.
func (l *layout) runContainerd(ctx context.Context, ready func()) error {
	if err := l.extendPath(); err != nil {
		return err
	}
	cfg, err := l.containerdConfig()
	if err != nil {
		return err
	}
	for _, dir := range []string{l.run, l.cniConfDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	if err := mount.SetTempMountLocation(filepath.Join(cfg.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("containerd: temporary mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil { // left over from a crash
		return fmt.Errorf("containerd: temporary mounts: %w", err)
	}
	// The server keeps the context for all its life, and a plugin that sees it end may cut containers off. Stop ends it.
	srv, err := server.New(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	defer srv.Stop()
	if err := srv.Start(ctx); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	served := make(chan struct{})
	go func() { srv.Wait(); close(served) }()
	select {
	case <-served:
		ready()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// containerdConfig is what a config.toml would say. Version 4 is a must: an older one ignores the addresses without a word.
func (l *layout) containerdConfig() (*config.Config, error) {
	runtimes, usual, err := l.runtimes()
	if err != nil {
		return nil, err
	}
	for _, plugin := range []string{"ptp", "portmap"} { // a node without them would say Ready and start no pod
		if p := filepath.Join(l.cniBinDir(), plugin); !isProgram(p) {
			return nil, fmt.Errorf("%s: no such program; it comes with containerd-shim-runc-v2, as a link to it", p)
		}
	}
	root := filepath.Join(l.data, "containerd")
	snapshotter := l.snapshotter()
	return &config.Config{
		Version: 4,
		Root:    root,
		State:   filepath.Join(l.run, "containerd"),
		// Storage nobody uses here, and doors nobody knocks at.
		DisabledPlugins: []string{
			"io.containerd.monitor.container.v1.restart",
			"io.containerd.monitor.task.v1.cgroups", // metrics for a door that is closed
			"io.containerd.internal.v1.tracing",
			"io.containerd.server.v1.debug",
			"io.containerd.server.v1.metrics",
			"io.containerd.snapshotter.v1.blockfile",
			"io.containerd.snapshotter.v1.erofs",
			"io.containerd.differ.v1.erofs",
			"io.containerd.tracing.processor.v1.otlp",
		},
		Plugins: map[string]any{
			"io.containerd.nri.v1.nri":      map[string]any{"disable": true},
			"io.containerd.server.v1.grpc":  map[string]any{"address": l.socket()},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": l.socket() + ".ttrpc"},
			"io.containerd.cri.v1.images": map[string]any{
				"snapshotter": snapshotter,
				// A layer that is unpacked is not kept packed too: flash is small, and it is never packed again.
				"discard_unpacked_layers": true,
				"pinned_images":           map[string]any{"sandbox": cmp.Or(l.Settings.PauseImage, PauseImage)},
				"registry":                map[string]any{"config_path": l.certsDir()},
			},
			"io.containerd.cri.v1.runtime": map[string]any{
				"restrict_oom_score_adj":       !mayLowerOOMScore("/proc/self/status"),
				"netns_mounts_under_state_dir": true,
				"enable_unprivileged_ports":    true,
				"enable_unprivileged_icmp":     true,
				// The user and group of the pod's securityContext, not the host's, who is root mostly.
				"device_ownership_from_security_context": l.Settings.NonrootDevices,
				"stats_collect_period":                   "10s", // kubelet asks every ten seconds; each second, the usual, is a twentieth of what an idle node does
				"cni": map[string]any{
					"bin_dirs":              []string{l.cniBinDir(), "/opt/cni/bin"},
					"conf_dir":              l.cniReadDir(),
					"use_internal_loopback": true,
				},
				"containerd": map[string]any{
					"default_runtime_name": usual,
					"runtimes":             runtimes,
				},
			},
			"io.containerd.transfer.v1.local": map[string]any{
				"config_path": l.certsDir(),
				"unpack_config": []any{
					map[string]any{"platform": "linux/" + runtime.GOARCH, "snapshotter": snapshotter, "differ": "walking"},
				},
			},
		},
	}, nil
}

// snapshotter is overlayfs wherever the data folder can carry it, which a folder on another overlay or on some network
// filesystems cannot; then every layer is copied.
func (l *layout) snapshotter() string {
	if l.Settings.Snapshotter != "" {
		return l.Settings.Snapshotter
	}
	dir := filepath.Join(l.data, "containerd")
	if os.MkdirAll(dir, 0o700) == nil && overlayutils.Supported(dir) == nil {
		return "overlayfs"
	}
	return "native"
}
