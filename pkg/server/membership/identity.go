package membership

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skerry-os/skerry/pkg/join"
)

// Record is what is kept of a node name: whose it is, and who else wants it.
type Record struct {
	Node     string        `json:"node"`
	Machine  join.Machine  `json:"machine"`
	Joined   string        `json:"joined,omitempty"`
	Pending  *join.Machine `json:"pending,omitempty"` // another machine that asked for the name
	Since    string        `json:"since,omitempty"`   // when it last did
	Approved string        `json:"approved,omitempty"`
	Removed  bool          `json:"removed,omitempty"`

	// Authority names that of the node's certificates (see pki.Name).
	Authority string `json:"authority,omitempty"`
}

const (
	recordSuffix = ".skerry-node"
	recordType   = corev1.SecretType("skerry.io/node")
	alive        = time.Minute // after a node's last sign of life; kubelets give one every ten seconds

	// Always is the policy by which a dead machine's name goes to the next that asks.
	Always = "always"
	// Approve is the one by which a person decides.
	Approve = "approve"
)

var recordKeys = []string{"machine", "description", "joined", "pending", "pending-description", "pending-since", "approved", "removed", "authority"}

func (r *Record) fields() []string {
	pending := join.Machine{}
	if r.Pending != nil {
		pending = *r.Pending
	}
	removed := ""
	if r.Removed {
		removed = "true"
	}
	return []string{r.Machine.ID, r.Machine.Description, r.Joined, pending.ID, pending.Description, r.Since, r.Approved, removed, r.Authority}
}

func (r *Record) write(s *corev1.Secret) {
	s.Type, s.Data = recordType, map[string][]byte{}
	for i, v := range r.fields() {
		if v != "" {
			s.Data[recordKeys[i]] = []byte(v)
		}
	}
}

func readRecord(s *corev1.Secret) *Record {
	get := func(i int) string { return string(s.Data[recordKeys[i]]) }
	r := &Record{
		Node:    strings.TrimSuffix(s.Name, recordSuffix),
		Machine: join.Machine{ID: get(0), Description: get(1)}, Joined: get(2), Since: get(5), Approved: get(6), Removed: get(7) != "", Authority: get(8),
	}
	if get(3) != "" {
		r.Pending = &join.Machine{ID: get(3), Description: get(4)}
	}
	return r
}

// Records reads what is kept of every node.
func Records(ctx context.Context, client kubernetes.Interface) ([]Record, error) {
	list, err := client.CoreV1().Secrets(kubeSystem).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(recordType)})
	if err != nil {
		return nil, err
	}
	var out []Record
	for i := range list.Items {
		if s := &list.Items[i]; s.Type == recordType {
			out = append(out, *readRecord(s))
		}
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Node, b.Node) })
	return out, nil
}

// change reads a node's record, lets f change it, and writes it, again and again while others do the same. f may refuse.
func change(ctx context.Context, client kubernetes.Interface, node string, f func(r *Record, fresh bool) (write bool, err error)) error {
	api := client.CoreV1().Secrets(kubeSystem)
	for {
		s, err := api.Get(ctx, node+recordSuffix, metav1.GetOptions{})
		fresh := apierrors.IsNotFound(err)
		if err != nil && !fresh {
			return err
		}
		if fresh {
			s = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: node + recordSuffix, Namespace: kubeSystem}}
		}
		r := readRecord(s)
		write, no := f(r, fresh)
		if write {
			r.write(s)
			if fresh {
				_, err = api.Create(ctx, s, metav1.CreateOptions{})
			} else {
				_, err = api.Update(ctx, s, metav1.UpdateOptions{})
			}
			if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
				continue
			}
			if err != nil {
				return err
			}
		}
		return no
	}
}

