package addons

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
)

// cluster is what a keeper does to objects.
type cluster interface {
	apply(ctx context.Context, o object) error
	serve(ctx context.Context, definition ref) error // waits until its objects can be made
	remove(ctx context.Context, r ref) error         // no error when it is not there
}

// keeper makes the cluster be as some units say: the components', or those of one server's manifests folder.
type keeper struct {
	kind    string // of its records
	node    string // of its records
	units   func() ([]unit, error)
	cluster cluster
	records records
}

// A pass works through all units in these steps, so that a unit may use what another defines.
const (
	namespaces = iota
	definitions
	others
	steps
)

func step(r ref) int {
	switch {
	case r.Kind == "Namespace" && r.Group == "":
		return namespaces
	case r.Kind == "CustomResourceDefinition":
		return definitions
	}
	return others
}

// work is a unit during one pass.
type work struct {
	unit
	*record
	objects []object
	wanted  map[ref]object
	defined []ref // applied in this step, and to be served before the next
	broken  bool  // some of its files cannot be read: what they want is not known
	faults  []error
	kept    []error // definitions that are not removed while people have objects of them
}

func (w *work) fault(err error) { w.faults = append(w.faults, err) }

// outcome is what a pass has to say of a unit.
type outcome struct {
	unit    string
	made    []made
	fault   error
	applied int
	removed []ref
}

// pass applies what is new or changed, with all also what somebody may have changed in the cluster, and removes what is no
// longer wanted. disabled says which units are to have nothing. A unit's fault keeps no other back; err means that nothing could
// be done at all.
func (k *keeper) pass(ctx context.Context, disabled func(string) bool, all bool) ([]outcome, error) {
	units, err := k.units()
	if err != nil {
		return nil, err
	}
	recorded, err := k.records.list(ctx)
	if err != nil {
		return nil, err
	}
	var mine []*work
	var foreign []*record
	for _, r := range recorded {
		if r.kind == k.kind && r.node == k.node {
			mine = append(mine, &work{record: r, unit: unit{name: r.unit}, wanted: map[ref]object{}})
		} else {
			foreign = append(foreign, r)
		}
	}
	for _, u := range units {
		i := slices.IndexFunc(mine, func(w *work) bool { return w.record.unit == u.name })
		if i < 0 {
			i = len(mine)
			mine = append(mine, &work{record: &record{kind: k.kind, node: k.node, unit: u.name}, wanted: map[ref]object{}})
		}
		mine[i].unit = u
		if !disabled(u.name) && !u.frozen {
			mine[i].load()
		}
	}
	slices.SortFunc(mine, func(a, b *work) int { return cmp.Compare(a.record.unit, b.record.unit) })
	refuseTwice(mine)

	outcomes := make([]outcome, len(mine))
	for i, w := range mine {
		outcomes[i].unit = w.record.unit
		if err := w.announce(ctx, k.records); err != nil {
			w.fault(err)
			w.objects = nil // nothing is made that is not written down
		}
	}
	for s := range steps {
		for i, w := range mine {
			outcomes[i].applied += k.apply(ctx, w, s, foreign, all)
		}
		for _, w := range mine { // they get ready side by side
			k.serve(ctx, w)
		}
	}
	for s := steps - 1; s >= 0; s-- {
		for i, w := range mine {
			outcomes[i].removed = append(outcomes[i].removed, k.prune(ctx, w, s, mine, foreign)...)
		}
	}
	for i, w := range mine {
		outcomes[i].fault, outcomes[i].made = errors.Join(w.faults...), w.made
		w.record.fault = ""
		if err := errors.Join(append(w.faults, w.kept...)...); err != nil {
			w.record.fault = err.Error()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if len(w.made) == 0 && w.record.fault == "" {
			err = k.records.remove(ctx, w.record)
		} else {
			err = k.records.save(ctx, w.record)
		}
		if err != nil {
			outcomes[i].fault = errors.Join(outcomes[i].fault, err)
		}
	}
	return outcomes, nil
}

// load reads the unit's files. One that cannot be read does not keep the others' objects back.
func (w *work) load() {
	for _, name := range w.files {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the folder was read
		}
		if err == nil && w.render != nil {
			data, err = w.render(name, data)
		}
		var objects []object
		if err == nil {
			objects, err = decode(name, data)
		}
		if err != nil {
			w.broken = true
			w.fault(err)
		}
		w.objects = append(w.objects, objects...)
	}
	for _, o := range w.objects {
		o.label(w.unit.name)
		w.wanted[o.ref().key()] = o
	}
}

