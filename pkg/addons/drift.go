package addons

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// AppliedLabel is on every object that was applied from a file; its value is the component, folder or file.
const AppliedLabel = "skerry.io/applied-by"

// driftPause is how soon a change by somebody else is looked at. It doubles while such changes go on, up to the interval at which
// everything is looked at anyway: some controllers write all the time.
const driftPause = time.Second

// drift watches what was applied for changes that did not come from here: only the metadata, and only of labelled objects.
type drift struct {
	client  metadata.Interface
	changed func()

	mu       sync.Mutex
	watching map[schema.GroupVersionResource]func() // stops it
	all      sync.WaitGroup
}

func newDrift(config *rest.Config, changed func()) (*drift, error) {
	client, err := metadata.NewForConfig(config)
	return &drift{client: client, changed: changed, watching: map[schema.GroupVersionResource]func(){}}, err
}

// follow watches these kinds from now on, and no others.
func (d *drift) follow(ctx context.Context, kinds map[schema.GroupVersionResource]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for kind, stop := range d.watching {
		if !kinds[kind] {
			stop()
			delete(d.watching, kind)
		}
	}
	for kind := range kinds {
		if d.watching[kind] == nil {
			var watch context.Context
			watch, d.watching[kind] = context.WithCancel(ctx)
			d.all.Go(func() { d.watch(watch, kind) })
		}
	}
}

func (d *drift) watch(ctx context.Context, kind schema.GroupVersionResource) {
	informer := metadatainformer.NewFilteredMetadataInformer(d.client, kind, metav1.NamespaceAll, 0, cache.Indexers{},
		func(o *metav1.ListOptions) { o.LabelSelector = AppliedLabel }).Informer()
	_ = informer.SetTransform(bare) // only a started informer refuses
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(a, b any) {
			before, ok := a.(*metav1.PartialObjectMetadata)
			after, ok2 := b.(*metav1.PartialObjectMetadata)
			// A status alone does not change the generation, where a kind has one.
			if ok && ok2 && before.ResourceVersion != after.ResourceVersion && (after.Generation == 0 || before.Generation != after.Generation) {
				d.changed()
			}
		},
		DeleteFunc: func(any) { d.changed() },
	})
	informer.RunWithContext(ctx)
}

// bare keeps of an object what says whether it has changed.
func bare(object any) (any, error) {
	if o, ok := object.(*metav1.PartialObjectMetadata); ok {
		o.ObjectMeta = metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Generation: o.Generation}
	}
	return object, nil
}

// wait is for the end of all watches, after ctx has ended.
func (d *drift) wait() { d.all.Wait() }
