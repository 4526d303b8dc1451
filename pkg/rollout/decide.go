package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skerry-os/skerry/pkg/release"
)

// serverLabel is on every server.
const serverLabel = "node-role.kubernetes.io/control-plane"

// member is a node of a plan.
type member struct {
	node    *corev1.Node
	server  bool
	ready   bool
	report  *Report
	request *Request
}

func memberOf(n *corev1.Node) member {
	m := member{node: n, report: ReportOf(n), request: RequestOf(n)}
	_, m.server = n.Labels[serverLabel]
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			m.ready = c.Status == corev1.ConditionTrue
		}
	}
	return m
}

// runs says whether the node runs the version, and for good.
func (m member) runs(version string) bool {
	return m.report != nil && m.report.Version == version && m.report.Phase == ""
}

// under says whether the node is on its way to the version.
func (m member) under(version string) bool {
	return m.request != nil && m.request.Version == version && !m.runs(version) && m.failure(version) == ""
}

// failure is why the node does not run the version; "" is none.
func (m member) failure(version string) string {
	if m.report == nil || m.runs(version) {
		return ""
	}
	return m.report.Failed[version]
}

// decision is what a plan comes to.
type decision struct {
	status   Status
	requests map[string]*Request // by node; every node of the plan has one
	again    time.Duration       // when to look again if nothing changes; 0: never
}

// decide says what each node of a plan is to do now. all are the cluster's nodes, mine those that belong to this plan and to no
// other; before is the status of the last decision.
func (p *plan) decide(name string, before Status, all, mine []member, now time.Time) decision {
	p.sort(mine)
	d := decision{requests: map[string]*Request{}, status: Status{Nodes: len(mine)}}
	s := &d.status
	hold := func(m member, version string) {
		r := Request{Plan: name, Channel: p.spec.Channel}
		if version != "" { // Since stays, or every pass would begin the deadline anew
			r = Request{Plan: name, Channel: p.spec.Channel, Version: version, Since: now, Drain: p.drain}
			if m.request != nil && m.request.Version == version && !m.request.Since.IsZero() {
				r.Since = m.request.Since
			}
		}
		d.requests[m.node.Name] = &r
	}
	say := func(phase, format string, a ...any) decision {
		s.Phase, s.Message = phase, fmt.Sprintf(format, a...)
		s.Progress = fmt.Sprintf("%d/%d", s.Updated, s.Nodes)
		return d
	}

	version := p.target(before, mine)
	s.Version = version
	if version == before.Version {
		s.Stage, s.StageDone = before.Stage, before.StageDone
	}
	if len(mine) == 0 {
		return say(Waiting, "no node belongs to this plan")
	}
	if version == "" {
		for _, m := range mine {
			hold(m, "")
		}
		return say(Waiting, "no node has been offered a release of channel %s yet", p.spec.Channel)
	}

	// Where everybody is.
	var late *member
	silent := ""
	for i, m := range mine {
		switch why := m.failure(version); {
		case m.report == nil:
			silent = cmp.Or(silent, m.node.Name)
			hold(m, "")
		case m.runs(version):
			s.Updated++
			hold(m, version)
		case why != "":
			s.Failed = append(s.Failed, m.node.Name+": "+why)
			hold(m, "")
		case m.under(version):
			s.Updating = append(s.Updating, m.node.Name)
			hold(m, version)
			if now.Sub(m.request.Since) > p.deadline && late == nil {
				late = &mine[i]
			}
		default:
			hold(m, "")
		}
	}
	if late != nil {
		s.Failed = append(s.Failed, fmt.Sprintf("%s: asked %s ago and not back", late.node.Name, now.Sub(late.request.Since).Round(time.Minute)))
	}
	if s.Updated == len(mine) {
		s.Stage = len(p.stages)
		return say(Complete, "all nodes run %s", version)
	}
	d.again = time.Minute
	switch {
	case len(s.Failed) > p.spec.MaxFailures:
		return say(Failed, "%s; no other node is updated: publish a newer release, or raise maxFailures to go on", s.Failed[0])
	case p.spec.Paused:
		return say(Paused, "paused; %s under way go on", count(len(s.Updating), "node"))
	}

	// Who may go.
	if !p.open(now) {
		return say(Waiting, "for the next window (%s, UTC)", strings.Join(p.spec.Windows, ", "))
	}
	for _, m := range mine {
		if m.runs(version) && !m.ready {
			return say(Waiting, "for node %s, which runs %s and is not Ready", m.node.Name, version)
		}
	}
	limit, soaking := p.limit(s, mine, version, now)
	if soaking > 0 {
		d.again = min(d.again, soaking)
		return say(Soaking, "stage %d of %d is done; the next begins in %s", s.Stage, len(p.stages), soaking.Round(time.Second))
	}
	room := p.concurrency(len(mine)) - len(s.Updating)
	for i, m := range mine[:limit] {
		if m.report == nil || m.runs(version) || m.under(version) || m.failure(version) != "" {
			continue
		}
		if wait := blocked(m, all, version); wait != "" {
			if len(s.Updating) > 0 {
				break
			}
			return say(Waiting, "%s", wait)
		}
		if m.server && len(s.Updating) > 0 {
			break // one server at a time, and nobody beside it
		}
		if room <= 0 {
			break
		}
		room--
		hold(mine[i], version)
		s.Updating = append(s.Updating, m.node.Name)
		if m.server {
			break
		}
	}
	if len(s.Updating) == 0 {
		if silent != "" {
			return say(Waiting, "node %s does not report its release: it runs another system, or is switched off", silent)
		}
		return say(Complete, "all nodes run %s but %s", version, strings.Join(s.Failed, "; "))
	}
	return say(Rolling, "updating %s", strings.Join(s.Updating, ", "))
}

