package updates

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/rollout"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// planLook is how often a node looks what update plans ask of it.
const planLook = 10 * time.Second

// followPlan does what update plans ask of this node and reports how it is, until ctx ends. Without a server nothing is asked.
func (s *service) followPlan(ctx context.Context) {
	p := newPlanned(s)
	tick := time.NewTicker(planLook)
	defer tick.Stop()
	for {
		if err := p.pass(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.Debug("update plans: the server does not answer", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func newPlanned(s *service) *planned {
	p := &planned{service: s, lock: s.n.lock, turn: s.turn, now: time.Now}
	p.look, p.bring = p.lookAt, p.bringTo
	return p
}

// planned is the node's side of pkg/rollout.
type planned struct {
	*service
	look  func(context.Context, *rollout.Request) (rollout.Offer, error) // at the sources
	bring func(context.Context, *rollout.Request) error                  // the node to the release; in the good case it restarts
	turn  func(context.Context) (done func(), err error)                 // what waits for its window makes room
	lock  func() (unlock func(), err error)
	now   func() time.Time

	node    *corev1.Node      // as the API last had it
	refused map[string]string // version -> why this node did not come to it in this attempt, besides what the record says
	attempt string            // that refused belongs to
	trouble string            // with what it is asked for

	offer    rollout.Offer
	of       time.Time // the record's look that was newest at that of offer
	nothing  string    // why there is no newer offer
	looks    pause
	bringing pause
}

// pass is one look at what is asked, and what is to be done now.
func (p *planned) pass(ctx context.Context) error {
	c, err := p.kube()
	if err != nil {
		return err
	}
	if p.node, err = c.CoreV1().Nodes().Get(ctx, p.o.NodeName, metav1.GetOptions{}); err != nil {
		return err
	}
	p.answered()
	r := rollout.RequestOf(p.node)
	p.planned.Store(r != nil)
	if p.refused == nil { // skerryd started; what it said before still holds
		p.refused = map[string]string{}
		if before := rollout.ReportOf(p.node); before != nil {
			p.attempt = before.Attempt
			maps.Copy(p.refused, before.Failed)
		}
	}
	rec, err := p.n.Updater.Store.Load()
	if err != nil {
		return err
	}
	asked := r != nil && r.Version != "" && (!p.n.ID.Boot.Trial || rec.Phase != record.Trying)
	switch {
	case r == nil:
		p.offer, p.nothing, p.trouble, p.looks = rollout.Offer{}, "", "", pause{}
	case !asked:
		p.lookFor(ctx, r, rec.Checked)
	case r.Attempt != p.attempt:
		if asked, err = p.begin(ctx, r); err != nil {
			return err
		}
	}
	// This is what the node remembers the attempt by, after its restart too.
	if err := p.report(ctx, record.Idle); err != nil {
		return err
	}
	if !asked || r.Version == p.n.ID.Release.Version || rollout.ReportOf(p.node).Failed[r.Version] != "" {
		return nil
	}
	return p.serve(ctx, r)
}

// begin takes up another attempt: a person wants again what this node may have tried and left. It does not while somebody
// updates the node by hand.
func (p *planned) begin(ctx context.Context, r *rollout.Request) (bool, error) {
	done, err := p.turn(ctx)
	if err != nil {
		return false, nil //nolint:nilerr // said above
	}
	defer done()
	rec, err := p.n.Updater.Store.Load()
	if err != nil {
		return false, err
	}
	rec.Failed = slices.DeleteFunc(rec.Failed, func(f record.Failure) bool {
		return release.CompareVersions(f.Version, p.n.ID.Release.Version) > 0 && release.CompareVersions(f.Version, r.Version) <= 0
	})
	if err := p.n.Updater.Store.Save(rec); err != nil {
		return false, err
	}
	p.attempt, p.trouble, p.bringing = r.Attempt, "", pause{}
	clear(p.refused)
	return true, nil
}

// serve brings the node to the release that is asked for. What may be better in a while is tried again, as long as it is asked.
func (p *planned) serve(ctx context.Context, r *rollout.Request) error {
	if !p.bringing.over(r.Version, p.now()) {
		return nil
	}
	done, err := p.turn(ctx)
	if err != nil {
		return nil //nolint:nilerr // somebody does it by hand right now
	}
	defer done()
	defer p.tell(ctx)
	p.trouble, p.nothing = "", ""
	switch err = p.bring(ctx, r); {
	case err == nil || ctx.Err() != nil:
	case lasting(err):
		p.refused[r.Version] = err.Error()
	default:
		p.trouble = err.Error()
		p.bringing.longer(p.now())
	}
	if err != nil && ctx.Err() == nil {
		p.o.Log.Warn("update plan", "plan", r.Plan, "version", r.Version, "err", err)
	}
	return p.report(ctx, record.Idle)
}

// lasting says of an update's error that trying again soon would not help: the machine, the release or a person must change.
func lasting(err error) bool {
	for _, e := range []error{update.ErrRoom, update.ErrDebug, release.ErrRollback, drain.ErrStuck} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// bringTo brings the node to the release that is asked for, or the next on the way.
func (p *planned) bringTo(ctx context.Context, r *rollout.Request) error {
	u := p.n.Updater
	own := u.Drain
	defer func() { u.Want, u.Drain = "", own }()
	u.Want, u.Drain = r.Version, nil
	next, err := p.n.Check(ctx, false)
	if err != nil {
		return err
	}
	p.o.Log.Info("an update plan asks for a release", "plan", r.Plan, "version", next.Offer.Version)
	if d := r.Drain; d != nil {
		policy := drain.Stop // which fails the plan
		if d.OnDeadline == rollout.Force {
			policy = drain.Force
		}
		u.Drain = p.drains(time.Duration(d.DeadlineSeconds)*time.Second, policy)
	}
	if err := p.report(ctx, record.Writing); err != nil && ctx.Err() == nil {
		p.o.Log.Debug("update plans: the server does not answer", "err", err) // it knows whom it asked
	}
	return p.apply(ctx, next)
}

// lookFor looks what the sources have of what a plan is for: at once for a new question, whenever the machine looked for itself,
// and after trouble.
func (p *planned) lookFor(ctx context.Context, r *rollout.Request, checked time.Time) {
	if p.offer.Channel != r.Channel {
		p.offer = rollout.Offer{}
	}
	question := r.Channel + "\n" + r.Target
	if question == p.looks.of && p.nothing == "" && checked.Equal(p.of) || !p.looks.over(question, p.now()) {
		return
	}
	done, err := p.turn(ctx)
	if err != nil {
		return
	}
	defer done()
	offer, err := p.look(ctx, r)
	if err != nil && ctx.Err() == nil {
		p.nothing = err.Error()
		p.looks.longer(p.now())
		return
	}
	p.offer, p.of, p.nothing, p.looks = offer, checked, "", pause{of: question}
}

// lookAt looks at the sources in turn.
func (p *planned) lookAt(ctx context.Context, r *rollout.Request) (rollout.Offer, error) {
	sources, err := p.n.sources()
	if err != nil {
		return rollout.Offer{}, err
	}
	if len(sources) == 0 {
		return rollout.Offer{}, errors.New("the node config names no source of updates (update.source), and no stick with a repository is plugged in")
	}
	u := p.n.Updater
	var errs []error
	for _, s := range sources {
		k, err := (&repository.Client{Source: s, Root: u.Root, Dir: u.Dir, Now: u.Now()}).Look(ctx)
		if err == nil {
			var offer rollout.Offer
			if offer, err = offered(k.Offers, repository.Machine{Arch: u.Arch, Board: u.Board, Version: u.Version, Seed: u.Seed}, r, u.Now()); err == nil {
				return offer, nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	return rollout.Offer{}, errors.Join(errs...)
}

// offered is what a repository has for a machine of what a plan is for.
func offered(offers []repository.Offer, m repository.Machine, r *rollout.Request, now time.Time) (rollout.Offer, error) {
	find := func(version string) (repository.Offer, bool) {
		i := slices.IndexFunc(offers, func(o repository.Offer) bool {
			return o.Version == version && o.Arch == m.Arch && slices.Contains(o.Boards, m.Board) && (r.Channel == "" || o.Channel == r.Channel)
		})
		if i < 0 {
			return repository.Offer{}, false
		}
		return offers[i], true
	}
	if r.Target != "" {
		o, ok := find(r.Target)
		if !ok && release.CompareVersions(r.Target, m.Version) > 0 {
			return rollout.Offer{}, fmt.Errorf("there is no release %s for board %s (%s)", r.Target, m.Board, m.Arch)
		}
		return rollout.Offer{Offered: o.Version, Kubernetes: o.Kubernetes}, nil
	}
	m.Channel = r.Channel
	o, err := repository.Choose(offers, m, now)
	if err != nil {
		o, _ = find(m.Version) // that is the newest for it, or it came from elsewhere
	}
	return rollout.Offer{Channel: r.Channel, Offered: o.Version, Kubernetes: o.Kubernetes}, nil
}

// report tells the plans how this node is, if that is new. phase is what it begins; Idle is what the record says.
func (p *planned) report(ctx context.Context, phase record.Phase) error {
	rec, err := p.n.Updater.Store.Load()
	if err != nil {
		return err
	}
	if rec.Phase == record.Writing {
		if unlock, err := p.lock(); err == nil { // nobody writes: the power failed when somebody did
			unlock()
			rec.Phase = record.Idle
		}
	}
	if rec.Phase == record.Waiting { // nothing happens to it before its window opens
		rec.Phase = record.Idle
	}
	rec.Phase = cmp.Or(phase, rec.Phase)
	out := reportOf(p.n.ID.Release.Version, rec, p.refused)
	out.Attempt, out.Offer, out.Problem = p.attempt, p.offer, cmp.Or(p.trouble, p.nothing, out.Problem)
	text := out.Patch()
	if have := rollout.ReportOf(p.node); have != nil && bytes.Equal(have.Patch(), text) {
		return nil
	}
	c, err := p.kube()
	if err != nil {
		return err
	}
	node, err := c.CoreV1().Nodes().Patch(ctx, p.o.NodeName, types.MergePatchType, text, metav1.PatchOptions{})
	if err == nil {
		p.node = node
	}
	return err
}

// reportOf is what the record says to plans.
func reportOf(version string, r record.Record, refused map[string]string) rollout.Report {
	out := rollout.Report{Version: version, Phase: string(r.Phase), Problem: r.Problem, Failed: maps.Clone(refused)}
	for _, f := range r.Failed {
		out.Failed[f.Version] = f.Reason
	}
	if len(out.Failed) == 0 {
		out.Failed = nil
	}
	return out
}

// The time between two tries, which doubles.
const (
	firstPause = 30 * time.Second
	lastPause  = 10 * time.Minute
)

// pause is the time until something is tried again.
type pause struct {
	of   string
	last time.Duration
	end  time.Time
}

// over says whether it is time; what is new has not been tried.
func (p *pause) over(of string, now time.Time) bool {
	if p.of != of {
		*p = pause{of: of}
	}
	return !now.Before(p.end)
}

// longer begins the next, longer one.
func (p *pause) longer(now time.Time) {
	p.last = min(max(firstPause, 2*p.last), lastPause)
	p.end = now.Add(p.last)
}
