package addons

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	coretyped "k8s.io/client-go/kubernetes/typed/core/v1"
)

// recordLabel is on every record, with the kind of its source as the value.
const (
	recordLabel = "skerry.io/record"
	ofComponent = "component"
	ofManifests = "manifests"

	objectsKey = "objects"
	unitKey    = "name"
	nodeKey    = "node"
	faultKey   = "fault"
)

// ref names an object in the cluster; two are the same object when all but Version are equal.
type ref struct {
	Group     string `json:"group,omitempty"`
	Version   string `json:"version"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// key is what makes two refs the same object.
func (r ref) key() ref {
	r.Version = ""
	if r.Namespace == metav1.NamespaceDefault {
		r.Namespace = "" // which is how a file may say it
	}
	return r
}

func (r ref) String() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + name
	}
	return r.Kind + " " + name
}

// made is an object that was applied, and a digest of what was applied.
type made struct {
	ref
	Digest string `json:"digest,omitempty"`
}

// record says in the cluster what a unit has made there, so that whoever comes later can remove it: after a restart, after a
// change of the files, or on another server. It is written before an object is applied and after one is removed.
type record struct {
	kind  string // ofComponent or ofManifests
	unit  string
	node  string // whose manifests folder; empty for components, which are the cluster's
	made  []made
	fault string // what the last pass could not do

	stored string // its text as it is in the cluster
}

func (r *record) name() string {
	if r.kind == ofComponent {
		return "skerry-component-" + r.unit
	}
	// A file's name may hold what an object's may not.
	sum := sha256.Sum256([]byte(r.node + "\x00" + r.unit))
	return "skerry-manifests-" + hex.EncodeToString(sum[:8])
}

func (r *record) text() string {
	objects, err := json.Marshal(r.made)
	if err != nil {
		panic(err) // strings alone
	}
	return string(objects) + "\n" + r.fault
}

func (r *record) index(k ref) int {
	return slices.IndexFunc(r.made, func(m made) bool { return m.key() == k })
}

// records reads and writes them.
type records interface {
	list(ctx context.Context) ([]*record, error)
	save(ctx context.Context, r *record) error   // does nothing if r is as it is in the cluster
	remove(ctx context.Context, r *record) error // it has nothing left in it
}

type configMaps struct{ coretyped.ConfigMapInterface }

func newConfigMaps(client kubernetes.Interface) configMaps {
	return configMaps{client.CoreV1().ConfigMaps(metav1.NamespaceSystem)}
}

func (c configMaps) list(ctx context.Context) ([]*record, error) {
	list, err := c.List(ctx, metav1.ListOptions{LabelSelector: recordLabel})
	if err != nil {
		return nil, err
	}
	var all []*record
	for _, m := range list.Items {
		r := &record{kind: m.Labels[recordLabel], unit: m.Data[unitKey], node: m.Data[nodeKey], fault: m.Data[faultKey]}
		if err := json.Unmarshal([]byte(m.Data[objectsKey]), &r.made); err != nil || r.name() != m.Name {
			// Without it nothing is removed that it speaks of, which is the lesser evil.
			slog.Warn("manifests: a record was changed by somebody and is not used; delete it", "configmap", m.Namespace+"/"+m.Name)
			continue
		}
		r.stored = r.text()
		all = append(all, r)
	}
	return all, nil
}

func (c configMaps) save(ctx context.Context, r *record) error {
	text := r.text()
	if text == r.stored {
		return nil
	}
	objects, _, _ := strings.Cut(text, "\n")
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: r.name(), Labels: map[string]string{recordLabel: r.kind}},
		Data:       map[string]string{unitKey: r.unit, nodeKey: r.node, objectsKey: objects, faultKey: r.fault},
	}
	_, err := c.Update(ctx, m, metav1.UpdateOptions{}) // one writer each: no version to compare
	if apierrors.IsNotFound(err) {
		_, err = c.Create(ctx, m, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("%s: writing down what it made: %w", r.unit, err)
	}
	r.stored = text
	return nil
}

func (c configMaps) remove(ctx context.Context, r *record) error {
	err := c.Delete(ctx, r.name(), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return err
}
