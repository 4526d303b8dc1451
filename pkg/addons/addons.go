// Package addons applies Kubernetes manifests and keeps them applied: the components of the release, and what a person puts
// into a server's manifests folder. It uses server-side apply under its own field manager, so that what people and controllers
// set on other fields stays theirs.
//
// What it has made is written down in the cluster, a ConfigMap per component, folder or file, before it is made: a file that
// changes or goes takes with it what it made, also after a restart and when it changed while no server ran. What somebody else
// changes or deletes is applied again soon: applied objects carry a label and are watched by it. Everything is read and applied
// again at intervals too.
//
// Components are the cluster's: one server applies them, under a lease. A manifests folder is its server's own: each server
// applies its files, and an object goes when the last file that wants it does. Where two servers' files say different things of
// one object, what was changed last stands, and a warning is written.
package addons

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/leader"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// Config says what to apply and as whom.
type Config struct {
	Kubeconfig string   // file: the administrator's
	Node       string   // this server's, whose files these are and whom events are about
	Alone      bool     // there can be no other server
	Components string   // folder with a folder of manifests per component
	InProcess  []string // components that run inside this process, with no manifests or beside them; see While
	Disable    []string // components to leave out
	Manifests  string   // a person's folder; made if missing, watched

	ClusterDNS    []netip.Addr
	ClusterDomain string
}

// Service applies once the API answers, and stays to apply what changes. It is ready when the components have been applied, by
// this server or by the one that holds the lease. A person's broken file must not keep a node from Ready: it is told about and
// tried again.
func Service(cfg Config) supervise.Service {
	return supervise.Service{Name: "addons", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
		return run(ctx, cfg, ready)
	}}
}

// Retries start soon, because right after the start an API or a namespace may be missing for a moment.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = time.Minute
	settle     = 200 * time.Millisecond // a file is often written in several steps
	again      = 5 * time.Minute        // between two looks at what others may have changed in the cluster
	afterStart = 30 * time.Second       // the same, the first time
	othersWork = 2 * time.Second        // between two looks at whether another server has the lease
)

// Lease is held by the server that applies the components.
const Lease = "skerry-components"

func run(ctx context.Context, cfg Config, ready func()) error {
	config, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.Kubeconfig, err)
	}
	config.QPS, config.Burst = -1, 0 // a limit that is meant for strangers would make the start wait
	config.Timeout = 30 * time.Second
	objects, err := newApplier(config)
	if err != nil {
		return err
	}
	config.Timeout = 0 // watches have none
	client, err := newClient(config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Manifests, 0o700); err != nil {
		return err
	}
	tell := newTeller(client, cfg.Node)
	defer tell.stop()

	var all errgroup.Group
	components := newLoop("components", client, cfg, &keeper{
		kind: ofComponent, units: func() ([]unit, error) { return componentUnits(cfg) }, cluster: objects, records: newConfigMaps(client),
	}, tell)
	persons := newLoop("manifests", client, cfg, &keeper{
		kind: ofManifests, node: cfg.Node, units: func() ([]unit, error) { return manifestUnits(cfg.Manifests) }, cluster: objects,
		records: newConfigMaps(client),
	}, tell)
	for _, l := range []*loop{components, persons} {
		if l.drift, err = newDrift(config, l.drifted); err != nil {
			return err
		}
		defer l.drift.wait()
		l.objects = objects
	}
	work := func(ctx context.Context) error { return components.run(ctx, ready) }
	if cfg.Alone {
		all.Go(func() error { return leader.Alone(ctx, Lease, work) })
	} else {
		all.Go(func() error { return leader.Run(ctx, client, Lease, cfg.Node, work) })
		all.Go(func() error { readyElsewhere(ctx, client, cfg.Node, ready); return nil })
	}
	all.Go(func() error { return persons.run(ctx, func() {}) })
	all.Go(func() error { return watchFolder(ctx, cfg.Manifests, persons.changed, components.changed) })
	all.Go(func() error {
		follow(ctx, client, func(State) { persons.changed(); components.changed() })
		return nil
	})
	return all.Wait()
}

func newClient(config *rest.Config) (kubernetes.Interface, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(config)
}

// readyElsewhere is for a server that does not apply the components: it is ready when another does.
func readyElsewhere(ctx context.Context, client kubernetes.Interface, node string, ready func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(othersWork):
		}
		if other, err := leader.Other(ctx, client, Lease, node); err == nil && other {
			ready()
			return
		}
	}
}

