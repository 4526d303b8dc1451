package updates

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Before an update it is known how the node is. One look that fails, or a moment in which the node is not Ready, is no state of
// it; an API that has not answered for long is.
func TestHowTheNodeIsBefore(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(b *bench) // at the start, beside it
		want   record.Before
		took   time.Duration // at least
	}{
		"Ready":               {func(*bench) {}, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 0},
		"one look fails":      {func(b *bench) { b.down.Store(true); time.Sleep(2 * time.Second); b.down.Store(false) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 2 * time.Second},
		"away for minutes":    {func(b *bench) { b.down.Store(true); time.Sleep(9 * time.Minute); b.renew(); b.down.Store(false) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 9 * time.Minute},
		"away for good":       {func(b *bench) { b.down.Store(true) }, record.Before{}, lost},
		"away since long":     {func(b *bench) { b.down.Store(true); b.started = b.started.Add(-time.Hour) }, record.Before{}, 0},
		"not Ready":           {func(b *bench) { b.is(false); b.serves.Store(false) }, record.Before{API: true, Leased: true}, blink},
		"not Ready, a moment": {func(b *bench) { b.is(false); time.Sleep(10 * time.Second); b.is(true) }, record.Before{API: true, Ready: true, Leased: true, Serves: true}, 9 * time.Second},
	} {
		b := newBench(t, machine.Update{})
		b.n.network = func() []string { return nil }
		synctest.Test(t, func(t *testing.T) {
			b.started = time.Now()
			b.renew()
			began := time.Now()
			go tt.change(b)
			synctest.Wait()
			got, err := b.before(t.Context())
			if took := time.Since(began); err != nil || !slices.Equal(got.Pods, tt.want.Pods) || got.API != tt.want.API || got.Ready != tt.want.Ready || got.Leased != tt.want.Leased || got.Serves != tt.want.Serves || took < tt.took || took > lost+time.Minute {
				t.Errorf("%s: %+v, %v, after %v", name, got, err, took)
			}
		})
	}
}

// Pods leave where others can take them; what keeps them is told, and a server that is away keeps no update.
func TestDrainBeforeAnUpdate(t *testing.T) {
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "db", OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "x", Controller: &yes}}},
		Spec:       corev1.PodSpec{NodeName: "n"},
	}
	for name, tt := range map[string]struct {
		others   bool
		down     bool
		policy   drain.Policy
		cordoned bool
		stuck    bool
		err      error
	}{
		"alone":           {policy: drain.Stop},
		"skip":            {others: true, policy: drain.Skip, cordoned: true, stuck: true},
		"stop":            {others: true, policy: drain.Stop, cordoned: true, stuck: true, err: drain.ErrStuck},
		"server is away":  {others: true, down: true, policy: drain.Stop},
		"nobody can tell": {others: false, down: true, policy: drain.Stop},
	} {
		b := newBench(t, machine.Update{})
		check(t, b.cluster.Tracker().Add(pod.DeepCopy()))
		b.cluster.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, nil }) // asked, it stays
		b.down.Store(tt.down)
		b.o.Others = func(context.Context) (bool, error) {
			if tt.down {
				return tt.others, errors.New("connection refused")
			}
			return tt.others, nil
		}
		stuck, err := b.drain(t.Context(), time.Millisecond, tt.policy)
		b.down.Store(false)
		node, gerr := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) || gerr != nil || node.Spec.Unschedulable != tt.cordoned || strings.Contains(stuck, "default/db") != tt.stuck || (len(b.events("DrainStuck")) == 1) != tt.stuck {
			t.Errorf("%s: %q, %v; cordoned %v, events %q", name, stuck, err, node.Spec.Unschedulable, b.events("DrainStuck"))
		}
		b.undrain(t.Context())
		if node, err := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); err != nil || node.Spec.Unschedulable {
			t.Errorf("%s: stays cordoned: %v", name, err)
		}
	}
}