// claim gives the node's name to the machine, or says why not.
func (m *Members) claim(ctx context.Context, client kubernetes.Interface, c join.Caller, r join.Request) error {
	if r.Node == "kubernetes" || r.Node == "localhost" || r.Node == "" || strings.HasPrefix(r.Node, "kubernetes.") {
		return refuse(http.StatusBadRequest, false, "%q cannot be the name of a node; set --node-name", r.Node)
	}
	if r.Machine.ID == "" {
		return refuse(http.StatusBadRequest, false, "the node does not say which machine it is")
	}
	now := time.Now().UTC().Format(timeLayout)
	authority, err := m.authority()
	if err != nil {
		return err
	}
	was, replaced := join.Machine{}, false
	err = change(ctx, client, r.Node, func(rec *Record, fresh bool) (bool, error) {
		if rec.Removed && c.Secret == nil {
			return false, errRemoved(r.Node)
		}
		if !fresh && !rec.Removed && c.Secret != nil && rec.Machine.ID == r.Machine.ID && rec.Machine.Description != r.Machine.Description {
			// A machine that comes again with a new disk is not alive, or will not be in a minute.
			is, err := isAlive(ctx, client, r.Node)
			if err != nil {
				return false, err
			}
			if is {
				return false, refuse(http.StatusConflict, true, "node %s is alive: machine %s; this machine, %s, has the same id and is a copy of it: "+
					"remove /etc/machine-id, and give it another --node-name", r.Node, describe(rec.Machine), describe(r.Machine))
			}
		}
		if fresh || rec.Removed || rec.Machine.ID == r.Machine.ID {
			known := !fresh && !rec.Removed
			same := known && rec.Machine == r.Machine && rec.Pending == nil && rec.Authority == authority
			joined := now
			if known && rec.Joined != "" && c.Secret == nil {
				joined = rec.Joined
			}
			*rec = Record{Machine: r.Machine, Joined: joined, Authority: authority}
			return !same, nil
		}
		is, err := isAlive(ctx, client, r.Node)
		if err != nil {
			return false, err
		}
		was, replaced = rec.Machine, false
		rec.Pending, rec.Since = &join.Machine{ID: r.Machine.ID, Description: r.Machine.Description}, now
		if is {
			return true, refuse(http.StatusConflict, true, "the node name %s belongs to machine %s, which is alive; this is machine %s: give it another --node-name",
				r.Node, describe(rec.Machine), describe(r.Machine))
		}
		if m.cfg.Replace != Always && rec.Approved != r.Machine.ID && rec.Approved != anyMachine {
			return true, refuse(http.StatusConflict, true, "the node name %s belongs to machine %s, which is not alive; this is machine %s: if it takes the other's place, "+
				"run skerryd node approve %s on a server", r.Node, describe(rec.Machine), describe(r.Machine), r.Node)
		}
		replaced = true
		*rec = Record{Machine: r.Machine, Joined: now, Authority: authority}
		return true, nil
	})
	if err == nil && replaced {
		m.event(ctx, client, r.Node, corev1.EventTypeNormal, "NodeReplaced", fmt.Sprintf("machine %s took the place of %s", describe(r.Machine), describe(was)))
	}
	return err
}

func errRemoved(node string) error {
	return refuse(http.StatusForbidden, false, "node %s was removed from the cluster; to take it in again, delete agent/join.json in its data folder and give it a token", node)
}

// errServerRemoved ends a server that was removed. It has the cluster's keys, and stays away because it is told to.
func errServerRemoved(node string) error {
	return fmt.Errorf("node %s was removed from the cluster; to take it in again, remove server and agent from its data folder, and start it with --server and a token", node)
}

// othersAlive says whether the cluster has another server that works.
func othersAlive(ctx context.Context, client kubernetes.Interface, self string) (bool, error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "node-role.kubernetes.io/control-plane"})
	if err != nil {
		return false, err
	}
	for _, n := range nodes.Items {
		if n.Name == self {
			continue
		}
		if is, err := isAlive(ctx, client, n.Name); err != nil || is {
			return is, err
		}
	}
	return false, nil
}

// describe names a machine so that a person finds it.
func describe(m join.Machine) string {
	id := m.ID[:min(len(m.ID), 12)]
	if m.Description == "" {
		return id
	}
	return id + " (" + m.Description + ")"
}

// isAlive says whether a node was heard of lately.
func isAlive(ctx context.Context, client kubernetes.Interface, node string) (bool, error) {
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("the API is not ready: %w", err)
	}
	return lease.Spec.RenewTime != nil && time.Since(lease.Spec.RenewTime.Time) < alive, nil
}

func (m *Members) event(ctx context.Context, client kubernetes.Interface, node, kind, reason, message string) {
	now := metav1.Now()
	_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", node, now.UnixNano()), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: node, APIVersion: "v1"},
		Type:           kind, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1, Source: corev1.EventSource{Component: "skerry", Host: m.cfg.NodeName},
	}, metav1.CreateOptions{})
	if err != nil {
		slog.Warn("an event was not recorded", "reason", reason, "err", err)
	}
}

// anyMachine approves whichever asks next.
const anyMachine = "*"

// ApproveNode lets the machine that asked for a node's name have it, or whichever asks next if none has.
func ApproveNode(ctx context.Context, client kubernetes.Interface, node string) (Record, error) {
	var out Record
	err := change(ctx, client, node, func(r *Record, fresh bool) (bool, error) {
		if fresh {
			return false, fmt.Errorf("no node %s has joined; skerryd node list shows those that have", node)
		}
		r.Approved = anyMachine
		if r.Pending != nil {
			r.Approved = r.Pending.ID
		}
		out = *r
		return true, nil
	})
	return out, err
}

// RemoveNode takes a node out of the cluster: its certificates open nothing any more and are not renewed, and its Node object goes.
func RemoveNode(ctx context.Context, client kubernetes.Interface, node string) error {
	err := change(ctx, client, node, func(r *Record, fresh bool) (bool, error) {
		if fresh {
			return false, fmt.Errorf("no node %s has joined; skerryd node list shows those that have", node)
		}
		*r = Record{Machine: r.Machine, Joined: r.Joined, Removed: true}
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := deleteTokensOf(ctx, client, node); err != nil {
		return err
	}
	if err := client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}
