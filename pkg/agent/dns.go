package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
)

// dns lets the cluster's DNS follow this machine's nameservers. A container gets a copy of them when it is made, and CoreDNS
// reads its copy once. So its pods here that were made before a change are deleted, and their Deployment makes others. Until the
// others serve, kube-proxy leads to those that end. Without this, a node that was started before its network told it a
// nameserver would never resolve a name of the world.
//
// The node's own credentials are enough: a kubelet may delete pods of its node.
type dns struct {
	node   string
	client kubernetes.Interface
	wake   chan struct{}
}

func (l *layout) newDNS() (*dns, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.KubeletKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.KubeletKubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.KubeletKubeconfig, err)
	}
	return &dns{node: l.NodeName, client: client, wake: make(chan struct{}, 1)}, nil
}

// changed says that the nameservers have.
func (d *dns) changed() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

const dnsRetry = 10 * time.Second

// run renews the pods after each change until ctx ends.
func (d *dns) run(ctx context.Context) {
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: d.client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "skerry-agent", Host: d.node})
	for {
		select {
		case <-d.wake:
		case <-ctx.Done():
			return
		}
		for since := time.Now(); ; {
			n, err := d.renew(ctx, since)
			if err == nil {
				slog.Info("the machine's nameservers changed", "DNS pods made again", n)
				if n > 0 {
					recorder.Event(&corev1.ObjectReference{Kind: "Node", Name: d.node, UID: types.UID(d.node), APIVersion: "v1"}, corev1.EventTypeNormal,
						"NameserversChanged", "The cluster's DNS is made again on this node, to ask the nameservers it has now")
				}
				break
			}
			slog.Warn("the cluster's DNS asks the nameservers from before; trying again", "in", dnsRetry.String(), "err", err)
			select {
			case <-time.After(dnsRetry):
			case <-ctx.Done():
				return
			}
		}
	}
}

// renew deletes the DNS pods of this node that were made before since.
func (d *dns) renew(ctx context.Context, since time.Time) (n int, err error) {
	pods := d.client.CoreV1().Pods(metav1.NamespaceSystem)
	list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + d.node, LabelSelector: "k8s-app=kube-dns"})
	if err != nil {
		return 0, err
	}
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil || p.Spec.DNSPolicy != corev1.DNSDefault || p.Status.StartTime == nil || p.Status.StartTime.After(since) {
			continue
		}
		if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}}); err != nil && !apierrors.IsNotFound(err) {
			return n, err
		}
		n++
	}
	return n, nil
}
