package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

// beCloud makes the Node have the addresses of node-external-ip. Kubelet by itself knows of none, and takes away what others write,
// unless it is told that a cloud will say which addresses there are. Here the cloud is us, and a person who has a cloud controller
// leaves them to that.
//
// The Node gets its addresses before kubelet starts, as soon as the API takes them. If there is no Node it is made, with what
// kubelet would give it: one of kubelet's own making would be kept free of pods until a cloud controller has seen it.
func (l *layout) beCloud(ctx context.Context, server *options.KubeletServer) error {
	if !l.isCloud() {
		return nil
	}
	server.CloudProvider = "external"
	client, err := clientFor(l.KubeletKubeconfig)
	if err != nil {
		return err
	}
	for said := false; ; said = true {
		err := l.writeAddresses(ctx, client, server)
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is no fault
		}
		if !said {
			slog.Warn("node-external-ip: the node's addresses are not written; trying again", "err", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (l *layout) isCloud() bool {
	return len(l.NodeExternalIPs) > 0 && !slices.ContainsFunc(l.Settings.KubeletArg, func(a string) bool {
		return strings.HasPrefix(strings.TrimLeft(a, "-"), "cloud-provider=")
	})
}

func (l *layout) writeAddresses(ctx context.Context, client kubernetes.Interface, server *options.KubeletServer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: l.NodeName, Labels: server.NodeLabels}}
	node.Spec.Taints = server.RegisterWithTaints
	for _, ip := range l.NodeIPs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	for _, ip := range l.NodeExternalIPs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip.String()})
	}
	node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: l.NodeName})
	if server.RegisterNode {
		_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	// Not a strategic patch: that takes two addresses of one type for the same.
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": node.Status.Addresses}})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, l.NodeName, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("node %s: %w", l.NodeName, err)
	}
	return nil
}
