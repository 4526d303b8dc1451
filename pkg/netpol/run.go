package netpol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/knftables"
)

// The component is on while this ConfigMap is there. It comes and goes with the component's manifests, so that switching it
// off and on at run time reaches every node.
const (
	SwitchNamespace = "kube-system"
	SwitchName      = "skerry-network-policy"
)

const (
	settleTime = 30 * time.Millisecond // changes come in swarms
	verifyTime = 30 * time.Second      // others flush rulesets that are not theirs
	retryTime  = 2 * time.Second

	lookTime    = 500 * time.Millisecond
	unknownTime = 3 * time.Second // for a pod's object to come after kubelet has seen it
)

// Controller keeps a node's table equal to the policies of the API.
type Controller struct {
	node   string
	client kubernetes.Interface
	nft    knftables.Interface

	mu      sync.Mutex // guards what follows: informers' handlers, requests of plugins, and the loop meet here
	engine  *Engine
	on      bool
	whole   bool                 // the kernel's table is unknown
	asked   map[string]Pod       // addresses that a plugin has told before the API has
	waiting map[chan bool]string // who waits for the rules of which pod

	wake    chan struct{}
	settled chan struct{} // closed when it is known whether there are rules, and they are in force
	once    sync.Once
}

// New makes a controller for a node, by name. client must be allowed to list and watch pods, namespaces and networkpolicies.
func New(node string, client kubernetes.Interface) (*Controller, error) {
	nft, err := knftables.New(knftables.InetFamily, Table)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w; the kernel needs nf_tables and the node needs the program nft", err)
	}
	return &Controller{
		node: node, client: client, nft: nft, engine: NewEngine(node), whole: true,
		asked: map[string]Pod{}, waiting: map[chan bool]string{}, wake: make(chan struct{}, 1), settled: make(chan struct{}),
	}, nil
}

// Remove takes the table away.
func Remove(ctx context.Context) error {
	nft, err := knftables.New(knftables.InetFamily, Table)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return remove(ctx, nft)
}

func remove(ctx context.Context, nft knftables.Interface) error {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{}) // deleting what is not there is an error
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: table %s: %w", Table, err)
	}
	return nil
}

// Run works until ctx ends, and leaves the rules in force. Until it knows what the API says, so do those of before. It calls
// ready when the node has the rules of now, or needs none.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	tellReady := ready
	ready = func() { c.once.Do(func() { close(c.settled) }); tellReady() }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !c.mayLook(ctx, ready) {
		return nil
	}
	factory := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithNamespace(SwitchNamespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", SwitchName).String()
		}))
	maps := factory.Core().V1().ConfigMaps().Informer()
	changed := make(chan struct{}, 1)
	tell := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := maps.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, DeleteFunc: tell}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer func() { cancel(); factory.Shutdown() }()
	if !cache.WaitForCacheSync(ctx.Done(), maps.HasSynced) {
		return nil
	}
	for {
		on := len(maps.GetStore().ListKeys()) > 0
		phase, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			if on {
				done <- c.enforce(phase, ready)
			} else {
				done <- c.rest(phase, ready)
			}
		}()
		for same := true; same; {
			select {
			case <-changed:
				same = on == (len(maps.GetStore().ListKeys()) > 0)
			case err := <-done:
				end()
				return err // ctx has ended, or it has failed
			}
		}
		end()
		if err := <-done; err != nil {
			return err
		}
		slog.Info("network policy", "on", !on)
	}
}

// mayLook waits until the API lets this node look at the switch; false when ctx has ended. In a new cluster the rights are not
// there yet, and no policies either: pods need not wait, the first of all brings the DNS. An informer would ask again only
// after half a minute.
func (c *Controller) mayLook(ctx context.Context, ready func()) bool {
	for ctx.Err() == nil {
		_, err := c.client.CoreV1().ConfigMaps(SwitchNamespace).Get(ctx, SwitchName, metav1.GetOptions{})
		switch {
		case err == nil, apierrors.IsNotFound(err):
			return true
		case apierrors.IsForbidden(err):
			ready()
		}
		pause(ctx, lookTime)
	}
	return false
}

