package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

var kubeSystem = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}}

// A server that is alone works without a lease, and begins again as one with a lease does.
func TestAloneNeedsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at []time.Duration
		ended := make(chan error)
		go func() {
			ended <- Alone(ctx, "work", func(ctx context.Context) error {
				at = append(at, time.Since(began))
				if len(at) < 3 {
					return errors.New("not yet")
				}
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		time.Sleep(time.Hour)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("a stop ended with %v", err)
		}
		if want := []time.Duration{0, firstPause, 3 * firstPause}; !slices.Equal(at, want) {
			t.Errorf("the work began after %v, want %v", at, want)
		}
	})
	if err := Alone(t.Context(), "work", func(context.Context) error { return nil }); err != nil {
		t.Errorf("work that has finished ended with %v", err)
	}
}

// bench is an API and a record of who worked when; two at a time is a failure of the test.
type bench struct {
	*testing.T
	*fake.Clientset
	mu     sync.Mutex
	events []string
	at     int
}

func newBench(t *testing.T, objects ...runtime.Object) *bench {
	return &bench{T: t, Clientset: fake.NewClientset(objects...)}
}

func (b *bench) note(format string, a ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, fmt.Sprintf(format, a...))
}

// work runs until its context ends and takes two more seconds to stop.
func (b *bench) work(who string) func(context.Context) error {
	return func(ctx context.Context) error {
		b.mu.Lock()
		b.at++
		if b.at > 1 {
			b.Errorf("%s begins while another works", who)
		}
		b.mu.Unlock()
		b.note("%s begins", who)
		<-ctx.Done()
		time.Sleep(2 * time.Second)
		b.note("%s ends", who)
		b.mu.Lock()
		b.at--
		b.mu.Unlock()
		return nil
	}
}

func (b *bench) server(who string) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, b.Clientset, "ingress", who, b.work(who)) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

func (b *bench) want(events ...string) {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.events, events) {
		b.Errorf("happened: %q; want %q", b.events, events)
	}
}

// A lone server begins at once, also after a crash that left the lease held, and waits for a namespace that is not there yet.
func TestLoneServerBeginsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		began := time.Now()
		stop := b.server("a")
		time.Sleep(time.Second)
		b.want()
		if err := b.Tracker().Add(kubeSystem); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		b.want("a begins")
		stop()
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("took %s", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, kubeSystem)
		crashed, cancel := context.WithCancel(t.Context())
		client := fake.NewClientset(kubeSystem)
		go func() { _ = Run(crashed, client, "ingress", "a", b.work("a")) }()
		synctest.Wait()
		lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(t.Context(), "ingress", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cancel() // the other process; its lease is copied as it was when it died
		time.Sleep(3 * time.Second)
		if err := b.Tracker().Add(lease); err != nil {
			t.Fatal(err)
		}
		stop := b.server("a")
		b.want("a begins", "a ends", "a begins")
		stop()
	})
}

// A server that crashed with the lease, and can write nothing since, as on a full disk, still stops when it is told to.
func TestStopsWhereNothingCanBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, now, seconds := "a", metav1.NewMicroTime(time.Now()), int32(Duration.Seconds())
		b := newBench(t, kubeSystem, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "ingress", Namespace: metav1.NamespaceSystem},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &mine, LeaseDurationSeconds: &seconds, RenewTime: &now, AcquireTime: &now}})
		b.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("mvcc: database space exceeded")
		})
		stop := b.server("a")
		time.Sleep(time.Minute)
		b.want()
		stop()
	})
}

// One works at a time; the next begins soon after a clean stop, and only after the first has ended.
func TestHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, kubeSystem)
		stopA := b.server("a")
		synctest.Wait()
		stopB := b.server("b")
		time.Sleep(5 * time.Minute)
		b.want("a begins")
		stopA()
		b.want("a begins", "a ends")
		time.Sleep(3 * retryPeriod)
		b.want("a begins", "a ends", "b begins")
		stopB()
	})
}

// A holder that cannot renew stops working before another may begin, and competes again.
func TestLosingEndsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, kubeSystem)
		stop := b.server("a")
		synctest.Wait()
		var mu sync.Mutex
		cut := true
		b.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			return cut, nil, errors.New("no way to the API")
		})
		time.Sleep(Duration)
		b.want("a begins", "a ends")
		mu.Lock()
		cut = false
		mu.Unlock()
		time.Sleep(3 * retryPeriod) // between two tries are up to 2.2 of it
		b.want("a begins", "a ends", "a begins")
		stop()
	})
}

// Work that fails is started again after a pause; work that has finished is not.
func TestErrorsAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, kubeSystem)
		n := 0
		began := time.Now()
		err := Run(t.Context(), b.Clientset, "ingress", "a", func(context.Context) error {
			if n++; n < 4 {
				return errors.New("no")
			}
			return nil
		})
		if err != nil || n != 4 {
			t.Errorf("%d times, %v", n, err)
		}
		if d := time.Since(began); d < 7*time.Second || d > 8*time.Second {
			t.Errorf("took %s", d)
		}
	})
}
