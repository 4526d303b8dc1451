package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// firstNode registers this node with its pod networks, when it is the first of a new cluster, so that the start need not wait
// until the controller manager has found the Node and given it some: they are the first ones of the cluster's, which it would
// give too.
//
// It is done between the API's start and the controller manager's, which then finds the networks taken. Nobody else can give
// them away meanwhile: other servers and agents join through this one, and a datastore that several servers might begin with
// at once is left alone. Kubelet finds its Node there and completes it; labels and taints, which it gives to a Node of its own
// making alone, are given here, and so is what its cloud calls the machine.
type firstNode struct {
	kubeconfig string
	node       *corev1.Node // nil: leave it to kubelet and the controller manager
}

func newFirstNode(cfg Config, kind string) firstNode {
	f := firstNode{kubeconfig: cfg.Files.Admin}
	s := cfg.Settings
	networks := firstNetworks(s.ClusterCIDR)
	// What is decided elsewhere is left to where it is.
	if networks == nil || s.Server != "" || s.DatastoreEndpoint != "" ||
		names(s.KubeletArg, "register-node", "register-with-taints", "register-schedulable", "node-labels", "config", "hostname-override", "cloud-provider") ||
		names(s.KubeControllerManagerArg, "allocate-node-cidrs", "node-cidr-mask-size", "node-cidr-mask-size-ipv4", "node-cidr-mask-size-ipv6", "cidr-allocator-type", "cluster-cidr", "controllers") {
		return f
	}
	f.node = &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: cfg.NodeName, Labels: roleLabels(kind)},
		Spec:       corev1.NodeSpec{PodCIDR: networks[0], PodCIDRs: networks, ProviderID: value(s.KubeletArg, "provider-id")},
	}
	for _, l := range s.NodeLabel {
		key, value, _ := strings.Cut(l, "=")
		f.node.Labels[key] = value
	}
	for _, t := range s.NodeTaint {
		rest, effect, _ := strings.Cut(t, ":")
		key, value, _ := strings.Cut(rest, "=")
		f.node.Spec.Taints = append(f.node.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return f
}

// names says whether one of the arguments, written as name=value, has one of the names.
func names(args []string, names ...string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return slices.Contains(names, name)
	})
}

// value is that of the last argument, written as name=value, with the name.
func value(args []string, name string) (v string) {
	for _, a := range args {
		if n, is, ok := strings.Cut(a, "="); ok && n == name {
			v = is
		}
	}
	return v
}

// The controller manager's sizes of a node's networks.
const (
	nodeBits4 = 24
	nodeBits6 = 64
)

// firstNetworks are the first a node gets of the cluster's; nil if those are too small.
func firstNetworks(clusterCIDR string) (out []string) {
	for text := range strings.SplitSeq(clusterCIDR, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		bits := nodeBits4
		if p.Addr().Is6() {
			bits = nodeBits6
		}
		if err != nil || p.Bits() > bits {
			return nil
		}
		out = append(out, netip.PrefixFrom(p.Masked().Addr(), bits).String())
	}
	return out
}

func (f firstNode) run(ctx context.Context, ready func()) error {
	if f.node != nil {
		if err := f.register(ctx); err != nil {
			slog.Warn("the first node waits for the controller manager", "err", err)
		}
	}
	ready()
	<-ctx.Done()
	return nil
}

func (f firstNode) register(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	have, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil || len(have.Items) > 0 {
		return err
	}
	_, err = client.CoreV1().Nodes().Create(ctx, f.node, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) { // kubelet was faster
		return fmt.Errorf("node %s: %w", f.node.Name, err)
	}
	return nil
}
