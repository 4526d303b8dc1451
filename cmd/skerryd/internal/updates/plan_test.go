package updates

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/rollout"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// asked is a node that an update plan asks.
type asked struct {
	*planned
	t      *testing.T
	client *fake.Clientset
	store  record.File
	time   time.Time
	busy   bool  // somebody updates it
	tries  int   // to come to a release
	looked int   // at its sources
	bad    error // what a try ends with
	away   error // what a look ends with
	offers rollout.Offer
}

func newAsked(t *testing.T) *asked {
	a := &asked{t: t, time: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), store: record.File(filepath.Join(t.TempDir(), "record.json"))}
	a.client = fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a1"}})
	a.start()
	return a
}

// start is skerryd's.
func (a *asked) start() {
	id := machine.Identity{Release: machine.Release{Version: "1.0.0"}}
	a.planned = &planned{
		service: &service{o: Options{NodeName: "a1", Log: slog.New(slog.DiscardHandler)}, client: a.client, n: &Node{ID: id, Updater: &update.Updater{Store: a.store}}},
		now:     func() time.Time { return a.time },
		lock:    a.lock,
		turn:    func(context.Context) (func(), error) { return a.lock() },
		bring:   func(context.Context, *rollout.Request) error { a.tries++; return a.bad },
		look:    func(context.Context, *rollout.Request) (rollout.Offer, error) { a.looked++; return a.offers, a.away },
	}
}

func (a *asked) lock() (func(), error) {
	if a.busy {
		return nil, errors.New("busy")
	}
	a.busy = true
	return func() { a.busy = false }, nil
}

func (a *asked) ask(r *rollout.Request) {
	a.t.Helper()
	n, err := a.client.CoreV1().Nodes().Get(a.t.Context(), "a1", metav1.GetOptions{})
	check(a.t, err)
	delete(n.Annotations, "updates.skerry.io/request")
	if r != nil {
		text, err := json.Marshal(r)
		check(a.t, err)
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations["updates.skerry.io/request"] = string(text)
	}
	_, err = a.client.CoreV1().Nodes().Update(a.t.Context(), n, metav1.UpdateOptions{})
	check(a.t, err)
}

// after lets time pass, with all the passes in it.
func (a *asked) after(d time.Duration) rollout.Report {
	a.t.Helper()
	for end := a.time.Add(d); ; a.time = a.time.Add(max(planLook, d/60)) {
		check(a.t, a.pass(a.t.Context()))
		if !a.time.Before(end) {
			break
		}
	}
	n, err := a.client.CoreV1().Nodes().Get(a.t.Context(), "a1", metav1.GetOptions{})
	check(a.t, err)
	r := rollout.ReportOf(n)
	if r == nil {
		a.t.Fatal("the node does not report")
	}
	return *r
}

// What may be better in a while is tried again, less and less often, and is no failure; what will not be, is one at once. Both
// stay so when skerryd starts again, and another attempt begins anew.
func TestWhatIsTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		err   error
		lasts bool
	}{
		{fmt.Errorf("%w than 1.0.0 on the way to 1.1.0", repository.ErrUpToDate), false}, // a mirror that lags
		{repository.ErrUnreachable, false},
		{repository.ErrUntrusted, false}, // one that is being copied to
		{context.DeadlineExceeded, false},
		{errors.New("slot b: reading back: sha256 is 9c7c5e51"), false},
		{update.ErrTrial, false},
		{fmt.Errorf("release 1.1.0: its root %w", update.ErrRoom), true},
		{fmt.Errorf("release 1.1.0: %w", update.ErrDebug), true},
		{fmt.Errorf("release 1.1.0 %w: 1.2.0", release.ErrRollback), true},
		{fmt.Errorf("draining before the update: %w", drain.ErrStuck), true},
	} {
		a := newAsked(t)
		a.bad = tt.err
		a.ask(&rollout.Request{Plan: "p", Version: "1.1.0", Attempt: "1"})
		r := a.after(0)
		if a.tries != 1 || (r.Failed["1.1.0"] != "") != tt.lasts || (r.Problem != "") == tt.lasts || r.Attempt != "1" {
			t.Errorf("%v: %d tries, %+v", tt.err, a.tries, r)
		}
		a.after(time.Hour)
		most, least := 12, 5
		if tt.lasts {
			most, least = 1, 1
		}
		if a.tries > most || a.tries < least {
			t.Errorf("%v: %d tries in an hour, want %d to %d", tt.err, a.tries, least, most)
		}
		a.start()
		if r := a.after(0); (r.Failed["1.1.0"] != "") != tt.lasts {
			t.Errorf("%v: after a start: %+v", tt.err, r)
		}
		a.ask(&rollout.Request{Plan: "p", Attempt: "1"})
		if r := a.after(time.Minute); (r.Failed["1.1.0"] != "") != tt.lasts {
			t.Errorf("%v: asked no more: %+v", tt.err, r)
		}
		before := a.tries
		a.bad = nil
		a.ask(&rollout.Request{Plan: "p", Version: "1.1.0", Attempt: "2"})
		if r := a.after(0); a.tries != before+1 || r.Failed != nil || r.Problem != "" || r.Attempt != "2" {
			t.Errorf("%v: another attempt: %d tries, %+v", tt.err, a.tries-before, r)
		}
	}
}

