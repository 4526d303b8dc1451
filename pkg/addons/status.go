package addons

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Status is what there is to say of a cluster's nodes and components.
type Status struct {
	Ready      bool              `json:"ready"` // all nodes and all enabled components are
	Nodes      []NodeStatus      `json:"nodes"`
	Components []ComponentStatus `json:"components"`
}

// NodeStatus is one node's.
type NodeStatus struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"`
}

// ComponentStatus is one component's: of the release, or a person's own in a manifests folder.
type ComponentStatus struct {
	Name       string `json:"name"`
	Source     string `json:"source"` // "release", or "manifests on <node>"
	Enabled    bool   `json:"enabled"`
	DisabledBy string `json:"disabledBy,omitempty"` // "--disable" or "skerryd disable"
	Ready      bool   `json:"ready"`
	Objects    int    `json:"objects"`
	Message    string `json:"message,omitempty"`
}

// Reader asks for Statuses.
type Reader struct {
	client  kubernetes.Interface
	objects *applier
}

// NewReader makes one of a client configuration.
func NewReader(config *rest.Config) (*Reader, error) {
	client, err := newClient(config)
	if err != nil {
		return nil, err
	}
	objects, err := newApplier(config)
	return &Reader{client: client, objects: objects}, err
}

// Client is what the Reader reads with.
func (r *Reader) Client() kubernetes.Interface { return r.client }

// Status asks the API about everything.
func (r *Reader) Status(ctx context.Context) (*Status, error) {
	s := &Status{Ready: true}
	nodes, err := r.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		s.Nodes = append(s.Nodes, nodeStatus(n))
	}
	if s.Components, err = r.components(ctx); err != nil {
		return nil, err
	}
	s.Ready = len(s.Nodes) > 0 && !slices.ContainsFunc(s.Nodes, func(n NodeStatus) bool { return !n.Ready }) &&
		!slices.ContainsFunc(s.Components, func(c ComponentStatus) bool { return c.Enabled && !c.Ready })
	return s, nil
}

// Waiting says what is not ready yet, in one line.
func (s *Status) Waiting() string {
	var all []string
	if len(s.Nodes) == 0 {
		all = append(all, "no node has registered")
	}
	for _, n := range s.Nodes {
		if !n.Ready {
			all = append(all, strings.TrimSuffix("node "+n.Name+": "+n.Message, ": "))
		}
	}
	for _, c := range s.Components {
		if c.Enabled && !c.Ready {
			all = append(all, strings.TrimSuffix(c.Name+": "+c.Message, ": "))
		}
	}
	return strings.Join(all, "; ")
}

func nodeStatus(n corev1.Node) NodeStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return NodeStatus{Name: n.Name, Ready: true}
			}
			return NodeStatus{Name: n.Name, Message: c.Message}
		}
	}
	return NodeStatus{Name: n.Name, Message: "has not reported"}
}

func (r *Reader) components(ctx context.Context) ([]ComponentStatus, error) {
	state, err := ReadState(ctx, r.client)
	if err != nil {
		return nil, err
	}
	records, err := newConfigMaps(r.client).list(ctx)
	if err != nil {
		return nil, err
	}
	var all []ComponentStatus
	for _, name := range state.Known {
		i := slices.IndexFunc(records, func(rec *record) bool { return rec.kind == ofComponent && rec.unit == name })
		c := ComponentStatus{Name: name, Source: "release", Enabled: !state.Off(name)}
		switch {
		case i >= 0:
			r.judge(ctx, &c, records[i])
		case slices.Contains(state.InProcess, name):
			c.Ready = c.Enabled
		case c.Enabled:
			c.Message = "not applied yet"
		}
		all = append(all, c)
	}
	for _, rec := range records {
		if essential(rec.unit) || rec.kind == ofComponent && slices.Contains(state.Known, rec.unit) {
			continue
		}
		c := ComponentStatus{Name: rec.unit, Source: "release before", Enabled: !state.Off(rec.unit)}
		if rec.kind == ofManifests {
			c.Source = "manifests on " + rec.node
		}
		r.judge(ctx, &c, rec)
		all = append(all, c)
	}
	for i := range all {
		switch {
		case slices.Contains(state.ByFlag, all[i].Name):
			all[i].DisabledBy = "--disable"
		case slices.Contains(state.Disabled, all[i].Name):
			all[i].DisabledBy = "skerryd disable"
		}
	}
	return all, nil
}

// judge fills in whether what a component made is ready.
func (r *Reader) judge(ctx context.Context, c *ComponentStatus, rec *record) {
	c.Objects = len(rec.made)
	var waiting []string
	if rec.fault != "" {
		waiting = append(waiting, strings.ReplaceAll(rec.fault, "\n", "; "))
	}
	if !c.Enabled {
		if len(rec.made) > 0 {
			waiting = append(waiting, fmt.Sprintf("%d objects are still there", len(rec.made)))
		}
		c.Message = strings.Join(waiting, "; ")
		return
	}
	for _, m := range rec.made {
		if m.Digest == "" {
			if rec.fault == "" {
				waiting = append(waiting, m.String()+" is not applied yet")
			}
			continue
		}
		if why := r.notReady(ctx, m.ref); why != "" {
			waiting = append(waiting, m.String()+": "+why)
		}
	}
	c.Ready, c.Message = len(waiting) == 0, strings.Join(waiting, "; ")
}

// notReady says why an object does not serve yet; most kinds serve once they are there.
func (r *Reader) notReady(ctx context.Context, o ref) string {
	switch o.Kind {
	case "Deployment", "DaemonSet", "StatefulSet", "Job", "Pod", "APIService", "CustomResourceDefinition", "HelmChart":
	default:
		return ""
	}
	resource, err := r.objects.resource(o)
	if meta.IsNoMatchError(err) {
		return "no API has this kind"
	}
	if err != nil {
		return err.Error()
	}
	u, err := resource.Get(ctx, o.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "is gone; it is applied again within minutes"
	}
	if err != nil {
		return err.Error()
	}
	result, err := status.Compute(u)
	switch {
	case err != nil:
		return err.Error()
	case result.Status == status.CurrentStatus:
		return ""
	case result.Message == "":
		return string(result.Status)
	}
	return result.Message
}
