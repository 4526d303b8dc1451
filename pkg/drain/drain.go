// Package drain takes the pods off a node before it restarts, and says of a node that is cordoned who did it, so that nobody
// gives back a node that somebody else took.
package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Annotation names who cordoned a node. It may outlive its cordon, for others uncordon a node without a look at it: it counts
// while spec.unschedulable is manager's, as the API notes whose last word a field is.
const Annotation = "skerry.io/cordoned-by"

// manager is who changes nodes here, in their managedFields.
const manager = "skerry-drain"

// Policy is what to do with pods that do not go before the deadline, because a PodDisruptionBudget never yields or because
// they do not end.
type Policy string

// The policies.
const (
	Skip  Policy = "skip"  // they stay, and the restart takes them along
	Force Policy = "force" // they are deleted, whatever their budget says
	Stop  Policy = "stop"  // no restart
)

// ErrStuck is in the error of a drain that Stop ended.
var ErrStuck = errors.New("pods do not leave the node")

// Drainer drains one node. A kubelet's own credentials suffice for its node.
type Drainer struct {
	Client   kubernetes.Interface
	Node     string
	Owner    string        // who cordons: "update", or the name of a plan
	Deadline time.Duration // for all pods together
	Policy   Policy        // "" is Skip
	Say      func(string)  // progress, a line each; may be nil
	Pulse    time.Duration // between two looks; 0 is two seconds
}

// Report is how a drain went.
type Report struct {
	Evicted []string `json:"evicted,omitempty"` // as namespace/name
	Stuck   []Stuck  `json:"stuck,omitempty"`   // at the deadline
}

// Stuck is a pod that did not go.
type Stuck struct {
	Pod string `json:"pod"`
	Why string `json:"why"`
}

func (r *Report) String() string {
	text := fmt.Sprintf("%d pods evicted", len(r.Evicted))
	for _, s := range r.Stuck {
		text += fmt.Sprintf("; %s: %s", s.Pod, s.Why)
	}
	return text
}

func (d *Drainer) say(format string, a ...any) {
	if d.Say != nil {
		d.Say(fmt.Sprintf(format, a...))
	}
}

// Cordon keeps new pods away. A node that is cordoned already stays whose it is.
func (d *Drainer) Cordon(ctx context.Context) error {
	node, err := d.Client.CoreV1().Nodes().Get(ctx, d.Node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if node.Spec.Unschedulable {
		return nil
	}
	d.say("node %s takes no new pods", d.Node)
	return d.patch(ctx, node, true, &d.Owner)
}

// Uncordon takes back what Cordon of the same owner did, and says whether there was something. What somebody did to the node
// since then stays.
func (d *Drainer) Uncordon(ctx context.Context) (bool, error) {
	node, err := d.Client.CoreV1().Nodes().Get(ctx, d.Node, metav1.GetOptions{})
	if err != nil || node.Annotations[Annotation] != d.Owner {
		return false, err
	}
	if !ours(node) {
		return false, d.patch(ctx, node, node.Spec.Unschedulable, nil)
	}
	d.say("node %s takes pods again", d.Node)
	return true, d.patch(ctx, node, false, nil)
}

// ours says whether the cordon that is there is the one that Cordon made, not one of a person's after it.
func ours(node *corev1.Node) bool {
	if !node.Spec.Unschedulable {
		return false
	}
	for _, m := range node.ManagedFields {
		var fields struct {
			Spec map[string]json.RawMessage `json:"f:spec"`
		}
		if m.FieldsV1 == nil || json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		if _, ok := fields.Spec["f:unschedulable"]; ok && m.Manager == manager {
			return true
		}
	}
	return false
}

// patch is refused when the node changed meanwhile, so that two who cordon do not both think that it is theirs.
func (d *Drainer) patch(ctx context.Context, node *corev1.Node, unschedulable bool, owner *string) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion, "annotations": map[string]*string{Annotation: owner}},
		"spec":     map[string]any{"unschedulable": unschedulable},
	})
	if err != nil {
		return err
	}
	_, err = d.Client.CoreV1().Nodes().Patch(ctx, d.Node, types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsConflict(err) {
		fresh, gerr := d.Client.CoreV1().Nodes().Get(ctx, d.Node, metav1.GetOptions{})
		if gerr != nil {
			return gerr
		}
		if fresh.Spec.Unschedulable == node.Spec.Unschedulable && fresh.Annotations[Annotation] == node.Annotations[Annotation] {
			return d.patch(ctx, fresh, unschedulable, owner) // a heartbeat came in between
		}
	}
	return err
}

