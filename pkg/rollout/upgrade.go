package rollout

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Upgrades is where Plans of the system-upgrade-controller are.
var Upgrades = schema.GroupVersionResource{Group: "upgrade.cattle.io", Version: "v1", Resource: "plans"}

// upgradeLabel says which Plan an UpdatePlan was made from, as namespace.name.
const upgradeLabel = "skerry.io/upgrade-plan"

// upgradeSpec is the spec of a Plan, all of it. Fields and meanings: system-upgrade-controller, pkg/apis/upgrade.cattle.io/v1 and
// pkg/upgrade/job. What has no type here only has a meaning for the Job of which there is none, or makes the Plan one that is refused.
type upgradeSpec struct {
	Version      string                `json:"version"`
	Channel      string                `json:"channel"`
	Concurrency  int64                 `json:"concurrency"`
	NodeSelector *metav1.LabelSelector `json:"nodeSelector"`
	Window       *upgradeWindow        `json:"window"`
	Cordon       bool                  `json:"cordon"`
	Drain        *upgradeDrain         `json:"drain"`
	Prepare      *upgradeContainer     `json:"prepare"`
	Upgrade      *upgradeContainer     `json:"upgrade"`

	JobActiveDeadlineSecs *int64            `json:"jobActiveDeadlineSecs"`
	PostCompleteDelay     string            `json:"postCompleteDelay"`
	PostCompleteLabels    map[string]string `json:"postCompleteLabels"`
	Secrets               []any             `json:"secrets"`

	Exclusive          any `json:"exclusive"` // beside other plans on a node: none ever is
	ServiceAccountName any `json:"serviceAccountName"`
	Tolerations        any `json:"tolerations"`
	ImagePullSecrets   any `json:"imagePullSecrets"`
	PriorityClassName  any `json:"priorityClassName"`
}

type upgradeWindow struct {
	Days      []string `json:"days"`
	StartTime string   `json:"startTime"`
	EndTime   string   `json:"endTime"`
	TimeZone  string   `json:"timeZone"`
}

type upgradeDrain struct {
	Timeout            any                   `json:"timeout"` // nanoseconds, or as 5m
	DisableEviction    bool                  `json:"disableEviction"`
	GracePeriod        *int32                `json:"gracePeriod"`
	DeleteLocalData    *bool                 `json:"deleteLocalData"`
	DeleteEmptydirData *bool                 `json:"deleteEmptydirData"`
	IgnoreDaemonSets   *bool                 `json:"ignoreDaemonSets"`
	PodSelector        *metav1.LabelSelector `json:"podSelector"`

	Force                    any `json:"force"`                    // pods that nobody would make again: they stay, and start again with the node
	SkipWaitForDeleteTimeout any `json:"skipWaitForDeleteTimeout"` // for pods that do not end: the deadline counts for them, too
}

type upgradeContainer struct {
	Image           string   `json:"image"`
	Command         []string `json:"command"`
	Args            []string `json:"args"`
	Env             []any    `json:"envs"`
	EnvFrom         []any    `json:"envFrom"`
	Volumes         []any    `json:"volumes"`
	SecurityContext any      `json:"securityContext"`
}

// meant are the images that stand for "update this node's K3s", without registry and tag.
var meant = map[string]bool{"rancher/k3s-upgrade": true, "skerry-os/skerry-upgrade": true}

// translated says what a Plan of the system-upgrade-controller is as an UpdatePlan. An error says why it is none: all that a
// person wrote is carried out, or nothing.
func translated(o *unstructured.Unstructured) (Spec, error) {
	var u upgradeSpec
	text, err := json.Marshal(o.Object["spec"])
	if err != nil {
		return Spec{}, err
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&u); err != nil {
		return Spec{}, fmt.Errorf("spec: %w", err)
	}
	if err := u.refused(); err != nil {
		return Spec{}, err
	}
	s := Spec{Version: strings.TrimPrefix(u.Version, "v"), NodeSelector: u.NodeSelector.DeepCopy()}
	s.NodeSelector.MatchExpressions = append(s.NodeSelector.MatchExpressions, metav1.LabelSelectorRequirement{
		Key: "plan.upgrade.cattle.io/" + o.GetName(), Operator: metav1.LabelSelectorOpNotIn, Values: []string{"disabled"}, // by which nodes opt out
	})
	if s.Version == "" {
		s.Channel = path.Base(strings.TrimRight(u.Channel, "/"))
	}
	n := intstr.FromInt32(int32(min(max(1, u.Concurrency), 1000))) //nolint:gosec // bounded
	s.Concurrency, s.Paused = &n, u.Concurrency < 1                // as many as none
	if u.JobActiveDeadlineSecs != nil && *u.JobActiveDeadlineSecs > 0 {
		s.Deadline = &metav1.Duration{Duration: time.Duration(*u.JobActiveDeadlineSecs) * time.Second}
	}
	if s.Windows, err = u.Window.windows(); err != nil {
		return Spec{}, err
	}
	drains := u.Drain != nil || u.Cordon
	s.Drain = &DrainSpec{Enabled: &drains}
	if d := u.Drain; d != nil {
		if d.DisableEviction {
			s.Drain.OnDeadline = Force
		}
		if s.Drain.Deadline, err = d.deadline(); err != nil {
			return Spec{}, err
		}
	}
	_, err = read(s)
	return s, err
}

