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

// member is a node of the cluster.
type member struct {
	node    *corev1.Node
	server  bool
	ready   bool
	turned  time.Time // when ready became what it is
	kubelet string    // its version
	report  *Report
	request *Request
}

func memberOf(n *corev1.Node) member {
	m := member{node: n, kubelet: n.Status.NodeInfo.KubeletVersion, report: ReportOf(n), request: RequestOf(n)}
	_, m.server = n.Labels[serverLabel]
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			m.ready, m.turned = c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return m
}

// runs says whether the node runs the version, and for good.
func (m member) runs(version string) bool {
	return m.report != nil && m.report.Version == version && m.report.Phase == ""
}

// beyond says whether the node runs something newer: updates do not go back.
func (m member) beyond(version string) bool {
	return m.report != nil && m.report.Phase == "" && release.CompareVersions(m.report.Version, version) > 0
}

// under says whether the node is on its way to the version.
func (m member) under(version string) bool {
	return m.request != nil && m.request.Version == version && !m.runs(version) && m.failure(version, m.request.Attempt) == ""
}

// failure is why the node does not run the version after an attempt; "" is none.
func (m member) failure(version, attempt string) string {
	if m.report == nil || m.runs(version) {
		return ""
	}
	if m.report.Attempt == attempt && m.report.Failed[version] != "" {
		return m.report.Failed[version]
	}
	if m.request != nil && m.request.Attempt == attempt && m.request.Late == version {
		return cmp.Or(m.report.Problem, "was asked and is not back") + "; the plan's deadline is over"
	}
	return ""
}

// decision is what a plan comes to.
type decision struct {
	status   Status
	requests map[string]*Request // by node; every node of the plan has one
	again    time.Duration       // when to look again if nothing changes; 0: never
}

