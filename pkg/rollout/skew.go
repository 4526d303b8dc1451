package rollout

import (
	"cmp"
	"fmt"

	utilversion "k8s.io/apimachinery/pkg/util/version"

	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// oldest is how many minor versions a kubelet may be behind an API server.
const oldest = 3

// blocked says what in the cluster keeps a node from going to a release now; "" is nothing. kubernetes is the release's, "" if
// nobody knows it.
//
// The rules are those of Kubernetes' version skew policy, by minor version: API servers are within one of each other and skip
// none, a kubelet is never newer than any of them and at most three older. A server's kubelet has the version of its API server.
func blocked(m member, all []member, version, kubernetes string) string {
	for _, o := range all {
		why := ""
		switch {
		case o.node.Name == m.node.Name:
			why = skips(o, version, kubernetes)
		case m.server && o.server:
			why = cmp.Or(o.away(), skips(o, version, kubernetes))
		case m.server:
			why = unserved(o, version, kubernetes)
		case o.server:
			why = outruns(o, version, kubernetes)
		}
		if why != "" {
			return why
		}
	}
	return ""
}

// away says why a server cannot be counted on while another one restarts; "" is that it can.
func (m member) away() string {
	switch {
	case !m.ready:
		return fmt.Sprintf("for server %s, which is not Ready: with one more away the cluster might stand still", m.node.Name)
	case m.request != nil && m.request.Version != "" && !m.runs(m.request.Version):
		return fmt.Sprintf("for server %s, which plan %s brings to %s: servers go one at a time", m.node.Name, m.request.Plan, m.request.Version)
	case m.report != nil && m.report.Phase != "":
		return fmt.Sprintf("for server %s, which updates itself (%s): servers go one at a time", m.node.Name, m.report.Phase)
	}
	return ""
}

// skips says whether API servers of the release would be more than one minor version from that of a server.
func skips(server member, version, kubernetes string) string {
	if !server.server {
		return ""
	}
	if d, ok := minors(server.kubelet, kubernetes); ok && (d > 1 || d < -1) {
		return fmt.Sprintf("for server %s, which has Kubernetes %s: %s has %s, and servers must not skip a minor version; bring them to a release in between first",
			server.node.Name, server.kubelet, version, kubernetes)
	}
	return ""
}

// unserved says whether an API server of the release could not serve an agent.
func unserved(agent member, version, kubernetes string) string {
	d, ok := minors(agent.kubelet, kubernetes)
	switch {
	case ok && d > oldest:
		return fmt.Sprintf("for agent %s, whose kubelet is %s: %s has Kubernetes %s, and a kubelet may be %d minor versions behind; update the agent, or delete its node", agent.node.Name, agent.kubelet, version, kubernetes, oldest)
	case ok && d < 0:
		return fmt.Sprintf("for agent %s, whose kubelet is %s: %s has Kubernetes %s, and a kubelet must not be newer than a server", agent.node.Name, agent.kubelet, version, kubernetes)
	}
	return ""
}

// outruns says whether an agent of the release would be newer than a server.
func outruns(server member, version, kubernetes string) string {
	d, ok := minors(server.kubelet, kubernetes)
	switch {
	case server.report != nil && server.report.Phase == string(record.Trying):
		return fmt.Sprintf("for server %s, which tries a release and may go back", server.node.Name)
	case ok && d > 0:
		return fmt.Sprintf("for server %s, which has Kubernetes %s: %s has %s, and an agent must not be newer than its servers", server.node.Name, server.kubelet, version, kubernetes)
	case ok:
	case server.report == nil:
		return fmt.Sprintf("for server %s, which does not report its release: which Kubernetes %s has is not known, and an agent must not be newer than its servers", server.node.Name, version)
	case release.CompareVersions(server.report.Version, version) < 0:
		return fmt.Sprintf("for server %s, which runs %s: an agent must not be newer than its servers", server.node.Name, server.report.Version)
	}
	return ""
}

// minors is how many minor versions b is above a, if both are known.
func minors(a, b string) (int, bool) {
	x, xerr := utilversion.ParseGeneric(a)
	y, yerr := utilversion.ParseGeneric(b)
	if xerr != nil || yerr != nil || x.Major() != y.Major() {
		return 0, false
	}
	return int(y.Minor()) - int(x.Minor()), true //nolint:gosec // two digits
}