// refused says what makes a Plan one that no UpdatePlan means.
func (u *upgradeSpec) refused() error {
	if u.Upgrade == nil {
		return errors.New("spec.upgrade: is not there")
	}
	if image := repository(u.Upgrade.Image); !meant[image] {
		return fmt.Errorf("spec.upgrade.image: would run %q on the nodes, which have a read-only root; only rancher/k3s-upgrade is understood, as an update of the node; write an UpdatePlan, or a DaemonSet for other work", image)
	}
	var all []string
	no := func(yes bool, format string, a ...any) {
		if yes {
			all = append(all, fmt.Sprintf(format, a...))
		}
	}
	p, d := u.Prepare, cmp.Or(u.Drain, &upgradeDrain{})
	no(strings.Contains(u.Version, "+k3s"), "spec.version: %s is one of K3s; write the version of a Skerry release, or a channel", u.Version)
	no(u.NodeSelector == nil, "spec.nodeSelector: is not there, which means no node; write {} for all")
	no(!u.Upgrade.plain("upgrade"), "spec.upgrade: has a command, args, envs or volumes; no container runs for an update")
	// This one waits for the Plan of the servers.
	no(p != nil && (!meant[repository(p.Image)] || !p.plain("prepare")), "spec.prepare: no container runs before an update, and agents wait for servers by themselves")
	no(d.PodSelector != nil, "spec.drain.podSelector: all pods leave a node that is updated")
	no(d.GracePeriod != nil && *d.GracePeriod >= 0, "spec.drain.gracePeriod: pods have the time that they ask for")
	no(isFalse(d.IgnoreDaemonSets), "spec.drain.ignoreDaemonSets: false: pods of DaemonSets stay on a node that is updated")
	no(isFalse(d.DeleteEmptydirData) || isFalse(d.DeleteLocalData), "spec.drain.deleteEmptydirData: false: pods with such volumes leave a node like others")
	no(u.JobActiveDeadlineSecs != nil && *u.JobActiveDeadlineSecs == 0, "spec.jobActiveDeadlineSecs: 0: a node must be back some time")
	no(u.PostCompleteDelay != "" && u.PostCompleteDelay != "0s", "spec.postCompleteDelay: write an UpdatePlan with a canary and waves that soak")
	no(len(u.PostCompleteLabels) > 0, "spec.postCompleteLabels: nodes get no labels by an update; the annotation %s has the release", reportAnnotation)
	no(len(u.Secrets) > 0, "spec.secrets: no container runs for an update")
	if len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	return nil
}

func isFalse(b *bool) bool { return b != nil && !*b }

// plain says whether the container does what its image does by itself; verb is what that may be called.
func (c *upgradeContainer) plain(verb string) bool {
	return len(c.Command)+len(c.Env)+len(c.EnvFrom)+len(c.Volumes) == 0 && (len(c.Args) == 0 || c.Args[0] == verb)
}

// windows are those of an UpdatePlan, which are the same each day and in UTC.
func (w *upgradeWindow) windows() ([]string, error) {
	if w == nil {
		return nil, nil
	}
	for day := range 7 {
		if !slices.ContainsFunc(w.Days, func(d string) bool {
			return d == strconv.Itoa(day) || len(d) > 1 && strings.HasPrefix(strings.ToLower(time.Weekday(day).String()), strings.ToLower(d))
		}) {
			return nil, errors.New("spec.window.days: windows of an update are the same each day; name all seven")
		}
	}
	from, ferr := time.Parse("15:04", w.StartTime)
	to, terr := time.Parse("15:04", w.EndTime)
	switch {
	case w.TimeZone != "" && w.TimeZone != "UTC":
		return nil, fmt.Errorf("spec.window.timeZone: %s: windows of an update are in UTC", w.TimeZone)
	case ferr != nil || terr != nil || !from.Before(to):
		return nil, fmt.Errorf("spec.window: from %q to %q is no time of a day; write 02:00 and 05:00", w.StartTime, w.EndTime)
	}
	return []string{from.Format("15:04") + "-" + to.Format("15:04")}, nil
}

