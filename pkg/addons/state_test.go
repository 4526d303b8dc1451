package addons

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/fake"
)

func TestDecisions(t *testing.T) {
	client := fake.NewClientset()
	ctx := t.Context()
	if err := writeState(ctx, client, map[string]string{knownKey: "coredns,ingress,rbac", byFlagKey: "servicelb"}); err != nil {
		t.Fatal(err)
	}
	if err := newConfigMaps(client).save(ctx, &record{kind: ofManifests, node: "north", unit: "mine"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"corends": `"corends" is not a component; known are coredns, ingress, mine`, "rbac": "cannot be disabled", "": "is not a component",
	} {
		if err := Disable(ctx, client, name); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("disable %q: %v", name, err)
		}
	}
	for _, name := range []string{"traefik", "mine", "ingress"} {
		if err := Disable(ctx, client, name); err != nil {
			t.Errorf("disable %s: %v", name, err)
		}
	}
	// A server that starts again overwrites no decision.
	if err := writeState(ctx, client, map[string]string{knownKey: "coredns"}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadState(ctx, client)
	if err != nil || !slices.Equal(s.Disabled, []string{"ingress", "mine"}) || !s.Off("mine") || !s.Off("servicelb") || s.Off("coredns") {
		t.Errorf("%+v %v", s, err)
	}
	// What no release knows any more can still be enabled.
	if err := Enable(ctx, client, "ingress"); err != nil {
		t.Error(err)
	}
	if s, err := ReadState(ctx, client); err != nil || s.Off("ingress") {
		t.Errorf("%+v %v", s, err)
	}
	if err := writeState(ctx, client, map[string]string{knownKey: "coredns,servicelb"}); err != nil {
		t.Fatal(err)
	}
	if err := Enable(ctx, client, "servicelb"); err == nil || !strings.Contains(err.Error(), "--disable") {
		t.Errorf("%v", err)
	}
}

// A controller in the process runs while its component is enabled.
func TestWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var events []string
		work := func(name string) func(context.Context) {
			return func(ctx context.Context) {
				events = append(events, name+" begins")
				<-ctx.Done()
				time.Sleep(time.Second)
				events = append(events, name+" ends")
			}
		}
		known := []string{"servicelb"}
		while(ctx, "servicelb", func(_ context.Context, f func(State)) {
			for _, s := range []State{{}, {Known: known}, {Known: known, Disabled: []string{"other"}}, {Known: known, Disabled: known}, {Known: known, ByFlag: known}, {Known: known}} {
				f(s)
				time.Sleep(time.Minute)
			}
			cancel()
		}, work("on"), work("off"))
		if want := []string{"on begins", "on ends", "off begins", "off ends", "on begins", "on ends"}; !slices.Equal(events, want) {
			t.Errorf("%q", events)
		}
	})
}
