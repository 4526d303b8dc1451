// Package supervise runs the parts of a node as a graph of services: each starts the moment everything it needs is ready, and
// stops only after everything that needs it has stopped. Nothing sleeps and nothing polls: readiness is a channel.
//
// It knows nothing of Kubernetes, so that PID 1 and tests can use it as the engine does.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultGrace is how long a service may take to stop when it does not say otherwise.
const DefaultGrace = 10 * time.Second

// Service is one part of the graph.
type Service struct {
	Name string

	// Needs are the names of the services that must be ready before Run is called. They outlive this one.
	Needs []string

	// Run works until ctx ends and returns when its work has stopped. It calls ready once it can be used; later calls do
	// nothing. A Run that returns before it is told to stops the whole group.
	Run func(ctx context.Context, ready func()) error

	// Grace is how long Run may take to return once ctx has ended; 0 is DefaultGrace. After it the group goes on stopping
	// and reports the service as left behind.
	Grace time.Duration
}

// ReadyOf lets others ask whether a service of the list, which is to become a group's, is ready. One that is not in it is.
func ReadyOf(services []Service, name string) func() bool {
	for i := range services {
		s := &services[i]
		if s.Name != name {
			continue
		}
		var is atomic.Bool
		run := s.Run
		s.Run = func(ctx context.Context, ready func()) error {
			return run(ctx, func() { is.Store(true); ready() })
		}
		return is.Load
	}
	return func() bool { return true }
}

// ErrStopped is in the error of a service whose Run returned nil although nobody had asked it to stop.
var ErrStopped = errors.New("stopped by itself")

// ErrAgain is in the error of a service that asks for everything to be stopped and started anew, because of something that is
// read at the start alone. It is no fault. Whoever runs the group decides how: see cmd/skerryd.
var ErrAgain = errors.New("starting again")

// Group is a checked graph that can run once.
type Group struct {
	services []*unit
	ready    chan struct{} // closed when all are ready

	mu       sync.Mutex
	notReady int
	changed  chan struct{} // closed and replaced at every change of a state
	errs     []error
	failed   chan struct{} // closed at the first error
}

// unit is a Service at run time.
type unit struct {
	Service
	needs, neededBy []*unit
	ready           chan struct{} // closed by the service
	done            chan struct{} // closed when Run has returned, was never called, or was left behind
	state           State         // guarded by Group.mu
}

// New checks services and makes a group of them. The error names every fault of the graph at once.
func New(services []Service) (*Group, error) {
	g := &Group{
		ready:    make(chan struct{}),
		changed:  make(chan struct{}),
		failed:   make(chan struct{}),
		notReady: len(services),
	}
	byName := make(map[string]*unit, len(services))
	var faults []error
	for _, s := range services {
		switch {
		case s.Name == "":
			faults = append(faults, errors.New("a service has no name"))
			continue
		case s.Run == nil:
			faults = append(faults, fmt.Errorf("%s: has no Run", s.Name))
			continue
		case byName[s.Name] != nil:
			faults = append(faults, fmt.Errorf("%s: is there twice", s.Name))
			continue
		}
		if s.Grace == 0 {
			s.Grace = DefaultGrace
		}
		u := &unit{Service: s, ready: make(chan struct{}), done: make(chan struct{})}
		byName[s.Name] = u
		g.services = append(g.services, u)
	}
	for _, u := range g.services {
		for _, name := range u.Needs {
			n := byName[name]
			if n == nil {
				faults = append(faults, fmt.Errorf("%s: needs %q, which is not a service", u.Name, name))
				continue
			}
			u.needs = append(u.needs, n)
			n.neededBy = append(n.neededBy, u)
		}
	}
	if c := cycle(g.services); c != nil {
		faults = append(faults, fmt.Errorf("need each other in a circle: %s", strings.Join(c, " -> ")))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("service graph: %w", errors.Join(faults...))
	}
	if g.notReady == 0 {
		close(g.ready)
	}
	return g, nil
}

