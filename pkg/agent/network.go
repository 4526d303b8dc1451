package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/knftables"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// node follows this machine's own Node object: its pod network is what the CNI configuration must say, its Ready condition is
// what the whole start waits for.
type node struct {
	*layout
	started          time.Time
	networked, ready *latch
}

// latch is a channel that closes once.
type latch struct {
	once sync.Once
	c    chan struct{}
}

func newLatch() *latch    { return &latch{c: make(chan struct{})} }
func (l *latch) release() { l.once.Do(func() { close(l.c) }) }

func newNode(l *layout) *node {
	return &node{layout: l, started: time.Now().Truncate(time.Second), networked: newLatch(), ready: newLatch()}
}

// runNetwork keeps the CNI configuration equal to the Node's pod networks. It is ready when the Node is registered and the
// configuration stands.
//
// Kubelet reports Ready only when a configuration is there, and looks every 100 ms while it starts, so the one from the last
// start is left in place: it is right unless the Node was deleted meanwhile, and then it is replaced before a pod can be
// scheduled. On the first start the file appears when the control plane has given the Node a network, some 50 ms after
// registration. Guessing the first network instead would save those 50 ms and could hand out another node's addresses.
func (n *node) runNetwork(ctx context.Context, ready func()) error {
	if err := n.extendPath(); err != nil {
		return err
	}
	if err := n.masquerade(ctx); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", n.KubeletKubeconfig)
	if err != nil {
		return fmt.Errorf("%s: %w", n.KubeletKubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("%s: %w", n.KubeletKubeconfig, err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", n.NodeName).String()
	}))
	faults := make(chan error, 1)
	see := func(object any) {
		if err := n.see(object); err != nil {
			select {
			case faults <- err:
			default: // one fault is enough to stop
			}
		}
	}
	nodes := factory.Core().V1().Nodes().Informer()
	if _, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, now any) { see(now) }}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	factory.Start(ctx.Done())
	defer func() { cancel(); factory.Shutdown() }()
	for networked := n.networked.c; ; {
		select {
		case <-networked:
			ready()
			networked = nil
		case err := <-faults:
			return err
		case <-ctx.Done():
			return nil
		}
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

// see takes one state of the Node.
func (n *node) see(object any) error {
	state, ok := object.(*corev1.Node)
	if !ok {
		return nil
	}
	if len(state.Spec.PodCIDRs) > 0 {
		subnets, err := parsePrefixes(state.Spec.PodCIDRs)
		if err != nil {
			return fmt.Errorf("node %s: spec.podCIDRs: %w", n.NodeName, err)
		}
		if err := n.writeCNI(subnets); err != nil {
			return err
		}
		n.networked.release()
	}
	if n.isReady(state) {
		n.ready.release()
	}
	return nil
}

// isReady believes only this start's kubelet: after a quick restart the Node still says Ready from before. The first report of
// a kubelet always carries a new heartbeat.
func (n *node) isReady(state *corev1.Node) bool {
	for _, c := range state.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(n.started)
		}
	}
	return false
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}

// writeCNI writes the configuration when it would change: containerd reloads it each time.
func (n *node) writeCNI(subnets []netip.Prefix) error {
	want, err := cniConfig(subnets, n.run+"/cni")
	if err != nil {
		return err
	}
	have, err := os.ReadFile(n.cniConf())
	if err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if have != nil {
		slog.Warn("the node's pod network changed; pods made before keep their old addresses until they are made again", "networks", subnets)
	}
	if err := os.MkdirAll(n.cniConfDir(), 0o755); err != nil {
		return err
	}
	// containerd reads the folder whenever a file in it is written or renamed, but not when one appears. So the file is written
	// elsewhere, appears under another name, and gets its own by a rename: one reading, of a whole file.
	made, waiting := filepath.Join(n.data, "cni.new"), filepath.Join(n.cniConfDir(), ".new")
	if err := atomicfile.Write(made, want, 0o644); err != nil {
		return err
	}
	if err := os.Rename(made, waiting); err != nil {
		return err
	}
	return os.Rename(waiting, n.cniConf())
}

// cniConfig renders the list of plugins that make a pod's network. Addresses in use are remembered below run, because they
// are as short-lived as the network namespaces that have them.
func cniConfig(subnets []netip.Prefix, run string) ([]byte, error) {
	type m = map[string]any
	var ranges, routes []any
	for _, s := range subnets {
		ranges = append(ranges, []any{m{"subnet": s.String()}})
		all := "0.0.0.0/0"
		if s.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, m{"dst": all})
	}
	data, err := json.MarshalIndent(m{
		"cniVersion": "1.0.0",
		"name":       "skerry",
		"plugins": []any{
			m{"type": "ptp", "ipam": m{"type": "host-local", "dataDir": run, "ranges": ranges, "routes": routes}},
			m{"type": "portmap", "backend": "nftables", "capabilities": m{"portMappings": true}},
		},
	}, "", "  ")
	return append(data, '\n'), err
}

// masqTable is the node's own table; other programs' rules live in theirs.
const masqTable = "skerry"

// masquerade gives packets of pods that leave the cluster the node's address, with one rule for all pods.
func (n *node) masquerade(ctx context.Context) error {
	nft, err := knftables.New(knftables.InetFamily, masqTable)
	if err != nil {
		return fmt.Errorf("nftables: %w; the kernel needs nf_tables and the node needs the program nft", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := nft.Run(ctx, masqueradeRules(nft, n.ClusterCIDR)); err != nil {
		return fmt.Errorf("nftables: table %s: %w", masqTable, err)
	}
	return nil
}

func masqueradeRules(nft knftables.Interface, clusterCIDR []netip.Prefix) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pods to the world")})
	chain := &knftables.Chain{
		Name: "postrouting", Type: knftables.PtrTo(knftables.NATType),
		Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority),
	}
	tx.Add(chain)
	tx.Flush(chain)
	for _, pods := range clusterCIDR {
		word, multicast := "ip", "224.0.0.0/4"
		if pods.Addr().Is6() {
			word, multicast = "ip6", "ff00::/8"
		}
		from := []string{word, "saddr", pods.String()}
		for _, kept := range []string{pods.String(), multicast} {
			tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(from, word, "daddr", kept, "return")})
		}
		tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(from, "masquerade")})
	}
	return tx
}
