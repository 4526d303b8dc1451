package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func idle(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

func TestNewNamesEveryFaultOfTheGraph(t *testing.T) {
	for name, c := range map[string]struct {
		services []Service
		want     []string // none: the graph is good
	}{
		"empty":      {},
		"chain":      {services: []Service{{Name: "b", Needs: []string{"a"}, Run: idle}, {Name: "a", Run: idle}}},
		"diamond":    {services: []Service{{Name: "a", Run: idle}, {Name: "b", Needs: []string{"a"}, Run: idle}, {Name: "c", Needs: []string{"a"}, Run: idle}, {Name: "d", Needs: []string{"b", "c"}, Run: idle}}},
		"unknown":    {services: []Service{{Name: "a", Needs: []string{"zz"}, Run: idle}}, want: []string{`a: needs "zz"`}},
		"twice":      {services: []Service{{Name: "a", Run: idle}, {Name: "a", Run: idle}}, want: []string{"a: is there twice"}},
		"no run":     {services: []Service{{Name: "a"}}, want: []string{"a: has no Run"}},
		"no name":    {services: []Service{{Run: idle}}, want: []string{"has no name"}},
		"self":       {services: []Service{{Name: "a", Needs: []string{"a"}, Run: idle}}, want: []string{"a -> a"}},
		"circle":     {services: []Service{{Name: "a", Needs: []string{"b"}, Run: idle}, {Name: "b", Needs: []string{"c"}, Run: idle}, {Name: "c", Needs: []string{"b"}, Run: idle}}, want: []string{"b -> c -> b"}},
		"all at one": {services: []Service{{Name: "a", Needs: []string{"x", "a"}, Run: idle}, {Name: "b"}}, want: []string{`needs "x"`, "a -> a", "b: has no Run"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.services)
			if (err == nil) != (len(c.want) == 0) {
				t.Fatalf("New: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("New: %q lacks %q", err, w)
				}
			}
		})
	}
}

// journal is a list of what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, a ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, a...))
}

func (j *journal) before(t *testing.T, first, second string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	a, b := slices.Index(j.lines, first), slices.Index(j.lines, second)
	if a < 0 || b < 0 || a > b {
		t.Errorf("want %q before %q in %q", first, second, j.lines)
	}
}

// service notes its start and stop; it is slow to become ready and slow to stop, so that a wrong order shows.
func (j *journal) service(name string, needs ...string) Service {
	return Service{Name: name, Needs: needs, Run: func(ctx context.Context, ready func()) error {
		j.add("start %s", name)
		ready()
		ready() // a second call is harmless
		<-ctx.Done()
		j.add("stop %s", name)
		return ctx.Err()
	}}
}

var quiet = slog.New(slog.DiscardHandler)

func running(t *testing.T, ctx context.Context, services ...Service) (*Group, <-chan error) {
	t.Helper()
	g, err := New(services)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan error, 1)
	go func() { out <- g.Run(ctx, quiet) }()
	return g, out
}

// A service starts after what it needs is ready, and stops before what it needs does.
func TestOrder(t *testing.T) {
	var j journal
	ctx, cancel := context.WithCancel(t.Context())
	g, out := running(t, ctx,
		j.service("d", "b", "c"), j.service("c", "a"), j.service("b", "a"), j.service("a"), j.service("alone"))
	<-g.Ready()
	if st, _ := g.Status(); st.String() != "ready" {
		t.Errorf("status is %q", st)
	}
	cancel()
	if err := <-out; err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, e := range [][2]string{{"a", "b"}, {"a", "c"}, {"b", "d"}, {"c", "d"}} {
		j.before(t, "start "+e[0], "start "+e[1])
		j.before(t, "stop "+e[1], "stop "+e[0])
	}
	j.before(t, "start alone", "stop alone")
	if st, _ := g.Status(); st.String() != "stopped" {
		t.Errorf("status is %q", st)
	}
}

// Nothing starts before it may, also when stopping comes while others wait.
func TestStopWhileWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	g, out := running(t, ctx,
		Service{Name: "never ready", Run: func(ctx context.Context, ready func()) error {
			close(started)
			<-ctx.Done()
			ready() // too late: it must not let the other one start
			return nil
		}},
		Service{Name: "next", Needs: []string{"never ready"}, Run: func(context.Context, func()) error {
			t.Error("next was started")
			return nil
		}})
	<-started
	if st, _ := g.Status(); st.String() != "waiting for never ready (0 of 2 ready)" {
		t.Errorf("status is %q", st)
	}
	cancel()
	if err := <-out; err != nil {
		t.Errorf("Run: %v", err)
	}
	select {
	case <-g.Ready():
		t.Error("the group says it was ready")
	default:
	}
}

