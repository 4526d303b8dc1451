package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/podnet"
)

// NetworkAnnotation is where a node tells the others how its pods are reached.
const NetworkAnnotation = "skerry/pod-network"

// node follows the Node objects: this machine's own says what the CNI configuration must say, and its Ready condition is what
// the whole start waits for; the others' say where their pods are.
type node struct {
	*layout
	started          time.Time
	networked, ready *latch
	placed           *latch    // the Node object has this machine's addresses
	uid              types.UID // of the Node object

	net     *podnet.Network
	told    podnet.Announcement // what the Node object says of this node
	mtu     int
	trouble string // what was logged last, so that it is logged once
}

// latch is a channel that closes once.
type latch struct {
	once sync.Once
	c    chan struct{}
}

func newLatch() *latch    { return &latch{c: make(chan struct{})} }
func (l *latch) release() { l.once.Do(func() { close(l.c) }) }

func newNode(l *layout) *node {
	return &node{layout: l, started: time.Now().Truncate(time.Second), networked: newLatch(), ready: newLatch(), placed: newLatch()}
}

const (
	networkSettle = 50 * time.Millisecond // changes come in swarms
	networkRetry  = 5 * time.Second
	nftPatience   = 2 * time.Minute // nft starts late on a slow machine whose processors are all busy; to give up would restart the node
	addressWait   = time.Minute
	networkCheck  = time.Minute // what nobody tells of, such as a neighbour removed by hand
)

// runNetwork keeps the CNI configuration equal to the Node's pod networks, and the way to the other nodes' pods open. It is
// ready when the Node is registered and the configuration stands.
//
// Kubelet reports Ready only when a configuration is there, and looks every 100 ms while it starts, so the one from the last
// start is left in place: it is right unless the Node was deleted meanwhile, and then it is replaced before a pod can be
// scheduled. On the first start the file appears when the control plane has given the Node a network, some 50 ms after
// registration. Guessing the first network instead would save those 50 ms and could hand out another node's addresses.
func (n *node) runNetwork(ctx context.Context, ready func()) error {
	if err := n.extendPath(); err != nil {
		return err
	}
	var err error
	if n.net, err = podnet.New(n.podnetConfig()); err != nil {
		return err
	}
	if n.backend() != podnet.None {
		if err := n.masquerade(ctx); err != nil {
			return err
		}
	}
	self, err := clientFor(n.KubeletKubeconfig)
	if err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	changed := func() {
		select {
		case wake <- struct{}{}:
		default: // it will look at everything anyway
		}
	}
	nodes, stop, err := n.watchNodes(ctx, changed)
	if err != nil {
		return err
	}
	defer stop()

	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); followKernel(ctx, changed) }()
	defer func() { cancel(); <-watched }()

	networked := n.networked.c
	next := time.NewTimer(0)
	defer next.Stop()
	soon, masqueraded := false, time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-networked:
			ready()
			networked = nil
		case <-wake:
			if !soon {
				soon = true
				next.Reset(networkSettle)
				if networked != nil {
					next.Reset(0) // the start waits for this
				}
			}
		case <-next.C:
			soon = false
			if n.backend() != podnet.None && time.Since(masqueraded) > networkCheck { // others flush rulesets that are not theirs
				masqueraded = time.Now()
				if err := n.masquerade(ctx); err != nil {
					slog.Warn("pods may not reach the world; trying again", "err", err)
				}
			}
			if n.isDeleted(nodes()) {
				return n.again(ctx, nodeNews{"NodeDeleted", "somebody deleted node " + n.NodeName + " from the cluster; it registers again"})
			}
			wait := networkCheck
			if err := n.step(ctx, self, nodes()); err != nil {
				if errors.Is(err, podnet.ErrUnsupported) && n.backend() == podnet.WireGuard {
					return err // without it, pods would talk in clear text or not at all
				}
				wait = networkRetry
			}
			next.Reset(wait)
		}
	}
}

func (n *node) backend() podnet.Backend {
	if n.FlannelBackend == "" {
		return podnet.VXLAN
	}
	return podnet.Backend(n.FlannelBackend)
}

func (n *node) podnetConfig() podnet.Config {
	c := podnet.Config{
		Backend: n.backend(),
		Name:    n.NodeName,
		Cluster: n.ClusterCIDR,
		Iface:   n.Settings.FlannelIface,
		KeyFile: filepath.Join(n.data, "wireguard.key"),
	}
	if n.FlannelExternalIP {
		c.External = n.NodeExternalIPs
	}
	return c
}

