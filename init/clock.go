package main

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/clock"
	"github.com/skerry-os/skerry/pkg/machine"
)

const (
	clockFile = dataDir + "/clock"
	saveClock = 10 * time.Minute

	// timePatience is how long an agent waits for the right time before it tries with the last known one: a machine on an island
	// without time servers must join all the same.
	timePatience = 5 * time.Minute
)

// timekeeper knows whether the time is right enough to judge certificates by.
type timekeeper struct {
	mu      sync.Mutex
	trusted chan struct{} // closed when it is
	is      bool
	stop    context.CancelFunc // of asking time servers
}

func newTimekeeper() *timekeeper { return &timekeeper{trusted: make(chan struct{}), stop: func() {}} }

func (k *timekeeper) trust() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.is {
		k.is = true
		close(k.trusted)
	}
}

// setClock moves the clock to the latest time that has certainly passed, and stores the time from now on. A clock that ran on
// while the machine was off is trusted, and so is one that nobody may correct (askTime).
func setClock(_ context.Context, s *system) error {
	c := clock.System()
	behind, err := c.Resume(s.id.Release.BuildTime, clockFile)
	if behind > 0 {
		s.console.sayf("set clock: it was %v behind the last time known", behind.Round(time.Second))
	}
	if behind == 0 && hasClock("/sys") {
		s.time.trust()
	}
	s.behind(func(ctx context.Context) {
		t := time.NewTicker(saveClock)
		defer t.Stop()
		for {
			// At once, too: a board whose plug is pulled in its first minutes would live through them again.
			_ = c.Save(clockFile, saveClock) // the next one may work; shutdown saves too
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	})
	return err
}

// hasClock says whether the machine has a clock that runs while it is off. sys is sysfs.
func hasClock(sys string) bool {
	found, err := filepath.Glob(filepath.Join(sys, "class/rtc/rtc*"))
	return err == nil && len(found) > 0
}

// askTime asks time servers from now on, in place of those asked before.
func (s *system) askTime(servers []string) {
	s.time.mu.Lock()
	s.time.stop()
	ctx, stop := context.WithCancel(s.life)
	s.time.stop = stop
	s.time.mu.Unlock()
	if len(servers) == 0 {
		s.time.trust()
		return
	}
	sync := &clock.Sync{Clock: clock.System(), Servers: servers, Floor: s.id.Release.BuildTime, Log: s.console.sayf, Synced: s.time.trust}
	s.behind(func(context.Context) {
		if s.network.WaitAddress(ctx) == nil {
			sync.Run(ctx)
		}
	})
}

// awaitTime returns when the time can be trusted, or after a while all the same, and says so. Only agents wait: they judge
// the certificates of others first of all, and one that is not yet valid would look like a stranger's.
func (s *system) awaitTime(ctx context.Context) {
	if s.config.Role != machine.RoleAgent {
		return
	}
	select {
	case <-s.time.trusted:
		return
	default:
	}
	s.screen.waits("the time: this machine's clock does not run while it is off, and no time server has answered yet")
	select {
	case <-s.time.trusted:
	case <-ctx.Done():
	case <-time.After(timePatience):
		s.console.sayf("clock: no time server has answered in %v; going on with the last time known, %s", timePatience, time.Now().UTC().Format(time.RFC3339))
	}
}