// A service that ends on its own stops the others in order, and the error says which one it was.
func TestFailureStopsAll(t *testing.T) {
	broken := errors.New("disk full")
	for _, c := range []struct{ give, want error }{{broken, broken}, {nil, ErrStopped}, {context.Canceled, context.Canceled}} {
		var j journal
		fail := make(chan struct{})
		g, out := running(t, t.Context(), j.service("base"),
			Service{Name: "store", Needs: []string{"base"}, Run: func(_ context.Context, ready func()) error {
				ready()
				<-fail
				j.add("stop store")
				return c.give
			}},
			j.service("user", "store"))
		<-g.Ready()
		close(fail)
		err := <-out
		if !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "store: ") {
			t.Errorf("Run: %v, want store: %v", err, c.want)
		}
		j.before(t, "stop store", "stop user")
		j.before(t, "stop user", "stop base")
	}
}

// One that does not stop is named after its grace, and the others are still stopped.
func TestGrace(t *testing.T) {
	var j journal
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	g, out := running(t, ctx, j.service("base"), Service{
		Name: "stubborn", Needs: []string{"base"}, Grace: time.Millisecond,
		Run: func(_ context.Context, ready func()) error { ready(); <-release; return nil },
	})
	<-g.Ready()
	cancel()
	if err := <-out; err == nil || !strings.Contains(err.Error(), "stubborn: still running 1ms after") {
		t.Errorf("Run: %v", err)
	}
	j.before(t, "start base", "stop base")
}

// An error while stopping is not lost.
// What began the end is the whole error, not what it left behind.
func TestGraceAfterAFailure(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	err := Run(t.Context(), slog.New(slog.DiscardHandler), []Service{
		{Name: "stubborn", Grace: time.Millisecond, Run: func(_ context.Context, ready func()) error { ready(); <-release; return nil }},
		{Name: "broken", Needs: []string{"stubborn"}, Run: func(context.Context, func()) error { return errors.New("no room") }},
	})
	if err == nil || err.Error() != "broken: no room" {
		t.Errorf("%v", err)
	}
}

func TestErrorWhileStopping(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	torn := errors.New("torn page")
	g, out := running(t, ctx, Service{Name: "store", Run: func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return torn
	}})
	<-g.Ready()
	cancel()
	if err := <-out; !errors.Is(err, torn) || !strings.HasPrefix(err.Error(), "store: stopping: ") {
		t.Errorf("Run: %v", err)
	}
}

// Whoever follows Status sees every service become ready, however the changes interleave.
func TestStatusChanges(t *testing.T) {
	g, err := New([]Service{{Name: "a", Run: idle}, {Name: "b", Needs: []string{"a"}, Run: idle}, {Name: "c", Needs: []string{"b"}, Run: idle}})
	if err != nil {
		t.Fatal(err)
	}
	st, changed := g.Status()
	if got := st.In(Waiting); len(got) != 3 {
		t.Errorf("waiting at first: %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := make(chan error, 1)
	go func() { out <- g.Run(ctx, quiet) }()
	for st.String() != "ready" {
		<-changed
		st, changed = g.Status()
	}
	cancel()
	for st.String() != "stopped" {
		<-changed
		st, changed = g.Status()
	}
	if err := <-out; err != nil {
		t.Error(err)
	}
}

// Whether one service is ready can be asked before there is a group, by a service of the same group.
func TestReadyOf(t *testing.T) {
	var j journal
	services := []Service{j.service("a"), j.service("b", "a")}
	is, other := ReadyOf(services, "a"), ReadyOf(services, "c")
	if is() || !other() {
		t.Errorf("before the start: %v, and of one that is not there %v", is(), other())
	}
	ctx, cancel := context.WithCancel(t.Context())
	g, out := running(t, ctx, services...)
	<-g.Ready()
	if !is() {
		t.Error("a is ready and does not say so")
	}
	cancel()
	if err := <-out; err != nil {
		t.Error(err)
	}
	j.before(t, "start a", "start b")
}
