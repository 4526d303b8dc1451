// Package csiglobals keeps kubelet and the controller manager of one process from taking each other's CSI. Upstream's CSI plugin
// has two variables that say whose node it works for, and both programs set them when they make their volume plugins: the
// controller manager to no node at all. If it does so after kubelet, kubelet cannot make its CSINode, tries for two minutes and
// ends the process; and a driver that comes later is not registered.
//
// So they make their plugins one after the other, and kubelet's are put back after the controller manager's.
package csiglobals

import (
	"context"
	"sync"
	"time"
	_ "unsafe" // for linkname

	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// nim is upstream's variable. What it should be can be asked nowhere else.
//
//go:linkname nim k8s.io/kubernetes/pkg/volume/csi.nim
var nim nodeinfomanager.Interface

// making is held by the one that makes its plugins.
var making sync.Mutex

// kubelets are the variables as kubelet set them; nil if it has not. Guarded by making.
var kubelets *variables

type variables struct {
	nim     nodeinfomanager.Interface
	handler csi.RegistrationHandler
}

// look is how often is looked whether kubelet has made its plugins.
const look = 5 * time.Millisecond

// Kubelet is called before kubelet starts. It waits while the controller manager makes its plugins, and lets that wait until kubelet
// has made its own or ctx ends.
func Kubelet(ctx context.Context) {
	making.Lock()
	before := nim
	go func() {
		defer making.Unlock()
		tick := time.NewTicker(look)
		defer tick.Stop()
		for made := false; ; made = nim != before { // and once more, for the second variable
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if made {
				kubelets = &variables{nim, *csi.PluginHandler}
				return
			}
		}
	}()
}

// Controllers is called before the controller manager makes its controllers; it waits while kubelet makes its plugins. made is to be
// called when the controllers have theirs, or are not made at all; later calls do nothing.
func Controllers() (made func()) {
	making.Lock()
	return sync.OnceFunc(func() {
		defer making.Unlock()
		if kubelets != nil {
			nim, *csi.PluginHandler = kubelets.nim, kubelets.handler
		}
	})
}
