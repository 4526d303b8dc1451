package updates

import (
	"bytes"
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skerry-os/skerry/pkg/drain"
	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/rollout"
	"github.com/skerry-os/skerry/pkg/update/host"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// planLook is how often a node looks what update plans ask of it, planAgain how often it tries what did not work because of
// its source.
const (
	planLook  = 10 * time.Second
	planAgain = time.Minute
)

// followPlan does what update plans ask of this node and reports how it is, until ctx ends. Without a server nothing is asked.
func (s *service) followPlan(ctx context.Context) {
	p := planned{service: s, refused: map[string]string{}}
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

// planned is the node's side of pkg/rollout.
type planned struct {
	*service
	since   time.Time         // of the request that refused belongs to
	refused map[string]string // version -> why this node did not come to it, besides what the record says
	after   time.Time         // when to try again
}

func (p *planned) pass(ctx context.Context) error {
	c, err := p.kube()
	if err != nil {
		return err
	}
	node, err := c.CoreV1().Nodes().Get(ctx, p.o.NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	r := rollout.RequestOf(node)
	p.planned.Store(r != nil)
	if err := p.report(ctx, node); err != nil {
		return err
	}
	if r == nil || r.Version == "" || r.Version == p.n.ID.Release.Version || p.n.ID.Boot.Trial && !p.kept() {
		return nil
	}
	if !r.Since.Equal(p.since) { // asked anew
		p.since, p.after = r.Since, time.Time{}
		clear(p.refused)
	}
	if p.refused[r.Version] != "" || time.Now().Before(p.after) {
		return nil
	}
	p.after = time.Now().Add(planAgain)
	p.serve(ctx, r)
	return p.report(ctx, node)
}

// kept says whether the slot that began as a trial is one no more.
func (p *planned) kept() bool {
	r, err := record.File(host.RecordFile).Load()
	return err == nil && r.Phase != record.Trying
}

// serve brings the node to the release it is asked for. In the good case the machine restarts.
func (p *planned) serve(ctx context.Context, r *rollout.Request) {
	unlock, err := Lock()
	if err != nil {
		return // somebody does it by hand right now
	}
	defer unlock()
	u := p.n.Updater
	u.Want = r.Version
	defer func() { u.Want = "" }()
	release, err := p.n.Check(ctx, false)
	switch {
	case errors.Is(err, repository.ErrUpToDate):
		p.refused[r.Version] = err.Error()
		return
	case err != nil: // the source may answer later; the plan has a deadline
		p.o.Log.Warn("update plan: the source", "plan", r.Plan, "err", err)
		return
	}
	p.o.Log.Info("an update plan asks for a release", "plan", r.Plan, "version", release.Offer.Version)
	own := u.Drain
	defer func() { u.Drain = own }()
	u.Drain = nil
	if d := r.Drain; d != nil {
		policy := drain.Stop // which fails the plan
		if d.OnDeadline == rollout.Force {
			policy = drain.Force
		}
		u.Drain = p.drains(time.Duration(d.DeadlineSeconds)*time.Second, policy)
	}
	if err := u.Apply(ctx, release); err != nil && ctx.Err() == nil {
		p.refused[r.Version] = err.Error()
		p.o.Log.Warn("update plan", "plan", r.Plan, "version", r.Version, "err", err)
	}
}

// report tells the plans how this node is, if that is new.
func (p *planned) report(ctx context.Context, node *corev1.Node) error {
	r, err := record.File(host.RecordFile).Load()
	if err != nil {
		return err
	}
	text := reportOf(p.n.ID.Release.Version, r, p.refused).Patch()
	if have := rollout.ReportOf(node); have != nil && bytes.Equal(have.Patch(), text) {
		return nil
	}
	c, err := p.kube()
	if err != nil {
		return err
	}
	_, err = c.CoreV1().Nodes().Patch(ctx, p.o.NodeName, types.MergePatchType, text, metav1.PatchOptions{})
	return err
}

// reportOf is what the record says to plans.
func reportOf(version string, r record.Record, refused map[string]string) rollout.Report {
	out := rollout.Report{Version: version, Offered: r.Offered, Phase: string(r.Phase), Problem: r.Problem, Failed: map[string]string{}}
	for v, why := range refused {
		out.Failed[v] = why
	}
	for _, f := range r.Failed {
		out.Failed[f.Version] = f.Reason
	}
	if len(out.Failed) == 0 {
		out.Failed = nil
	}
	return out
}
