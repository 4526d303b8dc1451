package updates

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/rollout"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// The verdict about a release holds the node to what it had before, and to nothing else: a node whose server was down is not
// judged by it, but neither kept for no more than that skerryd starts.
func TestWhatATrialWaitsFor(t *testing.T) {
	good := record.Before{API: true, Ready: true, Leased: true, Serves: true, Network: []string{"a default route for IPv4"}}
	unready := record.Before{API: true, Leased: true, Network: good.Network}
	offline := record.Before{Network: good.Network}
	with := func(b record.Before, change func(*record.Before)) *record.Before { change(&b); return &b }
	for name, tt := range map[string]struct {
		before *record.Before
		change func(b *bench)
		want   string
	}{
		"as before":                       {&good, func(*bench) {}, ""},
		"nothing is known of before":      {nil, func(*bench) {}, ""},
		"nothing is known, not Ready":     {nil, func(b *bench) { b.is(false) }, "the node to be Ready"},
		"not Ready":                       {&good, func(b *bench) { b.is(false) }, "the node to be Ready"},
		"no API":                          {&good, func(b *bench) { b.down.Store(true) }, "the API: "},
		"no network":                      {&good, func(b *bench) { b.n.network = func() []string { return nil } }, "a default route for IPv4, which was there before"},
		"unready: as before":              {&unready, func(b *bench) { b.is(false) }, ""},
		"unready: no network":             {&unready, func(b *bench) { b.n.network = func() []string { return nil } }, "a default route for IPv4"},
		"unready: no API":                 {&unready, func(b *bench) { b.down.Store(true) }, "the API: "},
		"unready: nothing takes writes":   {&unready, (*bench).stale, "the datastore to take the node's lease"},
		"unready: it just started":        {&unready, func(b *bench) { b.started = time.Now() }, "skerryd to run for 1m0s"},
		"offline: as before":              {&offline, func(b *bench) { b.down.Store(true) }, ""},
		"offline: no network":             {&offline, func(b *bench) { b.down.Store(true); b.n.network = func() []string { return nil } }, "a default route for IPv4"},
		"offline: it just started":        {&offline, func(b *bench) { b.down.Store(true); b.started = time.Now() }, "skerryd to run for 1m0s"},
		"offline: the source is lost":     {with(offline, func(b *record.Before) { b.Reachable = true }), func(b *bench) { b.down.Store(true); b.lose() }, "update source"},
		"offline: the source was lost":    {&offline, func(b *bench) { b.down.Store(true); b.lose() }, ""},
		"Ready, the source is lost":       {with(good, func(b *record.Before) { b.Reachable = true }), (*bench).lose, "update source"},
		"Ready, the source was lost":      {&good, (*bench).lose, ""},
		"Ready, source is there":          {with(good, func(b *record.Before) { b.Reachable = true }), func(*bench) {}, ""},
		"unready, services are not asked": {&unready, func(b *bench) { b.serves.Store(false) }, ""},
		"services":                        {&good, func(b *bench) { b.serves.Store(false) }, "kube-proxy"},
	} {
		b := newBench(t, machine.Update{})
		b.n.Config.Source = b.repo
		b.started = time.Now().Add(-time.Hour)
		b.renew()
		tt.change(b)
		got, _ := b.waits(t.Context(), tt.before)
		if (got == "") != (tt.want == "") || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: waits for %q, want %q", name, got, tt.want)
		}
	}
}

// The web source is asked for after an update only if it answered before it, wherever the release came from.
func TestAStickWhileTheSourceIsDown(t *testing.T) {
	for name, up := range map[string]bool{"down": false, "up": true} {
		b := newBench(t, machine.Update{Stick: true})
		b.stick()
		b.n.Config.Source = b.repo
		if !up {
			b.lose()
		}
		err := b.look(t.Context())
		r := b.record()
		if err != nil || r.Phase != record.Trying || b.restarts.Load() != 1 || r.Before == nil || r.Before.Reachable != up {
			t.Fatalf("%s: %v, %+v, %+v", name, err, r, r.Before)
		}
		if waits, _ := b.waits(t.Context(), r.Before); waits != "" {
			t.Errorf("%s: the trial waits for %s", name, waits)
		}
	}
}

// What one source tries is told although another is good: in the record, once as an event, and as metrics.
func TestASecondSourceHidesNothing(t *testing.T) {
	b := newBench(t, machine.Update{Stick: true, Policy: machine.UpdateCheck})
	b.stick()
	b.alter(b.repo)
	b.n.Config.Source = b.repo
	before := counts(t, "signature")
	b.n.Updater.Version = "1.1.0" // so that the stick has nothing newer
	for range 2 {
		if err := b.look(t.Context()); err == nil || errors.Is(err, repository.ErrUpToDate) || !strings.Contains(err.Error(), b.repo) {
			t.Errorf("got %v", err)
		}
	}
	r := b.record()
	if s := r.Sources[b.repo]; s.Kind != "signature" || s.Problem == "" || !strings.Contains(r.Problem, s.Problem) || len(r.Sources) != 2 {
		t.Errorf("record %+v", r)
	}
	if e := b.events("UpdateRefused"); len(e) != 1 || !strings.HasPrefix(e[0], b.repo+": ") {
		t.Errorf("events %q", e)
	}
	if n := counts(t, "signature"); n != before+2 {
		t.Errorf("the counter went from %v to %v", before, n)
	}
	b.n.Updater.Version = "1.0.0" // the stick's is newer now, and is brought
	b.n.Config.Policy = ""
	if err := b.look(t.Context()); err != nil || b.restarts.Load() != 1 {
		t.Errorf("%v, restarted %d times", err, b.restarts.Load())
	}
	if b.record().Sources[b.repo].Kind != "signature" {
		t.Error("the attack is forgotten")
	}
}

