package csiglobals

import (
	"context"
	"testing"

	"k8s.io/kubernetes/pkg/volume/csi"
	volumetest "k8s.io/kubernetes/pkg/volume/testing"
)

// makes lets upstream make its CSI plugin for a node, or for none, as kubelet and the controller manager do.
func makes(t *testing.T, node string) {
	t.Helper()
	host := volumetest.NewFakeVolumeHostWithCSINodeName(t, t.TempDir(), nil, nil, node, nil, nil)
	for _, p := range csi.ProbeVolumePlugins() {
		if err := p.Init(host); err != nil {
			t.Fatal(err)
		}
	}
}

func forget() { nim, *csi.PluginHandler, kubelets = nil, csi.RegistrationHandler{}, nil }

// Whoever comes first: in the end the variables are kubelet's.
func TestTheVariablesAreKubelets(t *testing.T) {
	for name, run := range map[string]func(kubelet, controllers func()){
		"kubelet first":                 func(kubelet, controllers func()) { kubelet(); controllers() },
		"controllers first":             func(kubelet, controllers func()) { controllers(); kubelet() },
		"controllers a second time":     func(kubelet, controllers func()) { controllers(); kubelet(); controllers() },
		"kubelet between two elections": func(kubelet, controllers func()) { kubelet(); controllers(); controllers() },
	} {
		t.Run(name, func(t *testing.T) {
			defer forget()
			var own any
			var handler csi.RegistrationHandler
			run(func() {
				Kubelet(t.Context())
				makes(t, "north-1")
				own, handler = nim, *csi.PluginHandler
				making.Lock()   // free when it has been noticed
				making.Unlock() //nolint:staticcheck // nothing to do inside
			}, func() {
				made := Controllers()
				makes(t, "")
				if nim == nil || nim == own {
					t.Error("upstream's controllers do not set the variable any more: is this package needed?")
				}
				made()
				made()
			})
			if nim != own || *csi.PluginHandler != handler {
				t.Error("the variables are not kubelet's")
			}
		})
	}
}

func TestNobodyWaitsForAKubeletThatEnds(t *testing.T) {
	defer forget()
	ctx, cancel := context.WithCancel(t.Context())
	Kubelet(ctx)
	if making.TryLock() {
		t.Fatal("the controllers would not wait for kubelet")
	}
	cancel()
	Controllers()()
	if kubelets != nil {
		t.Error("a kubelet that made nothing is remembered")
	}
}
