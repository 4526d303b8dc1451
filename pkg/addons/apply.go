package addons

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// fieldManager owns the fields of what was applied from files.
const fieldManager = "skerry"

// establishing is how long an API server may take to serve a new definition before its objects are tried again later.
const establishing = 10 * time.Second

// applier sends objects to the API.
type applier struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func newApplier(config *rest.Config) (*applier, error) {
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &applier{dynamic: dyn, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

func (a *applier) mapping(r ref) (*meta.RESTMapping, error) {
	kind := schema.GroupKind{Group: r.Group, Kind: r.Kind}
	mapping, err := a.mapper.RESTMapping(kind, r.Version)
	if meta.IsNoMatchError(err) {
		a.mapper.Reset() // its definition may have been applied a moment ago
		mapping, err = a.mapper.RESTMapping(kind, r.Version)
	}
	return mapping, err
}

// resource is where objects of a kind are kept.
func (a *applier) resource(r ref) (dynamic.ResourceInterface, error) {
	mapping, err := a.mapping(r)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return a.dynamic.Resource(mapping.Resource), nil
	}
	namespace := r.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return a.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}

func (a *applier) apply(ctx context.Context, o object) error {
	resource, err := a.resource(o.ref())
	if meta.IsNoMatchError(err) {
		return fmt.Errorf("no API here has this kind (%s); install its definition first", o.GetAPIVersion())
	}
	if err != nil {
		return err
	}
	data, err := json.Marshal(o.Unstructured)
	if err != nil {
		return err
	}
	force := true // a file in this folder says how it shall be
	_, err = resource.Patch(ctx, o.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	return err
}

func (a *applier) serve(ctx context.Context, r ref) error {
	resource, err := a.resource(r)
	if err != nil {
		return err
	}
	return established(ctx, resource, r.Name)
}

// established waits until the objects of a definition can be made.
func established(ctx context.Context, definitions dynamic.ResourceInterface, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, establishing, true, func(ctx context.Context) (bool, error) {
		o, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		return slices.ContainsFunc(conditions, func(c any) bool {
			m, ok := c.(map[string]any)
			return ok && m["type"] == "Established" && m["status"] == "True"
		}), nil
	})
	if wait.Interrupted(err) {
		return fmt.Errorf("the API does not serve it after %s", establishing)
	}
	return err
}

// remove deletes an object and what belongs to it. A definition stays while objects of it are there: they are a person's.
func (a *applier) remove(ctx context.Context, r ref) error {
	resource, err := a.resource(r)
	if meta.IsNoMatchError(err) {
		return nil // with its definition went all of its objects
	}
	if err != nil {
		return err
	}
	switch step(r) {
	case namespaces:
		if slices.Contains([]string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, "kube-node-lease"}, r.Name) {
			return nil
		}
	case definitions:
		if err := a.unused(ctx, resource, r.Name); err != nil {
			return err
		}
	}
	background := metav1.DeletePropagationBackground
	err = resource.Delete(ctx, r.Name, metav1.DeleteOptions{PropagationPolicy: &background})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return err
}

var errInUse = errors.New("objects of this kind are there; delete them and it goes too")

// unused is nil when there is no object of a definition.
func (a *applier) unused(ctx context.Context, definitions dynamic.ResourceInterface, name string) error {
	o, err := definitions.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
	versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
	for _, v := range versions {
		m, ok := v.(map[string]any)
		if !ok || m["served"] != true {
			continue
		}
		version, _ := m["name"].(string)
		list, err := a.dynamic.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural}).
			List(ctx, metav1.ListOptions{Limit: 1})
		if apierrors.IsNotFound(err) {
			continue // defined, but not served yet
		}
		if err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return errInUse
		}
	}
	return nil
}
