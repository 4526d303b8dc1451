package rollout

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Group is the API group of UpdatePlan.
const Group = "skerry.io"

// Plans is where UpdatePlans are.
var Plans = schema.GroupVersionResource{Group: Group, Version: "v1alpha1", Resource: "updateplans"}

// UpdatePlan is the object; the manifest of its definition explains the fields to kubectl.
type UpdatePlan struct {
	metav1.ObjectMeta
	Spec   Spec
	Status Status

	unread error // why Spec is empty
}

// updatePlan reads the object as the API has it. That its spec cannot be read is for its own status.
func updatePlan(o *unstructured.Unstructured) *UpdatePlan {
	u := &UpdatePlan{}
	_ = recoded(o.Object["metadata"], &u.ObjectMeta) // the API server wrote it
	_ = recoded(o.Object["status"], &u.Status)       // it is written anew
	if err := recoded(o.Object["spec"], &u.Spec); err != nil {
		u.unread = fmt.Errorf("spec: %w", err)
	}
	return u
}

// recoded reads what was JSON into a value.
func recoded(from, to any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

// Spec is what a person writes.
type Spec struct {
	Version      string                `json:"version,omitempty"` // of a release; or
	Channel      string                `json:"channel,omitempty"` // whose newest it is to be
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	Concurrency *intstr.IntOrString `json:"concurrency,omitempty"` // agents at a time, a number or a share of the plan's; 1 by default
	Canary      *Canary             `json:"canary,omitempty"`
	Waves       []Wave              `json:"waves,omitempty"`
	Windows     []string            `json:"windows,omitempty"` // in which nodes may begin, as 02:00-05:00 in UTC; none is always

	Drain       *DrainSpec       `json:"drain,omitempty"`
	Deadline    *metav1.Duration `json:"deadline,omitempty"`    // for a node to be back, one hour by default
	MaxFailures int              `json:"maxFailures,omitempty"` // nodes that may fail before the plan stops
	Paused      bool             `json:"paused,omitempty"`
	Resume      string           `json:"resume,omitempty"` // any text; a new one, as every change of the spec, begins another attempt
}

// Canary is the first wave.
type Canary struct {
	Count        int                   `json:"count,omitempty"` // one by default
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	Soak         *metav1.Duration      `json:"soak,omitempty"` // how long they must run well before anybody else goes
}

// Wave is how far the plan goes before it waits again.
type Wave struct {
	Upto string           `json:"upto"` // a share of the plan's nodes, as 25%
	Soak *metav1.Duration `json:"soak,omitempty"`
}

// DrainSpec says how pods leave a node.
type DrainSpec struct {
	Enabled    *bool            `json:"enabled,omitempty"`    // true by default
	Deadline   *metav1.Duration `json:"deadline,omitempty"`   // five minutes by default
	OnDeadline string           `json:"onDeadline,omitempty"` // Skip or Force
}

// Status is what the controller answers.
type Status struct {
	ObservedGeneration int64       `json:"observedGeneration,omitempty"`
	Phase              string      `json:"phase,omitempty"`
	Message            string      `json:"message,omitempty"`  // what the plan waits for, or why it stopped
	Version            string      `json:"version,omitempty"`  // that the nodes are brought to
	Channel            string      `json:"channel,omitempty"`  // that it is of
	Progress           string      `json:"progress,omitempty"` // 3/20
	Nodes              int         `json:"nodes"`
	Updated            int         `json:"updated"`
	Updating           []string    `json:"updating,omitempty"`
	Failed             []string    `json:"failed,omitempty"` // as "node: reason"
	Stage              int         `json:"stage,omitempty"`  // how many of canary and waves are done
	StageDone          metav1.Time `json:"stageDone,omitzero"`
}

// The phases.
const (
	Waiting  = "Waiting"  // for a release, a window, a node
	Rolling  = "Rolling"  // nodes are being updated
	Soaking  = "Soaking"  // a stage is done and shows whether it is good
	Paused   = "Paused"   // by a person
	Failed   = "Failed"   // stopped by failures
	Complete = "Complete" // all nodes run the version
	Refused  = "Refused"  // the plan makes no sense; the message says why
)

// plan is an UpdatePlan that has been read.
type plan struct {
	name     string
	attempt  string // another one for each change of the spec, and for each plan
	spec     Spec
	selector labels.Selector
	canaries labels.Selector // nil: by order
	stages   []stage
	windows  [][2]int // minutes of the day
	drain    *Drain
	deadline time.Duration
}

// stage is a part of the nodes: the first n of their order.
type stage struct {
	count int     // of nodes, or
	share float64 // of all nodes
	soak  time.Duration
}

// upto is how many of all nodes belong to this stage and those before.
func (s stage) upto(all int) int {
	if s.share > 0 {
		return min(all, int(math.Ceil(s.share*float64(all)-1e-9)))
	}
	return min(all, s.count)
}

var (
	windowForm  = regexp.MustCompile(`^([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])$`)
	shareForm   = regexp.MustCompile(`^([1-9][0-9]?|100)%$`)
	versionForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+_-]{0,127}$`)
)

// plan reads the object.
func (u *UpdatePlan) plan() (*plan, error) {
	if u.unread != nil {
		return nil, u.unread
	}
	p, err := read(u.Spec)
	if err != nil {
		return nil, err
	}
	p.name, p.attempt = u.Name, fmt.Sprintf("%s.%d", u.UID, u.Generation)
	return p, nil
}

// read checks a spec. The error names the field.
func read(spec Spec) (*plan, error) {
	p := &plan{spec: spec, selector: labels.Everything(), deadline: time.Hour}
	switch {
	case (spec.Version == "") == (spec.Channel == ""):
		return nil, fmt.Errorf("spec: write either a version or a channel")
	case !versionForm.MatchString(spec.Version + spec.Channel):
		return nil, fmt.Errorf("spec: %q is not the name of a version or channel", spec.Version+spec.Channel)
	case spec.MaxFailures < 0:
		return nil, fmt.Errorf("spec.maxFailures: %d is less than none", spec.MaxFailures)
	}
	var err error
	if spec.NodeSelector != nil {
		if p.selector, err = metav1.LabelSelectorAsSelector(spec.NodeSelector); err != nil {
			return nil, fmt.Errorf("spec.nodeSelector: %w", err)
		}
	}
	if c := spec.Canary; c != nil {
		if c.Count < 0 {
			return nil, fmt.Errorf("spec.canary.count: %d is less than none", c.Count)
		}
		if c.NodeSelector != nil {
			if p.canaries, err = metav1.LabelSelectorAsSelector(c.NodeSelector); err != nil {
				return nil, fmt.Errorf("spec.canary.nodeSelector: %w", err)
			}
		}
		p.stages = append(p.stages, stage{count: max(1, c.Count), soak: duration(c.Soak)})
	}
	for i, w := range spec.Waves {
		share, err := percent(w.Upto)
		if err != nil {
			return nil, fmt.Errorf("spec.waves[%d].upto: %w", i, err)
		}
		if n := len(p.stages); n > 0 && p.stages[n-1].share >= share {
			return nil, fmt.Errorf("spec.waves[%d].upto: %s is no more than the wave before has", i, w.Upto)
		}
		p.stages = append(p.stages, stage{share: share, soak: duration(w.Soak)})
	}
	if n := len(p.stages); n == 0 || p.stages[n-1].share < 1 {
		p.stages = append(p.stages, stage{share: 1})
	}
	for i, text := range spec.Windows {
		m := windowForm.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("spec.windows[%d]: %q is not a window; write 02:00-05:00, in UTC", i, text)
		}
		var n [4]int
		for k := range n {
			n[k], _ = strconv.Atoi(m[k+1]) // two digits
		}
		p.windows = append(p.windows, [2]int{n[0]*60 + n[1], n[2]*60 + n[3]})
	}
	if spec.Concurrency != nil {
		if _, err := intstr.GetScaledValueFromIntOrPercent(spec.Concurrency, 100, true); err != nil {
			return nil, fmt.Errorf("spec.concurrency: %w", err)
		}
	}
	if spec.Deadline != nil {
		if p.deadline = spec.Deadline.Duration; p.deadline < time.Minute {
			return nil, fmt.Errorf("spec.deadline: %s is less than a minute", p.deadline)
		}
	}
	return p, p.readDrain()
}

func (p *plan) readDrain() error {
	d := p.spec.Drain
	if d == nil {
		d = &DrainSpec{}
	}
	if d.Enabled != nil && !*d.Enabled {
		return nil
	}
	p.drain = &Drain{DeadlineSeconds: 300, OnDeadline: Skip}
	if d.Deadline != nil {
		if d.Deadline.Duration < 0 {
			return fmt.Errorf("spec.drain.deadline: %s is less than none", d.Deadline.Duration)
		}
		p.drain.DeadlineSeconds = int(d.Deadline.Seconds())
	}
	switch d.OnDeadline {
	case "", Skip:
	case Force:
		p.drain.OnDeadline = Force
	default:
		return fmt.Errorf("spec.drain.onDeadline: %q is neither %s nor %s", d.OnDeadline, Skip, Force)
	}
	return nil
}

func percent(text string) (float64, error) {
	if !shareForm.MatchString(text) {
		return 0, fmt.Errorf("%q is not a share; write 25%%", text)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(text, "%"))
	return float64(n) / 100, err
}

func duration(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}

// concurrency is how many agents of all may be under way.
func (p *plan) concurrency(all int) int {
	if p.spec.Concurrency == nil {
		return 1
	}
	n, _ := intstr.GetScaledValueFromIntOrPercent(p.spec.Concurrency, all, false) // read has tried it
	return max(1, n)
}

// open says whether nodes may begin at a moment.
func (p *plan) open(now time.Time) bool {
	now = now.UTC()
	minute := now.Hour()*60 + now.Minute()
	for _, w := range p.windows {
		if from, to := w[0], w[1]; from <= to && from <= minute && minute < to || from > to && (minute >= from || minute < to) {
			return true
		}
	}
	return len(p.windows) == 0
}
