package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Upgrades is where Plans of the system-upgrade-controller are.
var Upgrades = schema.GroupVersionResource{Group: "upgrade.cattle.io", Version: "v1", Resource: "plans"}

// upgradeLabel says which Plan an UpdatePlan was made from, as namespace.name.
const upgradeLabel = "skerry.io/upgrade-plan"

// upgrade is a Plan, as much of it as is read. Fields: system-upgrade-controller, pkg/apis/upgrade.cattle.io/v1.
type upgrade struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              upgradeSpec `json:"spec"`
}

type upgradeSpec struct {
	Version      string                `json:"version"`
	Channel      string                `json:"channel"`
	Concurrency  int64                 `json:"concurrency"`
	NodeSelector *metav1.LabelSelector `json:"nodeSelector"`
	Cordon       bool                  `json:"cordon"`
	Drain        *struct {
		Timeout *int64 `json:"timeout"` // nanoseconds, as Go writes a duration
		Force   bool   `json:"force"`
	} `json:"drain"`
	Upgrade *struct {
		Image string `json:"image"`
	} `json:"upgrade"`
}

// meant are the images that stand for "update this node's K3s", without registry and tag.
var meant = map[string]bool{"rancher/k3s-upgrade": true, "skerry-os/skerry-upgrade": true}

// translated says what a Plan of the system-upgrade-controller is as an UpdatePlan. An error says why it is none.
func translated(u *upgrade) (Spec, error) {
	if u.Spec.Upgrade == nil {
		return Spec{}, errors.New("has no spec.upgrade")
	}
	if image := repository(u.Spec.Upgrade.Image); !meant[image] {
		return Spec{}, fmt.Errorf("would run image %q on the nodes, which have a read-only root; only rancher/k3s-upgrade is understood, as an update of the node; write an UpdatePlan, or a DaemonSet for other work", image)
	}
	s := Spec{Version: strings.TrimPrefix(u.Spec.Version, "v"), NodeSelector: u.Spec.NodeSelector}
	if strings.Contains(s.Version, "+k3s") {
		return Spec{}, fmt.Errorf("version %s is one of K3s; write the version of a Skerry release, or a channel", u.Spec.Version)
	}
	if s.Version == "" {
		s.Channel = path.Base(strings.TrimRight(u.Spec.Channel, "/"))
	}
	if u.Spec.Concurrency > 0 {
		n := intstr.FromInt32(int32(min(u.Spec.Concurrency, 1000))) //nolint:gosec // bounded
		s.Concurrency = &n
	}
	drains := u.Spec.Drain != nil || u.Spec.Cordon
	s.Drain = &DrainSpec{Enabled: &drains}
	if d := u.Spec.Drain; d != nil {
		if d.Force {
			s.Drain.OnDeadline = Force
		}
		if d.Timeout != nil {
			s.Drain.Deadline = &metav1.Duration{Duration: time.Duration(*d.Timeout)}
		}
	}
	_, err := read(s)
	return s, err
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
	for _, o := range objects {
		u := &upgrade{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.(*unstructured.Unstructured).Object, u); err != nil {
			faults = append(faults, err)
			continue
		}
		from := u.Namespace + "." + u.Name
		spec, err := translated(u)
		if err != nil {
			faults = append(faults, c.answer(ctx, o.(*unstructured.Unstructured), u, nil, err))
			continue // and what was made of it before goes
		}
		p := made[from]
		delete(made, from)
		if p == nil || !reflect.DeepEqual(p.Spec, spec) {
			faults = append(faults, c.make(ctx, from, u, spec))
		}
		faults = append(faults, c.answer(ctx, o.(*unstructured.Unstructured), u, p, nil))
	}
	for _, p := range made {
		if err := c.dynamic.Resource(Plans).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// make creates or changes the UpdatePlan of a Plan.
func (c *controller) make(ctx context.Context, from string, u *upgrade, spec Spec) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": Group + "/v1alpha1", "kind": "UpdatePlan",
		"metadata": map[string]any{"name": "upgrade-" + u.Namespace + "-" + u.Name, "labels": map[string]string{upgradeLabel: from}},
		"spec":     spec,
	})
	if err != nil {
		return err
	}
	force := true
	_, err = c.dynamic.Resource(Plans).Patch(ctx, "upgrade-"+u.Namespace+"-"+u.Name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "skerry-" + Name, Force: &force})
	return err
}

// answer writes the status of a Plan as its own controller would: which version, who is under way, and whether it was understood.
func (c *controller) answer(ctx context.Context, o *unstructured.Unstructured, u *upgrade, p *UpdatePlan, refused error) error {
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
		status.Conditions = []condition{{"Validated", "True", "Translated", "by update plan upgrade-" + u.Namespace + "-" + u.Name}}
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
	if _, err := c.dynamic.Resource(Upgrades).Namespace(u.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // the next pass sees the newer one
		}
		return err
	}
	if refused != nil {
		c.Events.Eventf(o, corev1.EventTypeWarning, "Refused", "this Plan %v", refused)
	}
	return nil
}