// target is the version to bring the nodes to. A channel's is taken up when the one before has come to its end.
func (p *plan) target(before Status, mine []member) string {
	if p.spec.Version != "" {
		return p.spec.Version
	}
	newest := before.Version
	for _, m := range mine {
		if m.report == nil {
			continue
		}
		for _, v := range []string{m.report.Version, m.report.Offered} {
			if v != "" && (newest == "" || release.CompareVersions(v, newest) > 0) {
				newest = v
			}
		}
	}
	switch before.Phase {
	case "", Complete, Failed, Waiting, Refused:
		return newest
	}
	return cmp.Or(before.Version, newest)
}

// sort puts the nodes into the order in which they go.
func (p *plan) sort(mine []member) {
	rank := func(m member) (r int) {
		if !m.server {
			r += 2
		}
		if p.canaries != nil && !p.canaries.Matches(labels.Set(m.node.Labels)) {
			r++
		}
		return r
	}
	slices.SortFunc(mine, func(a, b member) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a.node.Name, b.node.Name)) })
}

// limit is how many of the nodes belong to the stage that is under way, and how long it must still soak before the next.
func (p *plan) limit(s *Status, mine []member, version string, now time.Time) (int, time.Duration) {
	for {
		i := min(s.Stage, len(p.stages)-1)
		n := p.stages[i].upto(len(mine))
		for _, m := range mine[:n] {
			if !m.runs(version) && m.failure(version) == "" {
				if s.Stage > 0 && s.StageDone.IsZero() {
					s.StageDone = metav1.NewTime(now)
				}
				if s.Stage > 0 {
					if rest := p.stages[s.Stage-1].soak - now.Sub(s.StageDone.Time); rest > 0 {
						return n, rest
					}
				}
				return n, 0
			}
		}
		if i == len(p.stages)-1 {
			return n, 0
		}
		s.Stage, s.StageDone = i+1, metav1.NewTime(now)
	}
}

// blocked says what in the cluster keeps a node from going now; "" is nothing.
func blocked(m member, all []member, version string) string {
	for _, other := range all {
		switch {
		case !other.server || other.node.Name == m.node.Name:
		case m.server && !other.ready:
			return fmt.Sprintf("for server %s, which is not Ready: with one more away the cluster might stand still", other.node.Name)
		case !m.server && other.report != nil && release.CompareVersions(other.report.Version, version) < 0:
			return fmt.Sprintf("for server %s, which runs %s: an agent must not be newer than its servers", other.node.Name, other.report.Version)
		}
	}
	return ""
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