func clientFor(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	return client, nil
}

// watchNodes follows all Nodes, with kube-proxy's credential: a kubelet's may see its own alone. Whole objects, because the
// API server then encodes a change once for all watchers; only a few hundred bytes of each are kept.
func (n *node) watchNodes(ctx context.Context, changed func()) (list func() []*corev1.Node, stop func(), err error) {
	client, err := clientFor(n.KubeProxyKubeconfig)
	if err != nil {
		return nil, nil, err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(n.trim))
	informer := factory.Core().V1().Nodes().Informer()
	tell := func(any) { changed() }
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, now any) { changed() }, DeleteFunc: tell})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	factory.Start(ctx.Done())
	list = func() []*corev1.Node {
		if !informer.HasSynced() {
			return nil // half a list would take the other half's pods off the network
		}
		out := []*corev1.Node{}
		for _, o := range informer.GetStore().List() {
			if node, ok := o.(*corev1.Node); ok {
				out = append(out, node)
			}
		}
		return out
	}
	return list, func() { cancel(); factory.Shutdown() }, nil
}

// trim keeps what is used here.
func (n *node) trim(object any) (any, error) {
	full, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	slim := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: full.Name, UID: full.UID, ResourceVersion: full.ResourceVersion}}
	if told := full.Annotations[NetworkAnnotation]; told != "" {
		slim.Annotations = map[string]string{NetworkAnnotation: told}
	}
	slim.Spec.PodCIDRs = full.Spec.PodCIDRs
	if full.Name == n.NodeName {
		slim.Status.Addresses = full.Status.Addresses
		for _, c := range full.Status.Conditions {
			if c.Type == corev1.NodeReady {
				slim.Status.Conditions = append(slim.Status.Conditions, c)
			}
		}
	}
	return slim, nil
}

// isDeleted says whether this machine's Node was there and is not, or is another. Kubelet registers it at its start alone, so
// everything must start anew.
func (n *node) isDeleted(nodes []*corev1.Node) bool {
	i := slices.IndexFunc(nodes, func(o *corev1.Node) bool { return o.Name == n.NodeName })
	switch {
	case n.uid == "" && i >= 0:
		n.uid = nodes[i].UID
		return false
	case i >= 0:
		return nodes[i].UID != n.uid
	}
	return n.uid != "" && nodes != nil
}

func followKernel(ctx context.Context, changed func()) {
	for {
		err := podnet.Watch(ctx, changed)
		if err == nil {
			return
		}
		slog.Warn("pod network: looking again every minute meanwhile", "err", err)
		select {
		case <-time.After(networkRetry):
			changed() // what happened in between
		case <-ctx.Done():
			return
		}
	}
}

// step makes everything fit what the Nodes say now. An error has been logged.
func (n *node) step(ctx context.Context, self kubernetes.Interface, nodes []*corev1.Node) error {
	var own *corev1.Node
	var others []podnet.Node
	var faults []error
	for _, o := range nodes {
		if o.Name == n.NodeName {
			own = o
			continue
		}
		other, err := otherNode(o)
		if err != nil {
			faults = append(faults, err)
		} else if other != nil {
			others = append(others, *other)
		}
	}
	if n.backend() != podnet.None {
		faults = append(faults, n.connect(ctx, self, own, nodes != nil, others))
	}
	if own != nil {
		if n.backend() == podnet.None {
			n.networked.release() // as far as it can be from here
		}
		if n.isPlaced(own) {
			n.placed.release()
		}
		if n.isReady(own) {
			n.ready.release()
		}
	}
	err := errors.Join(faults...)
	n.complain(err)
	return err
}

