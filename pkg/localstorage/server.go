package localstorage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skerry-os/skerry/pkg/controllers"
)

const (
	// finalizer keeps a volume until its folder is gone.
	finalizer = "local-storage.skerry.io/folder"

	selectedNode    = "volume.kubernetes.io/selected-node"
	provisionerMark = "volume.kubernetes.io/storage-provisioner"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	volumeType      = "volumeType" // K3s's annotation of a claim
)

// Controller is the server's half.
func Controller() controllers.Controller {
	return controllers.Controller{Name: Name, Run: run, Clean: clean}
}

type provisioner struct {
	*controllers.Kit
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
	told    map[types.UID]string // object -> the warning it has had last
}

func run(ctx context.Context, k *controllers.Kit) error {
	core := k.Informers.Core().V1()
	classes := k.Informers.Storage().V1().StorageClasses()
	p := &provisioner{
		Kit: k, claims: core.PersistentVolumeClaims().Lister(), volumes: core.PersistentVolumes().Lister(), nodes: core.Nodes().Lister(),
		classes: classes.Lister(), told: map[types.UID]string{},
	}
	return k.Loop(ctx, controllers.Loop{
		What: "volumes", On: []cache.SharedIndexInformer{core.PersistentVolumeClaims().Informer(), core.PersistentVolumes().Informer(), core.Nodes().Informer(), classes.Informer()},
		Settle: 20 * time.Millisecond, Retry: 15 * time.Second,
		Same: func(before, now *corev1.Node) bool { return maps.Equal(before.Annotations, now.Annotations) },
		Pass: func(ctx context.Context) (time.Duration, error) { return 0, p.pass(ctx) },
	})
}

// pass goes over all claims and volumes and leaves each node asked for what is missing there.
func (p *provisioner) pass(ctx context.Context) error {
	claims, err1 := p.claims.List(labels.Everything())
	volumes, err2 := p.volumes.List(labels.Everything())
	nodes, err3 := p.nodes.List(labels.Everything())
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var faults []error
	wanted := map[string]*request{}
	reports := map[string]*report{}
	byName := map[string]*corev1.Node{}
	for _, n := range nodes {
		byName[n.Name], wanted[n.Name], reports[n.Name] = n, &request{}, &report{}
		readAnnotation(n, reportAnnotation, reports[n.Name])
	}
	pending := map[string]bool{}
	for _, claim := range claims {
		if !isPending(claim) {
			continue
		}
		pending[folderOf(claim)] = true
		if err := p.provision(ctx, claim, byName, wanted, reports); err != nil {
			faults = append(faults, fmt.Errorf("claim %s/%s: %w", claim.Namespace, claim.Name, err))
		}
	}
	for _, v := range volumes {
		if v.Annotations[provisionedBy] != Provisioner {
			continue
		}
		if err := p.reclaim(ctx, v, byName, wanted, reports); err != nil {
			faults = append(faults, fmt.Errorf("volume %s: %w", v.Name, err))
		}
	}
	for _, n := range nodes {
		if err := p.ask(ctx, n, wanted[n.Name], reports[n.Name], pending); err != nil {
			faults = append(faults, fmt.Errorf("node %s: %w", n.Name, err))
		}
	}
	return errors.Join(faults...)
}

// isPending says whether a claim waits for this provisioner, and for a node that has been chosen.
func isPending(c *corev1.PersistentVolumeClaim) bool {
	return c.Spec.VolumeName == "" && c.DeletionTimestamp == nil && c.Annotations[provisionerMark] == Provisioner
}