// decide says what each node of a plan is to do now. all are the cluster's nodes, mine those that belong to this plan and to no
// other; before is the status of the last decision.
func (p *plan) decide(before Status, all, mine []member, now time.Time) decision {
	named := p.sort(mine)
	d := decision{requests: map[string]*Request{}, status: Status{Nodes: len(mine), Channel: p.spec.Channel}}
	s := &d.status
	hold := func(m member, version string) {
		r := Request{Plan: p.name, Channel: p.spec.Channel, Target: p.spec.Version, Attempt: p.attempt}
		if version != "" { // Since stays, or every pass would begin the deadline anew
			r.Version, r.Since, r.Drain = version, now, p.drain
			if m.under(version) {
				r.Attempt = m.request.Attempt
			}
			if m.under(version) || m.runs(version) && m.request != nil && m.request.Version == version {
				r.Since = m.request.Since
			}
		} else if m.request != nil && m.request.Attempt == p.attempt {
			r.Late = m.request.Late
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
		return say(Waiting, "no node has been offered a release of channel %s yet%s", p.spec.Channel, problems(mine))
	}

	// Where everybody is.
	var silent, beyond []string
	for i, m := range mine {
		switch why := m.failure(version, p.attempt); {
		case m.report == nil:
			silent = append(silent, m.node.Name)
			hold(m, "")
		case m.runs(version):
			s.Updated++
			hold(m, version)
		case m.beyond(version):
			beyond = append(beyond, fmt.Sprintf("%s, which runs %s", m.node.Name, m.report.Version))
			hold(m, "")
		case why != "":
			s.Failed = append(s.Failed, m.node.Name+": "+why)
			hold(m, "")
		case m.under(version) && now.Sub(m.request.Since) > p.deadline:
			m.request = &Request{Attempt: p.attempt, Late: version}
			mine[i] = m
			s.Failed = append(s.Failed, m.node.Name+": "+m.failure(version, p.attempt))
			hold(m, "")
		case m.under(version):
			s.Updating = append(s.Updating, m.node.Name)
			hold(m, version)
		default:
			hold(m, "")
		}
	}
	if s.Updated == len(mine) {
		s.Stage = len(p.stages)
		return say(Complete, "all nodes run %s", version)
	}
	unready := ""
	for _, m := range mine {
		switch {
		case !m.runs(version) || m.ready:
		case now.Sub(m.turned) > p.deadline:
			s.Failed = append(s.Failed, fmt.Sprintf("%s: runs %s and is not Ready", m.node.Name, version))
		default:
			unready = cmp.Or(unready, m.node.Name)
		}
	}
	d.again = time.Minute
	switch {
	case len(s.Failed) > p.spec.MaxFailures:
		return say(Failed, "%s; no other node is updated: publish a newer release, or change the plan to try again (spec.resume), or raise maxFailures to go on", s.Failed[0])
	case p.spec.Paused:
		return say(Paused, "paused; %s under way go on", count(len(s.Updating), "node"))
	}

	// Who may go.
	if !p.open(now) {
		return say(Waiting, "for the next window (%s, UTC)", strings.Join(p.spec.Windows, ", "))
	}
	if p.canaries != nil && named == 0 {
		return say(Waiting, "no node of this plan is one that spec.canary.nodeSelector means")
	}
	if unready != "" {
		return say(Waiting, "for node %s, which runs %s and is not Ready", unready, version)
	}
	limit, soaking := p.limit(s, mine, named, version, now)
	if soaking > 0 {
		d.again = min(d.again, soaking)
		return say(Soaking, "stage %d of %d is done; the next begins in %s", s.Stage, len(p.stages), soaking.Round(time.Second))
	}
	room := p.concurrency(len(mine)) - len(s.Updating)
	kubernetes := kubernetesOf(version, all)
	for _, m := range mine[:limit] {
		if m.report == nil || m.under(version) || p.done(m, version) {
			continue
		}
		if wait := blocked(m, all, version, kubernetes); wait != "" {
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
		hold(m, version)
		s.Updating = append(s.Updating, m.node.Name)
		if m.server {
			break
		}
	}
	switch {
	case len(s.Updating) > 0:
		return say(Rolling, "updating %s%s", strings.Join(s.Updating, ", "), problems(mine))
	case len(silent) > 0:
		return say(Waiting, "node %s does not report its release: it runs another system, or is switched off", silent[0])
	}
	return say(Complete, "all nodes run %s but %s", version, strings.Join(append(beyond, s.Failed...), "; "))
}

// done says whether the plan has nothing more to ask of the node: the node runs the version, or something newer, or failed.
func (p *plan) done(m member, version string) bool {
	return m.runs(version) || m.beyond(version) || m.failure(version, p.attempt) != ""
}

// problems is what nodes try to get over, for the end of a message.
func problems(mine []member) (text string) {
	for _, m := range mine {
		if m.report != nil && m.report.Problem != "" && text == "" {
			text = fmt.Sprintf("; %s: %s", m.node.Name, m.report.Problem)
		}
	}
	return text
}

// target is the version to bring the nodes to: the newest that the plan's channel offers any of them. While nodes are brought to
// one, it stays.
func (p *plan) target(before Status, mine []member) string {
	if p.spec.Version != "" {
		return p.spec.Version
	}
	last := ""
	if before.Channel == p.spec.Channel {
		last = before.Version
	}
	switch before.Phase {
	case Rolling, Soaking, Paused:
		if last != "" {
			return last
		}
	}
	newest := ""
	for _, m := range mine {
		if m.report == nil || m.report.Channel != p.spec.Channel || m.report.Offered == "" {
			continue
		}
		if newest == "" || release.CompareVersions(m.report.Offered, newest) > 0 {
			newest = m.report.Offered
		}
	}
	return cmp.Or(newest, last)
}

// kubernetesOf is the version of Kubernetes in a release; "" if no node knows.
func kubernetesOf(version string, all []member) string {
	for _, m := range all {
		switch {
		case m.report == nil:
		case m.report.Offered == version && m.report.Kubernetes != "":
			return m.report.Kubernetes
		case m.runs(version) && m.kubelet != "":
			return m.kubelet
		}
	}
	return ""
}

// sort puts the nodes into the order in which they go, and says how many the canary's selector means: they are the first.
func (p *plan) sort(mine []member) (named int) {
	rank := func(m member) (r int) {
		if p.canaries == nil || !p.canaries.Matches(labels.Set(m.node.Labels)) {
			r += 2
		}
		if !m.server {
			r++
		}
		return r
	}
	slices.SortFunc(mine, func(a, b member) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a.node.Name, b.node.Name)) })
	for named < len(mine) && rank(mine[named]) < 2 {
		named++
	}
	return named
}

// limit is how many of the nodes belong to the stage that is under way, and how long it must still soak before the next. named
// are those of the canary's selector.
func (p *plan) limit(s *Status, mine []member, named int, version string, now time.Time) (int, time.Duration) {
	for {
		i := min(s.Stage, len(p.stages)-1)
		n := p.stages[i].upto(len(mine))
		if i == 0 && p.canaries != nil {
			n = min(n, named)
		}
		for _, m := range mine[:n] {
			if !p.done(m, version) {
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

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
