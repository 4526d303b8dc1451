package updates

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/supervise"
	"github.com/skerry-os/skerry/pkg/update"
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
	Needs      func(context.Context) ([]update.Need, error) // the room that takes; nil for none
	Others     func(context.Context) (bool, error)          // whether other nodes could take this one's pods
	Proxy      func(*url.URL) (*url.URL, error)             // to the source
	Serves     func() bool                                  // whether services can be reached through this node
}

const (
	// owner is who cordons a node for its own update.
	owner = "update"
	// stickLook is how often the list of volumes is looked at for a stick that came.
	stickLook = 15 * time.Second
	// pulse is how often the health of a node is looked at.
	pulse = 3 * time.Second
	// again is when an update that made room for somebody else is looked for again.
	again = time.Minute
)

// Service looks for updates and brings them, as the node config says, an update plan or a person asks. On a machine that is not
// Skerry's image it does nothing.
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
		newService(o, n).run(ctx)
		return nil
	}}
}

func newService(o Options, n *Node) *service {
	s := &service{o: o, n: n, started: time.Now()}
	u := n.Updater
	u.Say, u.Restart, u.Before, u.Snapshot, u.Needs = s.say, o.Restart, s.before, o.Snapshot, o.Needs
	u.Drain, u.Undrain = s.drains(n.Config.Drain.Patience(), drain.Policy(n.Config.Drain.Stuck)), s.undrain
	registerMetrics()
	return s
}

type service struct {
	o       Options
	n       *Node
	started time.Time
	mu      sync.Mutex // of the two below
	client  kubernetes.Interface
	seen    time.Time                               // when the API answered last
	planned atomic.Bool                             // an update plan decides when
	waiting atomic.Pointer[context.CancelCauseFunc] // ends the wait of an update for its window
	hearer  atomic.Pointer[func(string)]            // a person who asked
}

func (s *service) run(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() {
		if err := Listen(ctx, s.n.control, s.asked); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("what people ask of updates is not heard", "err", err)
		}
	})
	if r, err := s.n.Updater.Store.Load(); err == nil {
		show(s.n.ID, r)
	}
	if s.n.ID.Boot.Trial {
		s.trial(ctx)
	}
	s.settle(ctx)
	s.begin(ctx)
	s.undrain(ctx)
	beside.Go(func() { s.followPlan(ctx) })
	s.loop(ctx)
}

func (s *service) say(text string) {
	s.o.Log.Info("update", "what", text)
	if hear := s.hearer.Load(); hear != nil {
		(*hear)(text)
	}
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

// errOther means that somebody else uses the updater, or wants to.
var errOther = errors.New("another update is asked for")

// turn gives the caller the updater. An update that waits for its window makes room.
func (s *service) turn(ctx context.Context) (done func(), err error) {
	done, err = s.n.lock()
	end := s.waiting.Swap(nil)
	if err == nil || end == nil {
		return done, err
	}
	for (*end)(errOther); err != nil && ctx.Err() == nil; done, err = s.n.lock() {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second / 10):
		}
	}
	return done, err
}

// begin tells what the machine's last life left.
func (s *service) begin(ctx context.Context) {
	done, err := s.n.lock()
	if err != nil {
		return // somebody is at it already
	}
	defer done()
	st := s.n.Updater.Store
	if r, err := st.Load(); err == nil && (r.Phase == record.Writing || r.Phase == record.Waiting) {
		r.End("the machine or skerryd ended while release "+r.To+" was brought; it is brought anew", s.n.Updater.Now())
		if err := st.Save(r); err != nil {
			s.o.Log.Warn("record of updates", "err", err)
		}
	}
	s.tell(ctx)
}

// loop looks at the sources, until ctx ends.
func (s *service) loop(ctx context.Context) {
	c := s.n.Config
	if c.Source == "" && !c.Stick {
		<-ctx.Done()
		return
	}
	next := time.Now().Add(jitter(min(c.Every(), 10*time.Minute)/4, 1))
	seen := s.n.volumes()
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
		now := s.n.volumes()
		if time.Now().Before(next) && (!c.Stick || now == seen) {
			continue
		}
		seen = now
		err := s.look(ctx)
		next = time.Now().Add(jitter(c.Every(), 0.1))
		switch {
		case errors.Is(err, errOther):
			next = time.Now().Add(again)
		case err != nil && ctx.Err() == nil:
			s.o.Log.Warn("update", "err", err)
		}
	}
}

// look is one look, and the update if there is one. It travels at once; the restart waits for its window.
func (s *service) look(ctx context.Context) error {
	done, err := s.n.lock()
	if err != nil {
		return errOther
	}
	defer done()
	defer s.tell(ctx)
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
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.n.Updater.Window = func(now time.Time) time.Duration {
		left := s.n.Config.Opens(now)
		if left > 0 {
			s.waiting.Store(&cancel)
		} else {
			s.waiting.Store(nil)
		}
		return left
	}
	defer func() { s.n.Updater.Window = nil; s.waiting.Store(nil) }()
	return s.apply(ctx, p)
}

// apply is the updater's, and counts what goes wrong.
func (s *service) apply(ctx context.Context, p *repository.Package) error {
	err := s.n.Updater.Apply(ctx, p)
	if err != nil && !errors.Is(err, errOther) {
		refused(update.Kind(err))
	}
	return err
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
	return &drain.Drainer{Client: c, Node: s.o.NodeName, Owner: owner, Say: s.say}, nil
}

// undrain gives back the node that an update cordoned: once its release is kept, or left, and who is sent here by others reaches services.
func (s *service) undrain(ctx context.Context) {
	for ctx.Err() == nil {
		r, err := s.n.Updater.Store.Load()
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
