// Command skerry-pod is the small program of the pods. By the name it is called it is a CNI plugin (ptp, host-local, loopback,
// portmap), started for every pod, or containerd's shim for runc, resident for every pod. The engine's own binary costs 100 ms
// and 17 MB at each start; that is why these live here.
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/skerry-os/skerry/pkg/cni"
	"github.com/skerry-os/skerry/pkg/version"
)

func main() {
	if cni.Main(filepath.Base(os.Args[0]), version.Version()) {
		return
	}
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
