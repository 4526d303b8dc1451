// Package rollout brings a release to the nodes of a cluster in an order that a person wrote down: an UpdatePlan. The nodes do
// the work themselves (package update): each fetches, writes, tries and judges its own release, and comes back by itself from a
// bad one. A plan only says which of them may go now.
//
// It is a conversation in two annotations of each Node:
//
//	updates.skerry.io/request  by the server: which plan the node belongs to, where it is to look, and which release it is to run now, if any
//	updates.skerry.io/report   by the node: what it runs, what it was offered there, what failed
//
// A node with a request no longer updates itself by its own schedule. A node without the server goes on as it is.
//
// The order: canaries that a plan names, then servers before agents, then by name. The canaries are the first of that order, and
// the waves what follows. Servers go one at a time, across all plans and with those that update themselves, only while all others
// are Ready. Nobody goes whose kubelet would be newer than an API server, and no server past a minor version of Kubernetes (skew.go).
// Nobody goes while a node that was updated is not Ready, and with the first failure (or more, if the plan allows them) nobody goes
// any more until a person changes the plan or another release is there.
//
// What a node's source or network keeps it from it tries again, until the plan's deadline. A change of a plan's spec, or a new
// plan, begins another attempt: what failed before is tried again, even a release that a node tried and left.
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
	Channel string    `json:"channel,omitempty"` // to look at, or
	Target  string    `json:"target,omitempty"`  // the release to look for: the one that the plan is for
	Attempt string    `json:"attempt,omitempty"` // with another one, what failed counts no more
	Since   time.Time `json:"since,omitzero"`    // when the version was asked for
	Late    string    `json:"late,omitempty"`    // the release that was asked for in vain until the plan's deadline
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
	Phase   string            `json:"phase,omitempty"`   // what it does now: writing, trying; "" is nothing
	Attempt string            `json:"attempt,omitempty"` // of the request that it took up last
	Failed  map[string]string `json:"failed,omitempty"`  // version -> why
	Problem string            `json:"problem,omitempty"` // that it tries to get over
	Offer
}

// Offer is what a node's source has for it, of what it was asked to look at.
type Offer struct {
	Channel    string `json:"channel,omitempty"`    // "" if it was a version
	Offered    string `json:"offered,omitempty"`    // the newest that the node could run next, or runs; of a version, that one
	Kubernetes string `json:"kubernetes,omitempty"` // in the release offered
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
