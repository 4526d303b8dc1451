package updates

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/notify"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// Options are what a node gives the service.
type Options struct {
	Log        *slog.Logger
	Kubeconfig string // kubelet's: it may read its own node, pods and lease
	NodeName   string
	Restart    func(arg string) error
	Snapshot   func(context.Context) (*record.Saved, error) // of the datastore, on a server; nil for none
	Others     func(context.Context) (bool, error)          // whether other nodes could take this one's pods
	Proxy      func(*url.URL) (*url.URL, error)             // to the source
	Serves     func() bool                                  // whether services can be reached through this node
}

// owner is who cordons a node for its own update.
const owner = "update"

// stickLook is how often the list of volumes is looked at for a stick that came.
const stickLook = 15 * time.Second

// pulse is how often the health of a node on trial is looked at.
const pulse = 3 * time.Second

// Service looks for updates and brings them, as the node config says. On a machine that is not Skerry's image it does nothing.
func Service(o Options) supervise.Service {
	return supervise.Service{Name: "updates", Run: func(ctx context.Context, ready func()) error {
		ready()
		n, err := Open(o.Log, o.Proxy)
		if err != nil {
			if !errors.Is(err, host.ErrNoSlots) {
				o.Log.Warn("this machine cannot be updated", "err", err)
			}
			<-ctx.Done()
			return nil
		}
		defer func() { _ = n.Close() }()
		s := &service{o: o, n: n}
		n.Updater.Say = func(text string) { o.Log.Info("update", "what", text) }
		n.Updater.Restart, n.Updater.Before, n.Updater.Snapshot = o.Restart, s.before, o.Snapshot
		n.Updater.Drain, n.Updater.Undrain = s.drains(n.Config.Drain.Patience(), drain.Policy(n.Config.Drain.Stuck)), s.undrain
		if n.ID.Boot.Trial {
			s.trial(ctx)
		}
		s.settle(ctx)
		s.tellReason(ctx)
		s.undrain(ctx)
		var plan sync.WaitGroup
		defer plan.Wait()
		plan.Go(func() { s.followPlan(ctx) })
		s.loop(ctx)
		return nil
	}}
}

type service struct {
	o       Options
	n       *Node
	mu      sync.Mutex // of client
	client  kubernetes.Interface
	planned atomic.Bool // an update plan decides when
}

// kube gives the client, once the kubeconfig is there.
func (s *service) kube() (kubernetes.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.Timeout = 20 * time.Second
	c, err := kubernetes.NewForConfig(config)
	if err == nil {
		s.client = c
	}
	return c, err
}

// loop looks at the sources, until ctx ends.
func (s *service) loop(ctx context.Context) {
	c := s.n.Config
	if c.Source == "" && !c.Stick {
		<-ctx.Done()
		return
	}
	next := time.Now().Add(jitter(min(c.Every(), 10*time.Minute)/4, 1))
	seen := volumes()
	for ctx.Err() == nil {
		wait := time.Until(next)
		if c.Stick {
			wait = min(wait, stickLook)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		now := volumes()
		if time.Now().Before(next) && (!c.Stick || now == seen) {
			continue
		}
		seen = now
		next = time.Now().Add(jitter(c.Every(), 0.1))
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("update", "err", err)
			s.tellReason(ctx)
		}
	}
}

// calm is how long a node that has started may take to be Ready before updates go on without.
const calm = 15 * time.Minute

// settle waits until the node is Ready: a node that is updated while it starts would look as if it had been unhealthy before,
// and the new release would be judged by that.
func (s *service) settle(ctx context.Context) {
	for end := time.Now().Add(calm); ctx.Err() == nil && time.Now().Before(end); {
		if c, err := s.kube(); err == nil {
			if h, err := read(ctx, c, s.o.NodeName, s.o.Serves()); err == nil && h.missing(nil, bootTime()) == "" {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pulse):
		}
	}
}

func volumes() string {
	parts, err := linux.Volumes(os.DirFS("/sys"))
	if err != nil {
		return ""
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

// look is one look, and the update if there is one and its time is now.
func (s *service) look(ctx context.Context) error {
	unlock, err := Lock()
	if err != nil {
		return nil //nolint:nilerr // somebody does it by hand right now
	}
	defer unlock()
	p, err := s.n.Check(ctx, false)
	switch {
	case errors.Is(err, repository.ErrUpToDate):
		return nil
	case err != nil:
		return err
	case s.planned.Load():
		return nil
	case !s.n.Config.Auto():
		s.o.Log.Info("a newer release is there", "version", p.Offer.Version, "apply with", "skerryd update apply")
		return nil
	case !s.n.Config.Open(time.Now()):
		s.o.Log.Info("a newer release is there and waits for the next window", "version", p.Offer.Version)
		return nil
	}
	return s.n.Updater.Apply(ctx, p)
}

// drains lets the pods leave for other nodes, if there are any, as the node config or an update plan says.
func (s *service) drains(deadline time.Duration, policy drain.Policy) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) { return s.drain(ctx, deadline, policy) }
}