// A release that the node tried and left is tried again by another attempt, and by nothing else.
func TestAttempts(t *testing.T) {
	a := newAsked(t)
	check(t, a.store.Save(record.Record{Failed: []record.Failure{{Version: "0.9.0", Reason: "old"}, {Version: "1.1.0", Reason: "panic"}, {Version: "1.3.0", Reason: "newer"}}}))
	a.ask(&rollout.Request{Plan: "p", Channel: "stable"})
	if r := a.after(time.Minute); r.Failed["1.1.0"] != "panic" || a.tries != 0 || r.Attempt != "" {
		t.Fatalf("%+v, %d tries", r, a.tries)
	}
	a.ask(&rollout.Request{Plan: "p", Version: "1.1.0", Attempt: "1"})
	if r := a.after(0); r.Failed["1.1.0"] != "" || r.Failed["1.3.0"] == "" || r.Failed["0.9.0"] == "" || a.tries != 1 {
		t.Fatalf("%+v, %d tries", r, a.tries)
	}
	rec, err := a.store.Load()
	check(t, err)
	rec.Failed = append(rec.Failed, record.Failure{Version: "1.1.0", Reason: "panic again"})
	check(t, a.store.Save(rec))
	a.start() // the machine came back
	if r := a.after(time.Hour); r.Failed["1.1.0"] != "panic again" || a.tries != 1 {
		t.Fatalf("%+v, %d tries", r, a.tries)
	}
	a.ask(&rollout.Request{Plan: "p", Version: "1.1.0", Attempt: "2"})
	a.busy = true // by a person
	if a.after(time.Minute); a.tries != 1 {
		t.Fatal("tried beside a person")
	}
	a.busy = false
	if r := a.after(0); r.Failed["1.1.0"] != "" || a.tries != 2 {
		t.Fatalf("%+v, %d tries", r, a.tries)
	}
}

// A node looks at what the plan names at once, again when it looks for itself, and again and again after trouble.
func TestLooksForAPlan(t *testing.T) {
	a := newAsked(t)
	if r := a.after(time.Minute); a.looked != 0 || r.Version != "1.0.0" {
		t.Fatalf("nobody asked: %d looks, %+v", a.looked, r)
	}
	a.offers = rollout.Offer{Channel: "beta", Offered: "1.2.0", Kubernetes: "v1.38.0"}
	a.ask(&rollout.Request{Plan: "p", Channel: "beta"})
	if r := a.after(time.Hour); a.looked != 1 || r.Offer != a.offers {
		t.Fatalf("%d looks, %+v", a.looked, r)
	}
	a.offers.Offered = "1.3.0"
	check(t, a.store.Save(record.Record{Checked: a.time}))
	if r := a.after(time.Hour); a.looked != 2 || r.Offer != a.offers {
		t.Fatalf("%d looks, %+v", a.looked, r)
	}
	a.away = errors.New("no route")
	a.ask(&rollout.Request{Plan: "p", Channel: "stable"})
	if r := a.after(time.Hour); a.looked < 7 || a.looked > 14 || r.Problem != "no route" || r.Offered != "" {
		t.Fatalf("%d looks, %+v", a.looked, r)
	}
	a.away, a.offers = nil, rollout.Offer{Channel: "stable"}
	if r := a.after(time.Hour); r.Problem != "" || r.Offer != a.offers {
		t.Fatalf("%+v", r)
	}
	a.ask(nil)
	if r := a.after(0); r.Offer != (rollout.Offer{}) {
		t.Fatalf("%+v", r)
	}
}

