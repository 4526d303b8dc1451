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
	"github.com/skerry-os/skerry/pkg/slot"
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

// noteTrial begins to note how far a slot on trial gets.
func noteTrial(_ context.Context, s *system) error {
	if !s.id.Boot.Trial {
		return nil
	}
	t := record.Trial{Store: record.File(host.RecordFile), Slot: s.id.Boot.Slot, Version: s.id.Release.Version}
	if err := t.Began(); err != nil {
		return err
	}
	s.trial = &t
	return nil
}

// begins notes the step that begins, on trial.
func (s *system) begins(step string) {
	if s == nil || s.trial == nil {
		return
	}
	if err := s.trial.Reached(step); err != nil {
		s.console.sayf("note trial: %s", oneLine(err))
	}
}

// failed notes why a step ends the boot, on trial. A verdict was noted by whoever gave it.
func (s *system) failed(why error) {
	if s == nil || s.trial == nil || errors.Is(why, record.ErrVerdict) {
		return
	}
	if err := s.trial.Failed(oneLine(why)); err != nil {
		s.console.sayf("note trial: %s", oneLine(err))
	}
}

// settleUpdate draws the conclusion from how the last update ended, on a slot that is kept. A server asks what it left when it
// starts, before anybody uses the datastore: so this comes first.
func settleUpdate(ctx context.Context, s *system) error {
	if s.id.Boot.Trial || s.id.Boot.Netboot {
		return nil
	}
	h, err := host.Open(s.id)
	if err != nil {
		return fmt.Errorf("%w; this machine cannot be updated", err)
	}
	defer func() { _ = h.Close() }()
	if ctx.Err() != nil { // the node may have started
		return context.Cause(ctx)
	}
	news, err := conclude(record.File(host.RecordFile), h.Selector, s.id, time.Now())
	if news != "" {
		s.console.sayf("update: %s", news)
	}
	return err
}

// conclude gives what there is to tell of the last update.
func conclude(st record.Store, sel slot.Selector, id machine.Identity, now time.Time) (news string, err error) {
	news, err = record.Settle(st, sel, id.Boot.Slot, id.Release.Version, now)
	if why := id.Boot.Left; why != "" {
		news = "left " + why
		err = errors.Join(err, record.Left(st, why, now))
	}
	return news, err
}

// judgeLimit is more than any deadline that a config may have.
const judgeLimit = 3 * time.Hour

// judgeSlot decides about a slot on trial: keep it, or restart into the one before. A slot that is not on trial was judged once
// and for all.
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
		return nil // as was said when the last update was settled
	}
	defer func() { _ = h.Close() }()
	if !trial {
		if p, ok := h.Selector.(interface{ Prepare() error }); ok {
			if err := p.Prepare(); err != nil { // a good slot is not left for it
				s.console.sayf("judge slot: %s; a release that does not load may need a hand", oneLine(err))
			}
		}
		return nil
	}
	patience := s.config.Update.Patience()
	s.console.sayf("judge slot: slot %s is on trial; it has %v to be as healthy as the one before", s.id.Boot.Slot, patience)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := record.Judge(ctx, record.File(host.RecordFile), h.Selector, s.id.Boot.Slot, s.id.Release.Version, time.Now, s.health.wait); err != nil {
		return err
	}
	s.console.sayf("update: slot %s, release %s, is kept %s", s.id.Boot.Slot, s.id.Release.Version, afterPowerOn())
	return nil
}

// health is what skerryd says of the node during a trial.
type health struct {
	mu       sync.Mutex
	last     string
	note     string        // what differs and is no fault
	good     chan struct{} // closed when it is
	isGood   bool
	ends     int
	hopeless chan string // why the rest of the deadline need not be waited for
}

// mostEnds is how often skerryd may end during a trial: with the pauses between its starts, some two minutes.
const mostEnds = 8

func newHealth() *health {
	return &health{good: make(chan struct{}), last: "skerryd to start", hopeless: make(chan string, 1)}
}

// ended counts the ends of skerryd.
func (h *health) ended(how string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ends++; h.ends == mostEnds {
		h.hopeless <- fmt.Sprintf("skerryd ended %d times, the last time with: %s", h.ends, how)
	}
}

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
		h.heard(m.Fields[host.TrialField], m.Fields[host.TrialNote])
	}
}

func (h *health) heard(text, note string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if text == "" {
		return
	}
	h.last, h.note = text, note
	if text == host.TrialGood && !h.isGood {
		h.isGood = true
		close(h.good)
	}
}

// wait returns when the node is as healthy as before, or says at the deadline what it still waits for.
func (h *health) wait(ctx context.Context, _ *record.Before) (note string, err error) {
	select {
	case <-h.good:
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.note, nil
	case why := <-h.hopeless:
		return "", errors.New(why)
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return "", fmt.Errorf("at the deadline it still waits for %s", h.last)
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