// loop runs a keeper's passes.
type loop struct {
	what   string
	client kubernetes.Interface
	cfg    Config
	keeper *keeper
	tell   *teller
	wake   chan struct{}

	drift   *drift
	objects *applier
	moved   chan struct{} // somebody changed what was applied
}

func newLoop(what string, client kubernetes.Interface, cfg Config, k *keeper, tell *teller) *loop {
	return &loop{what: what, client: client, cfg: cfg, keeper: k, tell: tell, wake: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
}

func (l *loop) drifted() {
	select {
	case l.moved <- struct{}{}:
	default:
	}
}

// changed has the files and the cluster's decisions read again.
func (l *loop) changed() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *loop) run(ctx context.Context, ready func()) error {
	next := time.NewTimer(0)
	defer next.Stop()
	defer l.drift.follow(ctx, nil)
	// At a start only what has changed is applied, so that a node is ready soon; what somebody changed meanwhile comes after.
	retry, everything, pauseAfter := firstRetry, false, afterStart
	pause, lastMove := driftPause, time.Time{}
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
			retry = firstRetry
			next.Reset(settle)
		case <-l.moved:
			if time.Since(lastMove) > 2*pause {
				pause = driftPause
			}
			everything, lastMove = true, time.Now()
			next.Reset(pause)
			pause = min(2*pause, again)
		case <-next.C:
			err := l.pass(ctx, everything)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				ready()
				told = ""
				retry, everything = firstRetry, true // at the next interval
				next.Reset(pauseAfter)
				pauseAfter = again
			default:
				if err.Error() != told {
					slog.Warn(l.what+": not all applied; trying again until it is", "err", err)
				}
				told = err.Error()
				everything = false
				next.Reset(retry)
				retry = min(2*retry, lastRetry)
			}
		}
	}
}

// pass is one of the keeper's, with the cluster's decisions, and what there is to tell about it.
func (l *loop) pass(ctx context.Context, everything bool) error {
	if l.keeper.kind == ofComponent {
		if err := l.publish(ctx); err != nil {
			return err
		}
	}
	state, err := ReadState(ctx, l.client)
	if err != nil {
		return err
	}
	outcomes, err := l.keeper.pass(ctx, state.Off, everything)
	if errors.Is(err, errNoComponents) {
		return nil
	}
	if err != nil {
		return err
	}
	kinds := map[schema.GroupVersionResource]bool{}
	var faults []error
	for _, o := range outcomes {
		for _, m := range o.made {
			if mapping, err := l.objects.mapping(m.ref); err == nil {
				kinds[mapping.Resource] = true
			}
		}
		l.tell.outcome(l.what, o)
		faults = append(faults, o.fault)
	}
	l.drift.follow(ctx, kinds)
	return errors.Join(faults...)
}

// publish says in the cluster which components this release has, for those who enable and disable.
func (l *loop) publish(ctx context.Context) error {
	units, err := componentUnits(l.cfg)
	if err != nil && !errors.Is(err, errNoComponents) {
		return err
	}
	known := slices.Clone(l.cfg.InProcess)
	for _, u := range units {
		known = append(known, u.name)
	}
	known = slices.DeleteFunc(known, essential)
	slices.Sort(known)
	var off []string
	for _, d := range l.cfg.Disable {
		off = append(off, component(d))
	}
	slices.Sort(off)
	return writeState(ctx, l.client, map[string]string{
		knownKey:  strings.Join(slices.Compact(known), ","),
		byFlagKey: strings.Join(slices.Compact(off), ","),
		inProcess: strings.Join(l.cfg.InProcess, ","),
	})
}

// watchFolder calls f when something in a folder or below it changes. What it misses is read at the next interval.
func watchFolder(ctx context.Context, dir string, changed ...func()) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("%s: watching: %w", dir, err)
	}
	defer func() { _ = watch.Close() }()
	add := func() {
		for _, f := range folders(dir) {
			if err := watch.Add(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				slog.Warn("manifests: changes here are seen late", "folder", f, "err", err)
			}
		}
	}
	add()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-watch.Events:
			if e.Has(fsnotify.Create) {
				add() // it may be a folder
			}
		case err := <-watch.Errors:
			slog.Warn("manifests: some changes may have been missed; reading all files again", "folder", dir, "err", err)
			add()
		}
		for _, f := range changed {
			f()
		}
	}
}