// cycle returns the names along one circle of needs, or nil.
func cycle(units []*unit) []string {
	seen := make(map[*unit]bool, len(units))
	var path []*unit
	var visit func(u *unit) []string
	visit = func(u *unit) []string {
		if i := slices.Index(path, u); i >= 0 {
			var names []string
			for _, p := range append(path[i:], u) {
				names = append(names, p.Name)
			}
			return names
		}
		if seen[u] {
			return nil
		}
		seen[u] = true
		path = append(path, u)
		defer func() { path = path[:len(path)-1] }()
		for _, n := range u.needs {
			if c := visit(n); c != nil {
				return c
			}
		}
		return nil
	}
	for _, u := range units {
		if c := visit(u); c != nil {
			return c
		}
	}
	return nil
}

// Run is New and Group.Run in one, for callers that need no status.
func Run(ctx context.Context, log *slog.Logger, services []Service) error {
	g, err := New(services)
	if err != nil {
		return err
	}
	return g.Run(ctx, log)
}

// Ready is closed once every service is ready.
func (g *Group) Ready() <-chan struct{} { return g.ready }

// Run starts the services and returns when all have stopped: after ctx has ended (then the error is nil, unless a service
// did not stop cleanly) or after one of them failed (then the error names it). Run may be called once.
func (g *Group) Run(ctx context.Context, log *slog.Logger) error {
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, u := range g.services {
		all.Go(func() { g.supervise(ctx, log, u, stop) })
	}
	select {
	case <-ctx.Done():
	case <-g.failed:
	}
	close(stop)
	all.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}

// supervise takes one service through its life and returns when it is over.
func (g *Group) supervise(ctx context.Context, log *slog.Logger, u *unit, stop <-chan struct{}) {
	defer close(u.done)
	for _, n := range u.needs {
		select {
		case <-n.ready:
		case <-stop:
			g.set(u, Stopped)
			return
		}
	}
	select {
	case <-stop: // both may have happened; nothing starts in a group that stops
		g.set(u, Stopped)
		return
	default:
	}

	log.Info("starting", "service", u.Name)
	g.set(u, Starting)
	began := time.Now()
	// The service must not see the group's ctx end: it is told when those that need it have stopped.
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var once sync.Once
	ready := func() {
		once.Do(func() {
			if g.setReady(u) {
				log.Info("ready", "service", u.Name, "after", time.Since(began).Round(time.Millisecond))
			}
		})
	}
	returned := make(chan error, 1)
	go func() { returned <- u.Run(runCtx, ready) }()

	select {
	case err := <-returned:
		if err == nil {
			err = ErrStopped
		}
		if errors.Is(err, ErrAgain) {
			log.Info("everything is started anew", "service", u.Name, "why", err)
		} else {
			log.Error("failed", "service", u.Name, "err", err)
		}
		g.fail(fmt.Errorf("%s: %w", u.Name, err))
		g.set(u, Stopped)
		u.waitForUsers() // what u needs outlives them too, although u itself is gone
		return
	case <-stop:
	}
	u.waitForUsers()
	told := time.Now()
	g.set(u, Stopping)
	cancel()
	grace := time.NewTimer(u.Grace)
	defer grace.Stop()
	select {
	case err := <-returned:
		if err != nil && !errors.Is(err, context.Canceled) {
			g.fail(fmt.Errorf("%s: stopping: %w", u.Name, err))
		}
		log.Info("stopped", "service", u.Name, "after", time.Since(told).Round(time.Millisecond))
	case <-grace.C:
		log.Error("left behind: it did not stop in time", "service", u.Name, "grace", u.Grace)
		if !g.hasFailed() { // or whoever reads the end would not see what began it
			g.fail(fmt.Errorf("%s: still running %s after it was told to stop; left behind", u.Name, u.Grace))
		}
	}
	g.set(u, Stopped)
}

func (g *Group) hasFailed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.errs) > 0
}

func (u *unit) waitForUsers() {
	for _, d := range u.neededBy {
		<-d.done
	}
}

func (g *Group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errs = append(g.errs, err)
	if len(g.errs) == 1 {
		close(g.failed)
	}
}