// Drain cordons the node and evicts its pods until none is left that would be made again elsewhere, or until the deadline;
// then the policy decides. Its error is ErrStuck if that is to stop.
func (d *Drainer) Drain(ctx context.Context) (*Report, error) {
	if err := d.Cordon(ctx); err != nil {
		return nil, fmt.Errorf("cordoning node %s: %w", d.Node, err)
	}
	r := &Report{}
	pulse := d.Pulse
	if pulse == 0 {
		pulse = 2 * time.Second
	}
	end := time.Now().Add(d.Deadline)
	asked := map[types.UID]bool{}
	for {
		pods, err := d.pods(ctx)
		if err != nil {
			return r, err
		}
		r.Stuck = nil
		if len(pods) == 0 {
			return r, nil
		}
		for _, p := range pods {
			why := "does not end"
			if p.DeletionTimestamp == nil {
				if why, err = d.evict(ctx, &p); err != nil {
					return r, err
				}
				if why == "" && !asked[p.UID] {
					asked[p.UID] = true
					r.Evicted = append(r.Evicted, key(&p))
					d.say("pod %s is asked to go", key(&p))
				}
			}
			if why == "" {
				why = "does not end"
			}
			r.Stuck = append(r.Stuck, Stuck{key(&p), why})
		}
		if time.Now().After(end) {
			return r, d.giveUp(ctx, pods, r)
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-time.After(pulse):
		}
	}
}

func key(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// pods lists those that are to go.
func (d *Drainer) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := d.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + d.Node})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !moves(&p) }), nil
}

// moves says whether a pod is made again elsewhere when it goes. Those that have ended, static ones, those of the node itself
// (DaemonSets) and those that nobody would make again stay, and start again with the node.
func moves(p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	_, static := p.Annotations[corev1.MirrorPodAnnotationKey]
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	return !ended && !static && owner != nil && owner.Kind != "DaemonSet"
}

// evict asks for the eviction of a pod; why says what stands against it.
func (d *Drainer) evict(ctx context.Context, p *corev1.Pod) (why string, err error) {
	err = d.Client.CoreV1().Pods(p.Namespace).EvictV1(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}},
	})
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return "", nil
	case apierrors.ReasonForError(err) != metav1.StatusReasonUnknown:
		// A budget, more than one of them, a webhook: the others go meanwhile, and the policy has the last word.
		return because(err), nil
	}
	return "", fmt.Errorf("evicting pod %s: %w", key(p), err)
}

// because is what the API says stands against an eviction: the budget and its figures.
func because(err error) string {
	text := []string{err.Error()}
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, c := range status.Status().Details.Causes {
			text = append(text, c.Message)
		}
	}
	return strings.Join(text, " ")
}

// giveUp is for the pods that are left at the deadline.
func (d *Drainer) giveUp(ctx context.Context, pods []corev1.Pod, r *Report) error {
	for _, s := range r.Stuck {
		d.say("pod %s is still there after %v: %s", s.Pod, d.Deadline, s.Why)
	}
	switch d.Policy {
	case Stop:
		return fmt.Errorf("node %s: %w within %v: %s", d.Node, ErrStuck, d.Deadline, r)
	case Force:
		var errs []error
		for _, p := range pods {
			err := d.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				errs = append(errs, fmt.Errorf("deleting pod %s: %w", key(&p), err))
			}
		}
		return errors.Join(errs...)
	case Skip, "":
	}
	return nil
}