// deadline is how long pods may take to leave; none is as long as an UpdatePlan says where nothing is written.
func (d *upgradeDrain) deadline() (*metav1.Duration, error) {
	switch t := d.Timeout.(type) {
	case nil:
		return nil, nil
	case float64: // as JSON has numbers
		if t != 0 { // which is for ever
			return &metav1.Duration{Duration: time.Duration(t)}, nil
		}
	case string:
		if v, err := time.ParseDuration(t); err == nil && v != 0 {
			return &metav1.Duration{Duration: v}, nil
		}
	}
	return nil, fmt.Errorf("spec.drain.timeout: %v is no time; write 5m", d.Timeout)
}

// repository is an image's name without registry, tag and digest.
func repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	parts := strings.Split(image, "/")
	if len(parts) > 1 && (strings.ContainsAny(parts[0], ".:") || parts[0] == "localhost") {
		parts = parts[1:]
	}
	return strings.Join(parts, "/")
}

// translate keeps an UpdatePlan for each Plan that means one, and tells the Plans what became of them.
func (c *controller) translate(ctx context.Context, plans []*UpdatePlan) error {
	objects, err := c.upgrades.List(labels.Everything())
	if err != nil {
		return err
	}
	made := map[string]*UpdatePlan{}
	for _, p := range plans {
		if from := p.Labels[upgradeLabel]; from != "" {
			made[from] = p
		}
	}
	var faults []error
	for _, object := range objects {
		o := object.(*unstructured.Unstructured)
		spec, err := translated(o)
		if err != nil {
			faults = append(faults, c.answer(ctx, o, nil, err))
			continue // and what was made of it before goes
		}
		from := o.GetNamespace() + "." + o.GetName()
		p := made[from]
		delete(made, from)
		if p == nil || !reflect.DeepEqual(p.Spec, spec) {
			faults = append(faults, c.make(ctx, o, spec))
		}
		faults = append(faults, c.answer(ctx, o, p, nil))
	}
	for _, p := range made {
		if err := c.dynamic.Resource(Plans).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// planName is how the UpdatePlan of a Plan is called.
func planName(o *unstructured.Unstructured) string {
	return "upgrade-" + o.GetNamespace() + "-" + o.GetName()
}

// make creates or changes the UpdatePlan of a Plan.
func (c *controller) make(ctx context.Context, o *unstructured.Unstructured, spec Spec) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": Group + "/v1alpha1", "kind": "UpdatePlan",
		"metadata": map[string]any{"name": planName(o), "labels": map[string]string{upgradeLabel: o.GetNamespace() + "." + o.GetName()}},
		"spec":     spec,
	})
	if err != nil {
		return err
	}
	force := true
	_, err = c.dynamic.Resource(Plans).Patch(ctx, planName(o), types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "skerry-" + Name, Force: &force})
	return err
}

// answer writes the status of a Plan as its own controller would: which version, who is under way, and whether it was understood.
func (c *controller) answer(ctx context.Context, o *unstructured.Unstructured, p *UpdatePlan, refused error) error {
	type condition struct {
		Type    string `json:"type"`
		Status  string `json:"status"`
		Reason  string `json:"reason,omitempty"`
		Message string `json:"message,omitempty"`
	}
	status := struct {
		Conditions    []condition `json:"conditions"`
		LatestVersion string      `json:"latestVersion,omitempty"`
		Applying      []string    `json:"applying,omitempty"`
	}{}
	switch {
	case refused != nil:
		status.Conditions = []condition{{"Validated", "False", "Refused", refused.Error()}}
	case p == nil:
		status.Conditions = []condition{{"Validated", "True", "Translated", "by update plan " + planName(o)}}
	default:
		complete := "False"
		if p.Status.Phase == Complete {
			complete = "True"
		}
		status.Conditions = []condition{
			{"Validated", "True", "Translated", "by update plan " + p.Name},
			{"Complete", complete, p.Status.Phase, p.Status.Message},
		}
		status.LatestVersion, status.Applying = p.Status.Version, p.Status.Updating
	}
	text, err := json.Marshal(status)
	if err != nil {
		return err
	}
	var want any
	if err := json.Unmarshal(text, &want); err != nil {
		return err
	}
	if reflect.DeepEqual(o.Object["status"], want) {
		return nil
	}
	fresh := o.DeepCopy()
	fresh.Object["status"] = want
	if _, err := c.dynamic.Resource(Upgrades).Namespace(o.GetNamespace()).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // the next pass sees the newer one
		}
		return err
	}
	if refused != nil {
		c.Events.Eventf(o, corev1.EventTypeWarning, "Refused", "this Plan is not carried out: %v", refused)
	}
	return nil
}
