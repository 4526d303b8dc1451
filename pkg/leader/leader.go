// Package leader lets one server of a cluster do what must be done once: work runs under a Lease in kube-system. Losing the
// lease ends the work, never the process; the next server takes it over.
//
// A lone server takes a lease it held before at once, because the holder's name is its own. Renewing is a write to the
// datastore, and the machines have flash storage: it is done seldom, and a server that stops gives its leases back, so that only a
// crash makes others wait. Where there can be no other, there is no lease.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	// Duration is how long others wait after a holder was last heard of.
	Duration = 40 * time.Second

	renewDeadline = 25 * time.Second // then the holder stops working, well before others begin
	retryPeriod   = 10 * time.Second
	firstPause    = time.Second // between a work's error and its next start
	lastPause     = time.Minute
	settled       = 10 * time.Minute // work that lasted so long begins with the first pause again
)

// Run calls run while this process holds the lease called name, and again after the lease was lost and won back; run must
// return when its ctx ends, and no other process begins before it has. A run that returns an error is started again after a
// pause, and one that returns nil by itself has finished: Run returns. Run returns nil when ctx ends.
//
// identity must differ between the servers of a cluster and should be the same after a restart: the node's name.
func Run(ctx context.Context, client kubernetes.Interface, name, identity string, run func(context.Context) error) error {
	if err := awaitNamespace(ctx, client); err != nil {
		return nil //nolint:nilerr // only the end of ctx ends the waiting
	}
	return keep(ctx, name, func(ctx context.Context) error { return hold(ctx, client, name, identity, run) })
}

// Alone is Run for the server of a cluster that cannot have another: it needs no lease, and writes none.
func Alone(ctx context.Context, name string, run func(context.Context) error) error {
	return keep(ctx, name, run)
}

func keep(ctx context.Context, name string, run func(context.Context) error) error {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := run(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // a stop is no fault
		case err == nil:
			return nil
		case errors.Is(err, errLost):
			slog.Warn("lease lost; another server may do this now", "lease", name)
			continue
		}
		if time.Since(began) > settled {
			pause = firstPause
		}
		slog.Warn("stopped; starting again", "work", name, "in", pause.String(), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

var errLost = errors.New("lease lost")

// hold waits for the lease, runs, and gives the lease back once run has returned. errLost means that it was taken away.
func hold(ctx context.Context, client kubernetes.Interface, name, identity string, run func(context.Context) error) error {
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, metav1.NamespaceSystem, name, client.CoreV1(), client.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: identity})
	if err != nil {
		return fmt.Errorf("lease %s: %w", name, err)
	}
	// The elector's context outlives ctx: the lease is renewed until run has returned.
	elect, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	started, ran := make(chan struct{}), make(chan error, 1)
	won := &wonLock{Interface: lock}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          won,
		Name:          name,
		LeaseDuration: Duration,
		RenewDeadline: renewDeadline,
		RetryPeriod:   retryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) { // held ends when the lease is lost
				close(started)
				defer end()
				work, cancel := context.WithCancel(held)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				err := run(work)
				if held.Err() != nil {
					err = errLost
				}
				ran <- err
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s: %w", name, err)
	}
	// Before anything runs, the end of ctx is the elector's.
	defer context.AfterFunc(ctx, func() {
		select {
		case <-started:
		default:
			end()
		}
	})()
	elector.Run(elect)
	select {
	case <-started:
	default:
		// OnStartedLeading has a goroutine of its own: the lease may be won and the work about to begin. The elector's IsLeader goes
		// by the name in the lease, which is ours from before a crash although nothing can be written now.
		if !won.yes.Load() {
			return ctx.Err()
		}
	}
	if err = <-ran; errors.Is(err, errLost) && ctx.Err() == nil {
		return err
	}
	giveBack(context.WithoutCancel(ctx), lock, identity)
	return err
}

// wonLock knows whether the lease was written in our name.
type wonLock struct {
	resourcelock.Interface
	yes atomic.Bool
}

func (l *wonLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Create(ctx, r))
}

func (l *wonLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Update(ctx, r))
}

func (l *wonLock) note(err error) error {
	if err == nil {
		l.yes.Store(true)
	}
	return err
}

// giveBack leaves the lease to the next who asks, if it still is ours. The elector's own way would do it while run still works,
// and to a lease that another holds by now.
func giveBack(ctx context.Context, lock resourcelock.Interface, identity string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // it expires anyway
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err != nil || record.HolderIdentity != identity {
		return
	}
	record.HolderIdentity, record.LeaseDurationSeconds = "", 1
	if err := lock.Update(ctx, *record); err != nil {
		slog.Debug("lease not given back; it expires", "lease", lock.Describe(), "err", err)
	}
}

// awaitNamespace waits for the leases' namespace: a new cluster has none for a moment, and the elector's first retry is far.
func awaitNamespace(ctx context.Context, client kubernetes.Interface) error {
	return wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			slog.Debug("waiting for the API", "err", err)
		}
		return err == nil, nil
	})
}

// Other says whether another than identity holds the lease now.
func Other(ctx context.Context, client kubernetes.Interface, name, identity string) (bool, error) {
	lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s := lease.Spec
	if s.HolderIdentity == nil || *s.HolderIdentity == "" || *s.HolderIdentity == identity || s.RenewTime == nil {
		return false, nil
	}
	return time.Since(s.RenewTime.Time) < Duration, nil
}
