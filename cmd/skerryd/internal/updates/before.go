package updates

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

const (
	// calm is how long a node that has started may take to be Ready before updates go on without.
	calm = 15 * time.Minute
	// lost is how long the API must not have answered for a node to be one whose server is down. Until then nobody knows how the
	// node is, and no update of it begins.
	lost = 10 * time.Minute
	// blink is how long a node may look as if it were not Ready, although it is.
	blink = 30 * time.Second
	// steady is how long skerryd must run, where little else tells that the new release is good.
	steady = time.Minute
	// reachTries is how often the source is asked before it counts as one that does not answer.
	reachTries = 3
)

// read asks the API how the node is. One that knows no such node, or does not let it read, has answered.
func (s *service) read(ctx context.Context) (*health, error) {
	c, err := s.kube()
	if err != nil {
		return nil, err
	}
	h, err := read(ctx, c, s.o.NodeName, s.o.Serves())
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		h, err = &health{serves: s.o.Serves()}, nil
	}
	if err == nil {
		s.answered()
	}
	return h, err
}

// answered notes that the API did.
func (s *service) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = time.Now()
}

// away is how long the API has not answered.
func (s *service) away() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.After(s.started) {
		return time.Since(s.seen)
	}
	return time.Since(s.started)
}

// settle waits until the node is Ready: a node that is updated while it starts would look as if it had been unhealthy before,
// and the new release would be judged by that.
func (s *service) settle(ctx context.Context) {
	for end := time.Now().Add(calm); ctx.Err() == nil && time.Now().Before(end); {
		if h, err := s.read(ctx); err == nil {
			if why, _ := h.missing(nil, bootTime()); why == "" {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pulse):
		}
	}
}

// before notes how the node is.
func (s *service) before(ctx context.Context) (*record.Before, error) {
	h, err := s.known(ctx)
	if err != nil {
		return nil, err
	}
	b := s.n.before(ctx)
	if h == nil {
		s.say("the API has not answered for long; the new release is judged without")
		return b, nil
	}
	b.API, b.Ready, b.Serves, b.Leased = true, h.ready, h.serves, time.Since(h.renewed) < time.Minute
	for name, ok := range h.pods {
		if ok {
			b.Pods = append(b.Pods, name)
		}
	}
	slices.Sort(b.Pods)
	return b, nil
}

// known asks until it is known how the node is; nil means that its server is down.
func (s *service) known(ctx context.Context) (*health, error) {
	began := time.Now()
	for n := 1; ; n++ {
		h, err := s.read(ctx)
		switch {
		case err == nil && (h.ready || time.Since(began) >= blink):
			return h, nil
		case err != nil && n >= 3 && s.away() >= lost:
			return nil, nil //nolint:nilerr,nilnil // that is how it is
		case err != nil && n == 1:
			s.say(fmt.Sprintf("the API does not answer; the update waits until it does, or has not for %v: %v", lost, err))
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pulse):
		}
	}
}

// before is what the machine knows of itself, without Kubernetes.
func (n *Node) before(ctx context.Context) *record.Before {
	b := &record.Before{Network: n.network()}
	for i := 0; n.Config.Source != "" && !b.Reachable && i < reachTries && ctx.Err() == nil; i++ {
		b.Reachable = n.reach(ctx) == nil
	}
	return b
}

// trial tells init how healthy the node is, until it is as healthy as before.
func (s *service) trial(ctx context.Context) {
	init := notify.To(host.TrialSocket)
	r, err := s.n.Updater.Store.Load()
	if err != nil {
		s.o.Log.Warn("trial", "err", err)
	}
	if r.Phase != record.Trying && r.Current == s.n.ID.Release.Version {
		return // it was kept; skerryd alone started again
	}
	for last := ""; ctx.Err() == nil; {
		waits, note := s.waits(ctx, r.Before)
		if waits != last {
			last = waits
			s.o.Log.Info("trial", "waiting for", waits)
		}
		word := waits
		if word == "" {
			word = host.TrialGood
			if note != "" {
				s.o.Log.Info("trial", "all is as before but", note)
			}
		}
		if err := init.Send(host.TrialField+"="+oneLine(word), host.TrialNote+"="+oneLine(note)); err != nil {
			s.o.Log.Warn("trial: init does not hear", "err", err)
		}
		if waits == "" {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pulse):
		}
	}
}

// maxLine is less than what a datagram to init takes.
const maxLine = 1500

func oneLine(text string) string {
	text = strings.ReplaceAll(text, "\n", " ")
	return text[:min(len(text), maxLine)]
}

// waits says what keeps the node from being as healthy as before; "" is nothing. note is what differs and is no fault. A node
// that was not Ready is held to what it did have: a way to its networks, an API that answered, a source of the next release.
func (s *service) waits(ctx context.Context, b *record.Before) (what, note string) {
	if b != nil {
		now := s.n.network()
		for _, want := range b.Network {
			if !slices.Contains(now, want) {
				return want + ", which was there before", ""
			}
		}
	}
	ready := b == nil || b.Ready
	if ready || b.API {
		h, err := s.read(ctx)
		if err != nil {
			return "the API: " + err.Error(), ""
		}
		if what, note = h.missing(b, bootTime()); what != "" {
			return what, ""
		}
	}
	if !ready && time.Since(s.started) < steady {
		return fmt.Sprintf("skerryd to run for %v", steady), ""
	}
	if b != nil && b.Reachable && s.n.Config.Source != "" {
		if err := s.n.reach(ctx); err != nil {
			return err.Error(), ""
		}
	}
	return "", note
}

// reach says whether the source that the node config names answers: a release that cuts a machine off from it could never be
// replaced.
func (n *Node) reach(ctx context.Context) error {
	src, err := repository.NewSource(n.Config.Source, n.web)
	if err != nil {
		return err
	}
	u := n.Updater
	_, err = (&repository.Client{Source: src, Root: u.Root, Dir: u.Dir, Now: u.Now()}).Look(ctx)
	if errors.Is(err, repository.ErrUnreachable) || ctx.Err() != nil {
		return fmt.Errorf("update source %s: %w", src, err)
	}
	return nil
}
