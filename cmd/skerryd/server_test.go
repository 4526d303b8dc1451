package main

import (
	"slices"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
)

// K3s's own switches for a component mean what --disable means.
func TestDisabled(t *testing.T) {
	s := machine.DefaultServer()
	if got := disabled(s); len(got) > 0 {
		t.Errorf("nobody asked for it, and it is disabled: %q", got)
	}
	s.Disable, s.DisableHelmController, s.DisableNetworkPolicy = []string{"ingress"}, true, true
	got := disabled(s)
	slices.Sort(got)
	if !slices.Equal(got, []string{"helm-controller", "ingress", "network-policy"}) || len(s.Disable) != 1 {
		t.Errorf("disabled are %q", got)
	}
	for _, c := range got {
		if !slices.Contains(machine.Components, c) {
			t.Errorf("%s is no component", c)
		}
	}
}
