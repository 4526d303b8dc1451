package localstorage

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// k3sNode is the annotation of a volume that names its node.
const k3sNode = "local.path.provisioner/selected-node"

// reclaim takes a volume that nobody claims any more one step further.
func (p *provisioner) reclaim(ctx context.Context, v *corev1.PersistentVolume, nodes map[string]*corev1.Node, wanted map[string]*request, reports map[string]*report) error {
	if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		if v.DeletionTimestamp != nil && slices.Contains(v.Finalizers, finalizer) {
			return release(ctx, p.Client, v) // its folder is kept
		}
		return nil
	}
	if v.Status.Phase != corev1.VolumeReleased && (v.DeletionTimestamp == nil || v.Status.Phase == corev1.VolumeBound) {
		return nil
	}
	name, path := nodeOf(v), pathOf(v)
	node := nodes[name]
	if node == nil {
		p.warn(v, "VolumeNodeGone", "node %s is gone, and its folder %s with it or out of reach; the volume is deleted", name, path)
		return p.delete(ctx, v)
	}
	folder, r := filepath.Base(path), reports[name]
	if !isFolder(folder) {
		p.warn(v, "VolumeFailedDelete", "%s on node %s was not made by this provisioner; remove it there, then delete the volume", path, name)
		return nil
	}
	// The informer's word is not enough to remove data for: the volume may have been given to another claim since.
	if !slices.Contains(r.Removed, folder) {
		now, err := p.Client.CoreV1().PersistentVolumes().Get(ctx, v.Name, metav1.GetOptions{})
		if err != nil {
			return ignoreNotFound(err)
		}
		if now.UID != v.UID || now.Status.Phase == corev1.VolumeBound || now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete ||
			now.Status.Phase != corev1.VolumeReleased && now.DeletionTimestamp == nil {
			return nil
		}
		wanted[name].Remove = add(wanted[name].Remove, folder)
		if why, ok := r.Failed[folder]; ok {
			p.warn(v, "VolumeFailedDelete", "node %s: %s", name, why)
		}
		return nil
	}
	if r.Root != filepath.Dir(path) {
		p.warn(v, "VolumeFailedDelete", "%s is not where node %s keeps volumes now (%s); remove it there, then delete the volume", path, name, r.Root)
		if v.DeletionTimestamp == nil {
			return nil
		}
	}
	return p.delete(ctx, v)
}

func (p *provisioner) delete(ctx context.Context, v *corev1.PersistentVolume) error {
	if slices.Contains(v.Finalizers, finalizer) {
		if err := release(ctx, p.Client, v); err != nil {
			return err
		}
	}
	return ignoreNotFound(p.Client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &v.UID}}))
}

// release takes our finalizer from a volume, and leaves the others'.
func release(ctx context.Context, client kubernetes.Interface, v *corev1.PersistentVolume) error {
	rest := slices.DeleteFunc(slices.Clone(v.Finalizers), func(f string) bool { return f == finalizer })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": rest, "resourceVersion": v.ResourceVersion}})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func pathOf(v *corev1.PersistentVolume) string {
	switch {
	case v.Spec.Local != nil:
		return v.Spec.Local.Path
	case v.Spec.HostPath != nil:
		return v.Spec.HostPath.Path
	}
	return ""
}

// nodeOf is the node of a volume: the annotation, or for volumes made before it existed the only host that its affinity allows.
func nodeOf(v *corev1.PersistentVolume) string {
	if n := v.Annotations[k3sNode]; n != "" {
		return n
	}
	if a := v.Spec.NodeAffinity; a != nil && a.Required != nil {
		for _, t := range a.Required.NodeSelectorTerms {
			for _, e := range t.MatchExpressions {
				if e.Key == corev1.LabelHostname && len(e.Values) == 1 {
					return e.Values[0]
				}
			}
		}
	}
	return ""
}