// rest is the component switched off.
func (c *Controller) rest(ctx context.Context, ready func()) error {
	for ctx.Err() == nil {
		err := remove(ctx, c.nft)
		if err == nil {
			ready()
			<-ctx.Done()
			break
		}
		if ctx.Err() == nil {
			slog.Warn("network policy: switching it off", "err", err)
		}
		pause(ctx, retryTime)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// enforce is the component switched on. As long as there is no policy it watches policies alone: pods and namespaces of a whole
// cluster are worth a watch only to nodes that need them.
func (c *Controller) enforce(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.engine, c.whole = NewEngine(c.node), true
	c.mu.Unlock()
	defer c.leave()

	policies := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(slimPolicy))
	defer func() { cancel(); policies.Shutdown() }()
	wanted := make(chan struct{}, 1)
	pol := policies.Networking().V1().NetworkPolicies().Informer()
	if _, err := pol.AddEventHandler(handler(c, func(e *Engine, o *networkingv1.NetworkPolicy) {
		if err := e.SetPolicy(o); err != nil {
			slog.Warn("a network policy cannot be read as a whole", "err", err)
		}
		select {
		case wanted <- struct{}{}:
		default:
		}
	}, func(e *Engine, o *networkingv1.NetworkPolicy) { e.DeletePolicy(o.Namespace, o.Name) })); err != nil {
		return err
	}
	policies.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pol.HasSynced) {
		return nil
	}
	if len(pol.GetStore().ListKeys()) == 0 {
		if err := remove(ctx, c.nft); err != nil && ctx.Err() == nil {
			return err
		}
		ready()
		select {
		case <-wanted:
		case <-ctx.Done():
			return nil
		}
	}
	c.mu.Lock()
	c.on = true
	c.mu.Unlock()
	objects := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(slim))
	defer func() { cancel(); objects.Shutdown() }()
	pods, namespaces := objects.Core().V1().Pods().Informer(), objects.Core().V1().Namespaces().Informer()
	if _, err := pods.AddEventHandler(handler(c, c.setPod, c.deletePod)); err != nil {
		return err
	}
	if _, err := namespaces.AddEventHandler(handler(c, func(e *Engine, o *corev1.Namespace) { e.SetNamespace(o.Name, o.Labels) },
		func(e *Engine, o *corev1.Namespace) { e.DeleteNamespace(o.Name) })); err != nil {
		return err
	}
	objects.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pods.HasSynced, namespaces.HasSynced) {
		return nil
	}
	return c.loop(ctx, ready)
}

// leave answers those who wait, for nobody else will.
func (c *Controller) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = false
	for w := range c.waiting {
		close(w)
	}
	clear(c.waiting)
}

// loop brings changes to the kernel.
func (c *Controller) loop(ctx context.Context, ready func()) error {
	next := time.NewTimer(0)
	defer next.Stop()
	check := time.NewTicker(verifyTime)
	defer check.Stop()
	soon, trouble := false, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			if !soon {
				soon = true
				next.Reset(settleTime)
			}
		case <-check.C:
			if chains, err := c.nft.List(ctx, "chains"); err == nil && len(chains) == 0 || knftables.IsNotFound(err) {
				slog.Warn("network policy: somebody has removed the rules; writing them again", "table", Table)
				c.mu.Lock()
				c.whole = true
				c.mu.Unlock()
				next.Reset(0)
			}
		case <-next.C:
			soon = false
			if err := c.commit(ctx); err != nil {
				if text := err.Error(); text != trouble && ctx.Err() == nil {
					trouble = text
					slog.Warn("network policy: the rules of before are in force; trying again", "in", retryTime, "err", err)
				}
				next.Reset(retryTime)
				continue
			}
			trouble = ""
			ready()
		}
	}
}

