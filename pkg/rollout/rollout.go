// Package rollout brings a release to the nodes of a cluster in an order that a person wrote down: an UpdatePlan. The nodes do
// the work themselves (package update): each fetches, writes, tries and judges its own release, and comes back by itself from a
// bad one. A plan only says which of them may go now.
//
// It is a conversation in two annotations of each Node:
//
//	updates.skerry.io/request  by the server: which plan the node belongs to, and which release it is to run now, if any
//	updates.skerry.io/report   by the node: what it runs, what it could run, what failed
//
// A node with a request no longer updates itself by its own schedule. A node without the server goes on as it is.
//
// The order: servers before agents, because a kubelet may not be newer than its API server, and one server at a time, only
// while all servers are Ready; then by name. The canaries are the first of that order, and the waves what follows. Nobody goes
// while a node that was updated is not Ready, and with the first failure (or more, if the plan allows them) nobody goes any more
// until a person changes the plan or a newer release is there.
package rollout

import (
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Name is the component's, for --disable.
const Name = "update-controller"

const (
	requestAnnotation = "updates.skerry.io/request"
	reportAnnotation  = "updates.skerry.io/report"
)

// Request is what a plan asks of a node.
type Request struct {
	Plan    string    `json:"plan"`              // name; the node leaves the choice of time to it
	Version string    `json:"version,omitempty"` // the release to run now; "" is the one it runs
	Channel string    `json:"channel,omitempty"` // to look at; "" is the node's own
	Since   time.Time `json:"since,omitzero"`    // when the version was asked for
	Drain   *Drain    `json:"drain,omitempty"`   // nil leaves the pods alone
}

// Drain says how the pods leave a node before it restarts.
type Drain struct {
	// Deadline is for pods that a PodDisruptionBudget keeps, in seconds.
	DeadlineSeconds int `json:"deadlineSeconds,omitempty"`
	// OnDeadline is Skip (the node is not updated now: a failure of the plan) or Force (the pods end with the node).
	OnDeadline string `json:"onDeadline,omitempty"`
}

// What Drain.OnDeadline may be.
const (
	Skip  = "Skip"
	Force = "Force"
)

// Report is what a node says of its releases.
type Report struct {
	Version string            `json:"version"`           // that runs and is kept
	Offered string            `json:"offered,omitempty"` // the newest that its source has for it
	Phase   string            `json:"phase,omitempty"`   // what it does now: writing, trying; "" is nothing
	Failed  map[string]string `json:"failed,omitempty"`  // version -> why
	Problem string            `json:"problem,omitempty"` // with its source
}

// RequestOf reads what is asked of a node; nil is nothing. A request that cannot be read asks for nothing but patience.
func RequestOf(n *corev1.Node) *Request {
	text, ok := n.Annotations[requestAnnotation]
	if !ok {
		return nil
	}
	r := &Request{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return &Request{}
	}
	return r
}

// ReportOf reads a node's report; nil is a node that has none: not Skerry's image, or an older one.
func ReportOf(n *corev1.Node) *Report {
	r := &Report{}
	if err := json.Unmarshal([]byte(n.Annotations[reportAnnotation]), r); err != nil || r.Version == "" {
		return nil
	}
	return r
}

// Patch is the merge patch that puts the report onto its node.
func (r Report) Patch() []byte { return patch(reportAnnotation, r) }

// patch is a merge patch of one annotation; nil removes it.
func patch(annotation string, value any) []byte {
	var text any
	if value != nil {
		b, _ := json.Marshal(value) // plain structs
		text = string(b)
	}
	b, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotation: text}}})
	return b
}