// A look ends as the node config, the plans and the window say.
func TestALook(t *testing.T) {
	for name, tt := range map[string]struct {
		change   func(b *bench)
		restarts int32
		want     error
	}{
		"brings what is newer":   {func(*bench) {}, 1, nil},
		"only tells":             {func(b *bench) { b.n.Config.Policy = machine.UpdateCheck }, 0, nil},
		"a plan decides":         {func(b *bench) { b.planned.Store(true) }, 0, nil},
		"nothing is newer":       {func(b *bench) { b.n.Updater.Version = "1.1.0" }, 0, nil},
		"the source is away":     {(*bench).lose, 0, repository.ErrUnreachable},
		"the source is attacked": {func(b *bench) { b.alter(b.repo) }, 0, repository.ErrUntrusted},
		"somebody else is at it": {func(b *bench) { _, err := b.n.lock(); check(b.t, err) }, 0, errOther},
	} {
		b := newBench(t, machine.Update{})
		b.n.Config.Source = b.repo
		tt.change(b)
		err := b.look(t.Context())
		if !errors.Is(err, tt.want) || (err != nil) != (tt.want != nil) || b.restarts.Load() != tt.restarts {
			t.Errorf("%s: %v, restarted %d times", name, err, b.restarts.Load())
		}
	}
}

// The loop looks soon after the start, then at its pace; what travelled waits for the window, and goes on at its start.
func TestTheLoopAwaitsTheWindow(t *testing.T) {
	b := newBench(t, machine.Update{Interval: "6h"})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		b.started = time.Now()
		at := b.n.Updater.Now().UTC().Add(5 * time.Hour).Truncate(time.Hour)
		b.n.Config.Windows = []string{at.Format("15:04") + "-" + at.Add(10*time.Minute).Format("15:04")}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { b.loop(ctx) })
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := b.record(); r.Phase != record.Waiting || b.restarts.Load() != 0 {
			t.Errorf("after an hour: %+v", r)
		}
		for b.restarts.Load() == 0 && b.n.Updater.Now().Before(at.Add(time.Hour)) {
			time.Sleep(10 * time.Second)
			b.renew()
			synctest.Wait()
		}
		if late := b.n.Updater.Now().Sub(at); b.restarts.Load() != 1 || late < 0 || late > 2*time.Minute {
			t.Errorf("restarted %d times, %v after the window opened", b.restarts.Load(), late)
		}
		cancel()
		all.Wait()
	})
}

// awaitsWindow gives what becomes of a look whose update has waited an hour for a window that opens later.
func (b *bench) awaitsWindow(t *testing.T) <-chan error {
	b.started = time.Now()
	at := b.n.Updater.Now().UTC().Add(5 * time.Hour).Truncate(time.Hour)
	b.n.Config.Windows = []string{at.Format("15:04") + "-" + at.Add(10*time.Minute).Format("15:04")}
	looked := make(chan error, 1)
	go func() { looked <- b.look(t.Context()) }()
	time.Sleep(time.Hour)
	synctest.Wait()
	b.renew()
	return looked
}

// A plan does not wait for the node's window either.
func TestAPlanDuringAWait(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		looked := b.awaitsWindow(t)
		p := newPlanned(b.service)
		p.refused = map[string]string{}
		node, err := b.cluster.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		check(t, err)
		p.node = node
		check(t, p.report(t.Context(), record.Idle))
		if r := rollout.ReportOf(p.node); r == nil || r.Phase != "" || b.waiting.Load() == nil {
			t.Errorf("a node that waits for its window reports %+v", r)
		}
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.1.0"}))
		if err := <-looked; !errors.Is(err, errOther) || b.restarts.Load() != 1 || len(p.refused) > 0 || p.trouble != "" || b.n.Updater.Want != "" {
			t.Errorf("%v, restarted %d times, refused %v, %s", err, b.restarts.Load(), p.refused, p.trouble)
		}
		// What is not there may come, and a source that does not answer may answer.
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.0.5"}))
		if len(p.refused) > 0 || p.trouble == "" {
			t.Errorf("what is not there: refused %v, %q", p.refused, p.trouble)
		}
		b.lose()
		check(t, p.serve(t.Context(), &rollout.Request{Plan: "p", Version: "1.3.0"}))
		if len(p.refused) > 0 || p.trouble == "" {
			t.Errorf("no source: refused %v, %q", p.refused, p.trouble)
		}
	})
}

// What ended with the machine is under way no more, and why an update failed is an event once.
func TestALifeBegins(t *testing.T) {
	for _, phase := range []record.Phase{record.Writing, record.Waiting} {
		b := newBench(t, machine.Update{})
		check(t, b.n.Updater.Store.Save(record.Record{Phase: phase, To: "1.1.0", Slot: slot.B}))
		b.begin(t.Context())
		b.begin(t.Context())
		if r := b.record(); r.Phase != record.Idle || !strings.Contains(r.Reason, "release 1.1.0") || r.HasFailed("1.1.0") {
			t.Errorf("%s: %+v", phase, r)
		}
		if e := b.events("UpdateFailed"); len(e) != 1 {
			t.Errorf("%s: events %q", phase, e)
		}
	}
}
