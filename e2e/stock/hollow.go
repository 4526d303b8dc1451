package stock

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// Hollow is an agent as the API sees it, without a machine: a Node that is Ready, a lease renewed every ten seconds, a status
// every minute, and the watches that kubelet and kube-proxy hold open. It runs until ctx ends; c is a connection of its own.
func Hollow(ctx context.Context, c kubernetes.Interface, name string, up func()) error {
	_, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}},
		// Nothing is to be scheduled where nothing runs.
		Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: "hollow", Effect: corev1.TaintEffectNoExecute}}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%s: %w", name, err)
	}
	seconds := int32(40)
	lease, err := c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Now()}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	own := func(field string) metav1.ListOptions { return metav1.ListOptions{FieldSelector: field + "=" + name} }
	var watches sync.WaitGroup
	defer watches.Wait()
	for _, open := range []func() (watch.Interface, error){
		func() (watch.Interface, error) { return c.CoreV1().Pods("").Watch(ctx, own("spec.nodeName")) },
		func() (watch.Interface, error) { return c.CoreV1().Nodes().Watch(ctx, own("metadata.name")) },
		func() (watch.Interface, error) { return c.CoreV1().Nodes().Watch(ctx, own("metadata.name")) }, // kube-proxy's
		func() (watch.Interface, error) { return c.CoreV1().Services("").Watch(ctx, metav1.ListOptions{}) },
		func() (watch.Interface, error) { return c.CoreV1().Services("").Watch(ctx, metav1.ListOptions{}) },
		func() (watch.Interface, error) {
			return c.DiscoveryV1().EndpointSlices("").Watch(ctx, metav1.ListOptions{})
		},
		func() (watch.Interface, error) {
			return c.NetworkingV1().ServiceCIDRs().Watch(ctx, metav1.ListOptions{})
		},
		func() (watch.Interface, error) { return c.NodeV1().RuntimeClasses().Watch(ctx, metav1.ListOptions{}) },
		func() (watch.Interface, error) { return c.StorageV1().CSIDrivers().Watch(ctx, metav1.ListOptions{}) },
	} {
		watches.Go(func() {
			for ctx.Err() == nil {
				if w, err := open(); err == nil {
					for range w.ResultChan() { // an end of the channel is the server's usual end of a watch
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	up()
	for beat := 0; ; beat++ {
		if beat%6 == 0 {
			// Where somebody taints the node between question and answer, the stale copy is refused as one that changes taints.
			stale := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsForbidden(err) }
			err := retry.OnError(retry.DefaultRetry, stale, func() error { return report(ctx, c, name) })
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
		lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		if renewed, err := c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Update(ctx, lease, metav1.UpdateOptions{}); err == nil {
			lease = renewed
		} else if ctx.Err() == nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// report is a node's status, of the size that kubelet's has on a machine with few images.
func report(ctx context.Context, c kubernetes.Interface, name string) error {
	node, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	node.Status.Conditions = nil
	for kind, status := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeMemoryPressure: corev1.ConditionFalse, corev1.NodeDiskPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
	} {
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
			Type: kind, Status: status, LastHeartbeatTime: now, LastTransitionTime: now, Reason: "KubeletReports", Message: "kubelet is posting ready status",
		})
	}
	node.Status.NodeInfo = corev1.NodeSystemInfo{MachineID: name, KubeletVersion: "v1.37.2", OperatingSystem: "linux", Architecture: "arm64", ContainerRuntimeVersion: "containerd://2.4.2"}
	node.Status.Images = nil
	for i := range 5 {
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/component-%d:1.0.0", i)}, SizeBytes: 10 << 20})
	}
	_, err = c.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}