// Others hear that a node is being written while somebody writes it, and not for ever when the power failed meanwhile.
func TestReportsWriting(t *testing.T) {
	a := newAsked(t)
	check(t, a.store.Save(record.Record{Phase: record.Writing}))
	a.busy = true
	if r := a.after(0); r.Phase != "writing" {
		t.Errorf("%+v", r)
	}
	a.busy = false
	if r := a.after(0); r.Phase != "" {
		t.Errorf("%+v", r)
	}
}

// A node's word is about the channel or the version that a plan is for.
func TestOffered(t *testing.T) {
	offer := func(version, channel, kubernetes string, change ...func(*repository.Offer)) repository.Offer {
		var o repository.Offer
		o.Version, o.Channel, o.Kubernetes, o.Arch, o.Boards = version, channel, kubernetes, "amd64", []string{"x86-uefi"}
		for _, c := range change {
			c(&o)
		}
		return o
	}
	offers := []repository.Offer{
		offer("1.1.0", "stable", "v1.37.0"), offer("1.2.0", "beta", "v1.38.0"), offer("1.3.0", "stable", "v1.38.0", func(o *repository.Offer) { o.Arch = "arm64" }),
		offer("1.4.0", "stable", "v1.38.1", func(o *repository.Offer) {
			o.Waves = []repository.Wave{{After: time.Hour, Percent: 100}}
			o.Published = time.Unix(1e9, 0)
		}),
		offer("1.5.0", "edge", "", func(o *repository.Offer) { o.Stone = true }), offer("1.6.0", "edge", ""),
	}
	for _, tt := range []struct {
		runs, channel, target string
		want                  rollout.Offer
		fails                 string
	}{
		{"1.0.0", "stable", "", rollout.Offer{Channel: "stable", Offered: "1.1.0", Kubernetes: "v1.37.0"}, ""},
		{"1.0.0", "beta", "", rollout.Offer{Channel: "beta", Offered: "1.2.0", Kubernetes: "v1.38.0"}, ""},
		{"1.1.0", "stable", "", rollout.Offer{Channel: "stable", Offered: "1.1.0", Kubernetes: "v1.37.0"}, ""}, // it runs it
		{"1.2.0", "stable", "", rollout.Offer{Channel: "stable"}, ""},                                          // it came from beta
		{"1.0.0", "edge", "", rollout.Offer{Channel: "edge", Offered: "1.5.0"}, ""},                            // the stone
		{"1.0.0", "nightly", "", rollout.Offer{Channel: "nightly"}, ""},
		{"1.0.0", "", "1.2.0", rollout.Offer{Offered: "1.2.0", Kubernetes: "v1.38.0"}, ""},
		{"1.0.0", "", "1.4.0", rollout.Offer{Offered: "1.4.0", Kubernetes: "v1.38.1"}, ""}, // a plan does not wait for waves
		{"1.0.0", "", "1.3.0", rollout.Offer{}, "there is no release 1.3.0"},
		{"2.0.0", "", "1.9.0", rollout.Offer{}, ""},
	} {
		m := repository.Machine{Arch: "amd64", Board: "x86-uefi", Version: tt.runs}
		got, err := offered(offers, m, &rollout.Request{Channel: tt.channel, Target: tt.target}, time.Unix(1e9, 0))
		if got != tt.want || (err == nil) != (tt.fails == "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%s, channel %q, target %q: %+v, %v, want %+v", tt.runs, tt.channel, tt.target, got, err, tt.want)
		}
	}
}