// connect brings this node's end up to date, tells the others of it, and then reaches for theirs.
func (n *node) connect(ctx context.Context, self kubernetes.Interface, own *corev1.Node, known bool, others []podnet.Node) error {
	told, mtu, err := n.net.Prepare(n.addresses(own))
	switch {
	case err == nil:
		n.told, n.mtu = told, mtu
	case n.mtu == 0 && errors.Is(err, podnet.ErrUnsupported):
		n.mtu = defaultMTU // alone on its machine, a node's pods work without a tunnel
	}
	if own == nil {
		return err
	}
	faults := []error{err}
	if n.told.Addresses != nil {
		if text := n.told.String(); own.Annotations[NetworkAnnotation] != text {
			faults = append(faults, annotate(ctx, self, n.NodeName, NetworkAnnotation, text))
		}
	}
	subnets, err := parsePrefixes(own.Spec.PodCIDRs)
	if err != nil {
		return errors.Join(append(faults, fmt.Errorf("node %s: spec.podCIDRs: %w", n.NodeName, err))...)
	}
	if len(subnets) > 0 && n.mtu > 0 {
		if err := n.writeCNI(subnets, n.mtu); err != nil {
			return errors.Join(append(faults, err)...)
		}
		n.networked.release()
	}
	if known && n.told.Addresses != nil {
		faults = append(faults, n.net.Apply(subnets, others))
	}
	return errors.Join(faults...)
}

// defaultMTU is what pods get when no tunnel says otherwise: VXLAN's on a usual network.
const defaultMTU = 1450

// addresses are this node's as it was started with; should those be gone from the machine, those that kubelet has found since.
func (n *node) addresses(own *corev1.Node) []netip.Addr {
	if own == nil || podnet.Local(n.NodeIPs) {
		return n.NodeIPs
	}
	var now []netip.Addr
	for _, a := range own.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			now = append(now, ip)
		}
	}
	if podnet.Local(now) {
		return now
	}
	return n.NodeIPs
}

// otherNode gives nil for a node that has nothing to say yet.
func otherNode(o *corev1.Node) (*podnet.Node, error) {
	text := o.Annotations[NetworkAnnotation]
	if text == "" || len(o.Spec.PodCIDRs) == 0 {
		return nil, nil
	}
	told, err := podnet.ParseAnnouncement(text)
	if err != nil {
		return nil, fmt.Errorf("node %s: annotation %s: %w; the node writes it again when its skerryd restarts", o.Name, NetworkAnnotation, err)
	}
	subnets, err := parsePrefixes(o.Spec.PodCIDRs)
	if err != nil {
		return nil, fmt.Errorf("node %s: spec.podCIDRs: %w", o.Name, err)
	}
	return &podnet.Node{Name: o.Name, Subnets: subnets, Announcement: told}, nil
}

func annotate(ctx context.Context, client kubernetes.Interface, name, key, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("node %s: annotation %s: %w", name, key, err)
	}
	return nil
}

// complain logs what is wrong when it is new, and that it is over.
func (n *node) complain(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == n.trouble {
		return
	}
	n.trouble = text
	if err != nil {
		slog.Warn("pod network: not all of it works; trying again", "in", networkRetry, "err", err)
	} else {
		slog.Info("pod network: works")
	}
}

// runReady is ready when the Node is.
func (n *node) runReady(ctx context.Context, ready func()) error {
	select {
	case <-n.ready.c:
		ready()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// runAddresses is ready when the Node object has this machine's addresses: kube-proxy ends the process, without a word, when
// they change under it, as they do after a start with another address than before.
func (n *node) runAddresses(ctx context.Context, ready func()) error {
	patience := time.NewTimer(addressWait)
	defer patience.Stop()
	select {
	case <-n.placed.c:
	case <-patience.C:
		slog.Warn("the Node object does not have this machine's addresses; kube-proxy starts with those it has", "want", n.NodeIPs)
	case <-ctx.Done():
		return nil
	}
	ready()
	<-ctx.Done()
	return nil
}

// isPlaced says whether the Node's addresses are this machine's.
func (n *node) isPlaced(state *corev1.Node) bool {
	are := func(kind corev1.NodeAddressType, want []netip.Addr) bool {
		var have []string
		for _, a := range state.Status.Addresses {
			if a.Type == kind {
				have = append(have, a.Address)
			}
		}
		return slices.Equal(have, strings.Fields(joinText(want, " ")))
	}
	return are(corev1.NodeInternalIP, n.NodeIPs) && (!n.isCloud() || are(corev1.NodeExternalIP, n.NodeExternalIPs))
}

// isReady believes only this start's kubelet: after a quick restart the Node still says Ready from before. The first report of
// a kubelet always carries a new heartbeat. With a network of somebody else's that runs in pods, any report counts: those
// pods need a node that has started.
func (n *node) isReady(state *corev1.Node) bool {
	i := slices.IndexFunc(state.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		return false
	}
	c := state.Status.Conditions[i]
	return (c.Status == corev1.ConditionTrue || n.backend() == podnet.None) && !c.LastHeartbeatTime.Time.Before(n.started)
}