// ask tells a node what to do, if that is news.
func (p *provisioner) ask(ctx context.Context, n *corev1.Node, w *request, r *report, pending map[string]bool) error {
	var asked request
	readAnnotation(n, requestAnnotation, &asked)
	// What was asked for and is wanted no more was for claims that are gone, unless the volume has been made.
	for _, f := range slices.Concat(asked.Make, asked.Remove) {
		if pending[f] || slices.Contains(w.Make, f) || slices.Contains(w.Remove, f) || slices.Contains(r.Removed, f) {
			continue
		}
		orphan, err := p.orphan(ctx, f)
		if err != nil {
			return err
		}
		if orphan {
			w.Remove = add(w.Remove, f)
		}
	}
	slices.Sort(w.Make)
	slices.Sort(w.Remove)
	w.Make, w.Remove = w.Make[:min(len(w.Make), most)], w.Remove[:min(len(w.Remove), most)]
	if slices.Equal(w.Make, asked.Make) && slices.Equal(w.Remove, asked.Remove) {
		return nil
	}
	patch, err := annotate(requestAnnotation, w, len(w.Make)+len(w.Remove) == 0)
	if err != nil {
		return err
	}
	_, err = p.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// orphan says whether a folder was made, or was to be, for a volume that does not exist. It asks the API itself: what the informers
// know may be from before the volume was made.
func (p *provisioner) orphan(ctx context.Context, folder string) (bool, error) {
	const uid = len("pvc-") + 36
	if !isFolder(folder) || len(folder) < uid {
		return false, nil
	}
	_, err := p.Client.CoreV1().PersistentVolumes().Get(ctx, folder[:uid], metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err // one that exists is reclaim's business
}

// warn makes an event, once for each text.
func (p *provisioner) warn(o metav1.Object, reason, format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if p.told[o.GetUID()] == text {
		return
	}
	if len(p.told) > 1000 {
		clear(p.told)
	}
	p.told[o.GetUID()] = text
	switch o := o.(type) {
	case *corev1.PersistentVolumeClaim:
		p.Events.Event(o, corev1.EventTypeWarning, reason, text)
	case *corev1.PersistentVolume:
		p.Events.Event(o, corev1.EventTypeWarning, reason, text)
	}
}

// provision takes a claim one step further.
func (p *provisioner) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, nodes map[string]*corev1.Node, wanted map[string]*request, reports map[string]*report) error {
	class, err := p.class(claim)
	if err != nil {
		return err
	}
	if class == nil {
		return nil
	}
	if why := refuse(claim); why != "" {
		p.warn(claim, "ProvisioningFailed", "%s", why)
		return nil
	}
	name := claim.Annotations[selectedNode]
	node := nodes[name]
	if node == nil {
		p.warn(claim, "ProvisioningFailed", "node %s is gone; another is chosen", name)
		patch := []byte(`{"metadata":{"annotations":{"` + selectedNode + `":null}}}`)
		_, err := p.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	folder, r := folderOf(claim), reports[name]
	if !slices.Contains(r.Made, folder) {
		wanted[name].Make = add(wanted[name].Make, folder)
		if why, ok := r.Failed[folder]; ok {
			p.warn(claim, "ProvisioningFailed", "node %s: %s", name, why)
		}
		return nil
	}
	v := volume(claim, class, node, filepath.Join(r.Root, folder))
	_, err = p.Client.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil // it was made a moment ago
	case err != nil:
		wanted[name].Make = add(wanted[name].Make, folder)
		return err
	}
	p.Events.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Made volume %s on node %s", v.Name, name)
	return nil
}

func (p *provisioner) class(claim *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	if claim.Spec.StorageClassName == nil {
		return nil, nil
	}
	class, err := p.classes.Get(*claim.Spec.StorageClassName)
	if apierrors.IsNotFound(err) || err == nil && class.Provisioner != Provisioner {
		return nil, nil
	}
	return class, err
}

// refuse says why a claim cannot be had, "" if it can.
func refuse(claim *corev1.PersistentVolumeClaim) string {
	switch s := claim.Spec; {
	case s.VolumeMode != nil && *s.VolumeMode == corev1.PersistentVolumeBlock:
		return "volumeMode Block: local-path makes folders, not devices"
	case slices.ContainsFunc(s.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
	}):
		return "local-path volumes are on one node: ask for accessModes ReadWriteOnce or ReadWriteOncePod"
	case s.Selector != nil:
		return "local-path volumes are made for a claim, and a selector chooses among others: leave it out"
	case s.DataSource != nil || s.DataSourceRef != nil:
		return "local-path cannot fill a volume from another or from a snapshot"
	case claim.Annotations[selectedNode] == "":
		return "no node is chosen: the StorageClass needs volumeBindingMode WaitForFirstConsumer"
	}
	return ""
}

func volume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node, path string) *corev1.PersistentVolume {
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		host = node.Name
	}
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        volumeOf(claim),
			Annotations: map[string]string{provisionedBy: Provisioner, k3sNode: node.Name},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			MountOptions:                  class.MountOptions,
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}
	if claim.Annotations[volumeType] == "hostPath" {
		kind := corev1.HostPathDirectoryOrCreate
		v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}
	}
	if class.ReclaimPolicy != nil {
		v.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		v.Finalizers = []string{finalizer}
	}
	return v
}

// clean lets volumes go that would wait for a node's half in vain, now that nobody asks it.
func clean(ctx context.Context, client kubernetes.Interface) error {
	list, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range list.Items {
		if !slices.Contains(v.Finalizers, finalizer) {
			continue
		}
		if err := release(ctx, client, &v); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}