func (s *service) drain(ctx context.Context, deadline time.Duration, policy drain.Policy) (stuck string, err error) {
	others, err := s.o.Others(ctx)
	if err != nil {
		s.o.Log.Warn("whether there are other nodes cannot be seen; no pods are moved", "err", err)
	}
	if !others {
		return "", nil
	}
	d, err := s.drainer()
	if err != nil {
		return "", err
	}
	d.Deadline, d.Policy = deadline, policy
	r, err := d.Drain(ctx)
	if r != nil && len(r.Stuck) > 0 {
		stuck = r.String()
		s.event(ctx, "DrainStuck", stuck)
	}
	if err != nil && !errors.Is(err, drain.ErrStuck) && ctx.Err() == nil {
		// A node whose server is away is updated all the same.
		s.o.Log.Warn("the pods cannot be moved before the update", "err", err)
		err = nil
	}
	return stuck, err
}

func (s *service) drainer() (*drain.Drainer, error) {
	c, err := s.kube()
	if err != nil {
		return nil, err
	}
	return &drain.Drainer{Client: c, Node: s.o.NodeName, Owner: owner, Say: s.n.Updater.Say}, nil
}

// undrain gives back the node that an update cordoned: once its release is kept, or left, and who is sent here by others reaches services.
func (s *service) undrain(ctx context.Context) {
	for ctx.Err() == nil {
		r, err := record.File(host.RecordFile).Load()
		tried := err != nil || r.Phase != record.Trying || !s.n.ID.Boot.Trial // init keeps the slot a moment after it heard of it
		if tried && s.o.Serves() {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pulse):
		}
	}
	d, err := s.drainer()
	if err == nil {
		_, err = d.Uncordon(ctx)
	}
	if err != nil && ctx.Err() == nil {
		s.o.Log.Warn("giving the node back after its update", "err", err)
	}
}

// before notes how healthy the node is.
func (s *service) before(ctx context.Context) (*record.Before, error) {
	c, err := s.kube()
	if err != nil {
		return nil, err
	}
	b := &record.Before{Reachable: true} // the release came from there just now
	h, err := read(ctx, c, s.o.NodeName, s.o.Serves())
	if err != nil {
		// A node whose server is away is updated all the same, and not judged by it.
		s.o.Log.Warn("how the node is before the update cannot be seen", "err", err)
		return b, nil
	}
	b.Ready = h.ready
	for name, ok := range h.pods {
		if ok {
			b.Pods = append(b.Pods, name)
		}
	}
	return b, nil
}

// trial tells init how healthy the node is, until it is as healthy as before.
func (s *service) trial(ctx context.Context) {
	init := notify.To(host.TrialSocket)
	r, err := record.File(host.RecordFile).Load()
	if err != nil {
		s.o.Log.Warn("trial", "err", err)
	}
	if r.Phase != record.Trying && r.Current == s.n.ID.Release.Version {
		return // it was kept; skerryd alone started again
	}
	for last := ""; ctx.Err() == nil; {
		waits := s.waits(ctx, r.Before)
		if waits != last {
			last = waits
			s.o.Log.Info("trial", "waiting for", waits)
		}
		word := waits
		if word == "" {
			word = host.TrialGood
		}
		if err := init.Send(host.TrialField + "=" + strings.ReplaceAll(word, "\n", " ")); err != nil {
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

// waits says what keeps the node from being as healthy as before; "" is nothing.
func (s *service) waits(ctx context.Context, b *record.Before) string {
	if b != nil && !b.Ready {
		return "" // it was no better before; skerryd runs, and that is all there is to judge by
	}
	c, err := s.kube()
	if err != nil {
		return "the API: " + err.Error()
	}
	h, err := read(ctx, c, s.o.NodeName, s.o.Serves())
	if err != nil {
		return "the API: " + err.Error()
	}
	if why := h.missing(b, bootTime()); why != "" {
		return why
	}
	if b != nil && b.Reachable && s.n.Config.Source != "" {
		if err := s.reach(ctx); err != nil {
			return err.Error()
		}
	}
	return ""
}

// reach says whether the update source answers: a release that cuts a machine off from it could never be replaced.
func (s *service) reach(ctx context.Context) error {
	src, err := repository.NewSource(s.n.Config.Source, s.n.web)
	if err != nil {
		return err
	}
	u := s.n.Updater
	_, err = (&repository.Client{Source: src, Root: u.Root, Dir: u.Dir, Now: u.Now()}).Look(ctx)
	if errors.Is(err, repository.ErrUnreachable) {
		return fmt.Errorf("update source %s: %w", src, err)
	}
	return nil
}