// commit sends what has changed, or everything, and answers those who waited for it.
func (c *Controller) commit(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tx *knftables.Transaction
	if c.whole {
		tx = c.engine.Whole(c.nft)
	} else {
		tx = c.engine.Changes(c.nft)
	}
	if tx != nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if err := c.nft.Run(ctx, tx); err != nil {
			c.whole = true // what the kernel has is no longer known for sure
			return err
		}
	}
	c.whole = false
	c.engine.Commit()
	for w, key := range c.waiting {
		if c.engine.pods[key] != nil {
			close(w)
			delete(c.waiting, w)
		}
	}
	return nil
}

func (c *Controller) changed() {
	select {
	case c.wake <- struct{}{}:
	default: // it will look at everything anyway
	}
}

// handler tells the engine of an informer's objects.
func handler[T any](c *Controller, set, del func(*Engine, T)) cache.ResourceEventHandler {
	with := func(f func(*Engine, T), object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		o, ok := object.(T)
		if !ok {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		f(c.engine, o)
		c.changed()
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { with(set, o) },
		UpdateFunc: func(_, o any) { with(set, o) },
		DeleteFunc: func(o any) { with(del, o) },
	}
}

// heldPod is a pod as an informer keeps it: what the engine wants, and the name for those that it does not.
type heldPod struct {
	metav1.ObjectMeta
	pod *Pod
}

// slim keeps of pods and namespaces what policies ask about.
func slim(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return &heldPod{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}, pod: FromPod(o)}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels}}, nil
	}
	return object, nil
}

func slimPolicy(object any) (any, error) {
	if o, ok := object.(*networkingv1.NetworkPolicy); ok {
		o.ManagedFields, o.Annotations = nil, nil
	}
	return object, nil
}

func (c *Controller) setPod(e *Engine, o *heldPod) {
	key := o.Namespace + "/" + o.Name
	if o.pod == nil {
		delete(c.asked, key)
		e.DeletePod(o.Namespace, o.Name)
		return
	}
	p := *o.pod
	if asked, ok := c.asked[key]; ok {
		if slices.Equal(asked.Addresses, p.Addresses) {
			delete(c.asked, key) // the API knows by now
		}
		p.Addresses = asked.Addresses // its last word may be of a sandbox before this one
	}
	e.SetPod(p)
}

func (c *Controller) deletePod(e *Engine, o *heldPod) {
	delete(c.asked, o.Namespace+"/"+o.Name)
	e.DeletePod(o.Namespace, o.Name)
}

// Admit is called for a pod of this node before its first process starts, with the addresses that it has just got. It returns
// when the rules for it are in force. A pod that the API does not know of is not selected by any policy, and has to wait until
// that is sure enough.
func (c *Controller) Admit(ctx context.Context, p Pod) error {
	select {
	case <-c.settled:
	case <-ctx.Done():
		return errors.New("network policy: the API's policies are not known yet; the pod is tried again")
	}
	c.mu.Lock()
	if !c.on {
		c.mu.Unlock()
		return nil
	}
	if known := c.engine.pods[p.key()]; known != nil {
		now := known.Pod
		now.Addresses = p.Addresses
		c.engine.SetPod(now)
	}
	c.asked[p.key()] = p
	done := make(chan bool)
	c.waiting[done] = p.key()
	c.changed()
	c.mu.Unlock()
	unknown := time.NewTimer(unknownTime)
	defer unknown.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-unknown.C:
			c.mu.Lock()
			known := c.engine.pods[p.key()] != nil
			if !known {
				delete(c.waiting, done)
				delete(c.asked, p.key())
			}
			c.mu.Unlock()
			if !known {
				slog.Warn("network policy: a pod that the API does not know", "pod", p.key())
				return nil
			}
		case <-ctx.Done():
			c.mu.Lock()
			delete(c.waiting, done)
			c.mu.Unlock()
			return errors.New("network policy: the rules for this pod are not in force yet; it is tried again")
		}
	}
}