// label says on the object whose it is, as well as a label can.
func (o object) label(unit string) {
	if len(validation.IsValidLabelValue(unit)) > 0 {
		unit = "manifests"
	}
	labels := o.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[AppliedLabel] = unit
	o.SetLabels(labels)
}

// refuseTwice takes an object out that two places of the files want, all but the first time.
func refuseTwice(all []*work) {
	first := map[ref]object{}
	for _, w := range all {
		w.objects = slices.DeleteFunc(w.objects, func(o object) bool {
			k := o.ref().key()
			was, twice := first[k]
			if twice {
				w.fault(fmt.Errorf("%s: %s is in %s too; this one is not applied", o.place(), o, was.place()))
				return true
			}
			first[k] = o
			return false
		})
	}
}

// announce writes down what is about to be made.
func (w *work) announce(ctx context.Context, to records) error {
	before := len(w.made)
	for _, o := range w.objects {
		if i := w.index(o.ref().key()); i < 0 {
			w.made = append(w.made, made{ref: o.ref()})
		} else {
			w.made[i].Version = o.ref().Version
		}
	}
	if len(w.made) == before {
		return nil
	}
	return to.save(ctx, w.record)
}

// apply sends one step's objects that need it, and counts them.
func (k *keeper) apply(ctx context.Context, w *work, s int, foreign []*record, all bool) (applied int) {
	for _, o := range w.objects {
		if step(o.ref()) != s || ctx.Err() != nil {
			continue
		}
		m := &w.made[w.index(o.ref().key())]
		digest := o.digest()
		changed := m.Digest != digest
		owner, other := claimed(foreign, o.ref().key())
		switch {
		case owner == nil:
		case owner.kind == ofComponent && k.kind != ofComponent:
			w.fault(fmt.Errorf("%s: %s is component %s's; to have your own, run: skerryd disable %s", o.place(), o, owner.unit, owner.unit))
			continue
		case owner.kind == ofManifests && k.kind == ofManifests && other.Digest != digest && !changed:
			continue // two servers' files differ: the one that was changed last stands
		case owner.kind == ofManifests && k.kind == ofManifests && other.Digest != digest && other.Digest != "":
			slog.Warn("manifests: two servers' files say different things; the one changed last stands", "object", o.String(), "file", o.place(), "server", owner.node)
		}
		if !changed && !all {
			continue
		}
		if err := k.cluster.apply(ctx, o); err != nil {
			if ctx.Err() == nil {
				w.fault(fmt.Errorf("%s: %s: %w", o.place(), o, err))
				m.Digest = ""
			}
			continue
		}
		m.Digest = digest
		if changed {
			applied++
			if s == definitions {
				w.defined = append(w.defined, o.ref())
			}
		}
	}
	return applied
}

func (k *keeper) serve(ctx context.Context, w *work) {
	for _, r := range w.defined {
		if err := k.cluster.serve(ctx, r); err != nil && ctx.Err() == nil {
			w.fault(fmt.Errorf("%s: %w", r, err))
		}
	}
	w.defined = nil
}

// claimed finds whose record lists an object.
func claimed(all []*record, k ref) (*record, made) {
	for _, r := range all {
		if i := r.index(k); i >= 0 {
			return r, r.made[i]
		}
	}
	return nil, made{}
}

// prune removes one step's objects that the unit made and no longer wants, unless another wants them.
func (k *keeper) prune(ctx context.Context, w *work, s int, mine []*work, foreign []*record) (removed []ref) {
	if w.frozen || w.broken {
		return nil
	}
	w.made = slices.DeleteFunc(w.made, func(m made) bool {
		if _, wanted := w.wanted[m.key()]; wanted || step(m.ref) != s || ctx.Err() != nil {
			return false
		}
		if owner, _ := claimed(foreign, m.key()); owner != nil {
			return true
		}
		if slices.ContainsFunc(mine, func(o *work) bool { _, ok := o.wanted[m.key()]; return ok }) {
			return true
		}
		if err := k.cluster.remove(ctx, m.ref); err != nil {
			err = fmt.Errorf("%s: removing it: %w", m.ref, err)
			if k.kind == ofComponent && errors.Is(err, errInUse) {
				w.kept = append(w.kept, err)
			} else {
				w.fault(err)
			}
			return false
		}
		removed = append(removed, m.ref)
		return true
	})
	return removed
}

// digest names an object's content.
func (o object) digest() string {
	data, err := json.Marshal(o.Unstructured)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}

func (o object) ref() ref {
	kind := o.GroupVersionKind()
	return ref{Group: kind.Group, Version: kind.Version, Kind: kind.Kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (o object) place() string { return fmt.Sprintf("%s:%d", o.file, o.line) }
