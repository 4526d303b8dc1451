package supervise

import (
	"fmt"
	"strings"
)

// State is where a service is in its life.
type State int

// The states, in the order a service goes through them.
const (
	Waiting  State = iota // for what it needs
	Starting              // Run was called, and has not called ready
	Ready
	Stopping
	Stopped
)

func (s State) String() string {
	return [...]string{"waiting", "starting", "ready", "stopping", "stopped"}[s]
}

// ServiceStatus is one line of a Status.
type ServiceStatus struct {
	Name  string
	State State
}

// Status is what every service was doing at one moment, in the order given to New.
type Status []ServiceStatus

// In lists the names of the services in state s.
func (st Status) In(s State) []string {
	var names []string
	for _, x := range st {
		if x.State == s {
			names = append(names, x.Name)
		}
	}
	return names
}

// String is the line a person reads while waiting: the services that hold up the others, and how far it is.
func (st Status) String() string {
	ready := len(st.In(Ready))
	if ready == len(st) {
		return "ready"
	}
	if s := st.In(Stopping); len(s) > 0 {
		return "stopping " + strings.Join(s, ", ")
	}
	if s := st.In(Starting); len(s) > 0 {
		return fmt.Sprintf("waiting for %s (%d of %d ready)", strings.Join(s, ", "), ready, len(st))
	}
	if len(st.In(Stopped)) > 0 {
		return "stopped"
	}
	return fmt.Sprintf("starting (%d of %d ready)", ready, len(st))
}

// Status returns what the services do now, and a channel that is closed when that has changed.
func (g *Group) Status() (Status, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := make(Status, len(g.services))
	for i, u := range g.services {
		st[i] = ServiceStatus{Name: u.Name, State: u.state}
	}
	return st, g.changed
}

func (g *Group) set(u *unit, s State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setLocked(u, s)
}

func (g *Group) setLocked(u *unit, s State) {
	u.state = s
	close(g.changed)
	g.changed = make(chan struct{})
}

// setReady reports whether u became ready; a service that is already being stopped does not.
func (g *Group) setReady(u *unit) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u.state != Starting {
		return false
	}
	g.setLocked(u, Ready)
	close(u.ready)
	if g.notReady--; g.notReady == 0 {
		close(g.ready)
	}
	return true
}
