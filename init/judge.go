package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// handTrustOver copies the keys of the signed kernel image to where the running node finds them.
func handTrustOver(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o444); err != nil {
			return err
		}
	}
	return nil
}

// tellUpdates writes what the config says of updates for skerryd.
func tellUpdates(c *machine.Config) error {
	data, err := json.Marshal(c.Update)
	if err != nil {
		return err
	}
	return atomicfile.Write("/"+machine.UpdateFile, append(data, '\n'), 0o600)
}

// judgeLimit is more than any deadline that a config may have.
const judgeLimit = 3 * time.Hour

// judgeSlot decides about a slot on trial: keep it, or restart into the one before. A slot that is not on trial was judged once
// and for all; here it learns how the last update ended.
func judgeSlot(ctx context.Context, s *system) error {
	trial := s.id.Boot.Trial
	if s.id.Boot.Netboot {
		return nil // its release is what the network gave it
	}
	h, err := host.Open(s.id)
	if err != nil {
		if trial {
			return err
		}
		s.console.sayf("judge slot: %s; this machine cannot be updated", oneLine(err))
		return nil
	}
	defer func() { _ = h.Close() }()
	st := record.File(host.RecordFile)
	if !trial {
		news, err := record.Settle(st, h.Selector, s.id.Boot.Slot, s.id.Release.Version, time.Now())
		if err != nil { // a good slot is not left for it
			s.console.sayf("judge slot: %s", oneLine(err))
		}
		if news != "" {
			s.console.sayf("update: %s", news)
		}
		return nil
	}
	patience := s.config.Update.Patience()
	s.console.sayf("judge slot: slot %s is on trial; it has %v to be as healthy as the one before", s.id.Boot.Slot, patience)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := record.Judge(ctx, st, h.Selector, s.id.Boot.Slot, s.id.Release.Version, time.Now, s.health.wait); err != nil {
		return err
	}
	s.console.sayf("update: slot %s, release %s, is kept %s", s.id.Boot.Slot, s.id.Release.Version, afterPowerOn())
	return nil
}

// health is what skerryd says of the node during a trial.
type health struct {
	mu     sync.Mutex
	last   string
	good   chan struct{} // closed when it is
	isGood bool
}

func newHealth() *health { return &health{good: make(chan struct{}), last: "skerryd to start"} }

// listen hears skerryd until ctx ends.
func (h *health) listen(ctx context.Context) error {
	l, err := notify.Listen(host.TrialSocket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		m, err := l.Next()
		if err != nil {
			return err
		}
		h.heard(m.Fields[host.TrialField])
	}
}

func (h *health) heard(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if text == "" {
		return
	}
	h.last = text
	if text == host.TrialGood && !h.isGood {
		h.isGood = true
		close(h.good)
	}
}

// wait returns when the node is as healthy as before, or says at the deadline what it still waits for.
func (h *health) wait(ctx context.Context, _ *record.Before) error {
	select {
	case <-h.good:
		return nil
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Errorf("at the deadline it still waits for %s", h.last)
}

// hearHealth starts to listen, on a slot on trial.
func hearHealth(s *system) {
	if !s.id.Boot.Trial {
		return
	}
	s.behind(func(ctx context.Context) {
		if err := s.health.listen(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrClosed) {
			s.console.sayf("judge slot: hearing skerryd: %s", oneLine(err))
		}
	})
}
