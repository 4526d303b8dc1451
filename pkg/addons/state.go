package addons

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// The cluster's decisions on components are in one ConfigMap: what people have disabled, and what the server that applies the
// components says there are.
const (
	stateName   = "skerry-components"
	knownKey    = "components"       // written by a server
	byFlagKey   = "disabled-by-flag" // written by a server: its --disable
	disabledKey = "disabled"         // written by disable and enable
	inProcess   = "in-process"       // written by a server: those that are no objects but run in it
)

// State is what the cluster says about components.
type State struct {
	Known     []string // that come with the release
	InProcess []string // of these, what runs inside the servers
	ByFlag    []string // disabled by the settings of the server that applies them
	Disabled  []string // disabled by `skerryd disable`
}

// Off says whether a component is disabled, by whomever.
func (s State) Off(name string) bool {
	return slices.Contains(s.ByFlag, name) || slices.Contains(s.Disabled, name)
}

func stateOf(m *corev1.ConfigMap) State {
	return State{
		Known: words(m.Data[knownKey]), InProcess: words(m.Data[inProcess]),
		ByFlag: words(m.Data[byFlagKey]), Disabled: words(m.Data[disabledKey]),
	}
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
}

// ReadState asks the API. A cluster that has decided nothing yet has an empty State.
func ReadState(ctx context.Context, client kubernetes.Interface) (State, error) {
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, stateName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	return stateOf(m), nil
}

// writeState merges some keys into the ConfigMap, so that servers and people do not overwrite each other's.
func writeState(ctx context.Context, client kubernetes.Interface, data map[string]string) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, stateName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: stateName}, Data: data}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = maps.Patch(ctx, stateName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		}
	}
	if err != nil {
		return fmt.Errorf("configmap %s: %w", stateName, err)
	}
	return nil
}

// follow calls f with the State now and whenever it changes, until ctx ends.
func follow(ctx context.Context, client kubernetes.Interface, f func(State)) {
	lw := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "configmaps", metav1.NamespaceSystem, fields.OneTermEqualSelector("metadata.name", stateName))
	is := func(o any) {
		if m, ok := o.(*corev1.ConfigMap); ok {
			f(stateOf(m))
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: &corev1.ConfigMap{}, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc:    is,
		UpdateFunc: func(_, o any) { is(o) },
		DeleteFunc: func(any) { f(State{}) },
	}})
	informer.RunWithContext(ctx)
}

// While is for components that are controllers in this process: it calls on when the cluster has the component enabled and off
// when it has it disabled, whenever that changes. The one before has returned by then; its ctx ends. An on or off that returns is
// called again after the next change. While returns when ctx ends.
func While(ctx context.Context, client kubernetes.Interface, name string, on, off func(context.Context)) {
	while(ctx, name, func(ctx context.Context, f func(State)) { follow(ctx, client, f) }, on, off)
}

func while(ctx context.Context, name string, follow func(context.Context, func(State)), on, off func(context.Context)) {
	var all sync.WaitGroup
	defer all.Wait()
	states := make(chan State)
	all.Go(func() {
		follow(ctx, func(s State) {
			select {
			case states <- s:
			case <-ctx.Done():
			}
		})
	})
	stop := func() {}
	defer func() { stop() }()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-states:
			now, run := "on", on
			switch {
			case len(s.Known) == 0:
				continue // nothing has been said yet
			case s.Off(name):
				now, run = "off", off
			}
			if now == last {
				continue
			}
			if last != "" {
				slog.Info("component switched", "component", name, "to", now)
			}
			stop()
			last = now
			runCtx, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() { defer close(done); run(runCtx) }()
			stop = func() { cancel(); <-done }
		}
	}
}

// Disable has a component removed from the cluster, now and after every restart.
func Disable(ctx context.Context, client kubernetes.Interface, name string) error {
	return decide(ctx, client, name, true)
}

// Enable has a component applied again.
func Enable(ctx context.Context, client kubernetes.Interface, name string) error {
	return decide(ctx, client, name, false)
}

func decide(ctx context.Context, client kubernetes.Interface, name string, off bool) error {
	name = component(name)
	state, err := ReadState(ctx, client)
	if err != nil {
		return err
	}
	names, err := known(ctx, client, state)
	if err != nil {
		return err
	}
	switch {
	case essential(name):
		return fmt.Errorf("%q cannot be disabled: the node needs it", name)
	case !off && slices.Contains(state.ByFlag, name):
		return fmt.Errorf("%q is disabled by --disable; take it out of the servers' settings and restart them", name)
	// Whatever is disabled can be enabled, or a word nobody knows any more would stay for ever.
	case !slices.Contains(names, name) && !slices.Contains(state.Disabled, name):
		return fmt.Errorf("%q is not a component; known are %s", name, strings.Join(names, ", "))
	}
	disabled := slices.DeleteFunc(state.Disabled, func(n string) bool { return n == name })
	if off {
		disabled = append(disabled, name)
		slices.Sort(disabled)
	}
	return writeState(ctx, client, map[string]string{disabledKey: strings.Join(disabled, ",")})
}

// known is everything that can be disabled: the release's components, and a person's own that have been applied.
func known(ctx context.Context, client kubernetes.Interface, state State) ([]string, error) {
	names := slices.Clone(state.Known)
	all, err := newConfigMaps(client).list(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		names = append(names, r.unit)
	}
	names = slices.DeleteFunc(append(names, state.Disabled...), essential)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// essential components are not shown as components: nothing works without them.
func essential(name string) bool { return name == "rbac" }
