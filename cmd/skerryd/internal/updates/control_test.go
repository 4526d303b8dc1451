package updates

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/update"
	"github.com/skerry-os/skerry/pkg/update/record"
)

// A person does not wait for a window, and need not wait for what does.
func TestByHandDuringAWait(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	synctest.Test(t, func(t *testing.T) {
		looked := b.awaitsWindow(t)
		var said []string
		began := time.Now()
		err := b.asked(t.Context(), Ask{Do: DoApply}, func(text string) { said = append(said, text) })
		if err != nil || b.restarts.Load() != 1 || time.Since(began) > time.Minute || !strings.Contains(strings.Join(said, "\n"), "restarting into slot b, release 1.1.0") {
			t.Errorf("%v after %v, restarted %d times, said %q", err, time.Since(began), b.restarts.Load(), said)
		}
		if err := <-looked; !errors.Is(err, errOther) {
			t.Errorf("the one that waited: %v", err)
		}
	})
}

// By hand is the same way: the node's health is noted, the datastore saved and the pods taken off. An agent whose server is down
// gets a trial that is not about its server.
func TestByHandIsTheSameWay(t *testing.T) {
	for _, do := range []string{DoApply, DoRollback} {
		for _, down := range []bool{false, true} {
			b := newBench(t, machine.Update{})
			b.n.Config.Source = b.repo
			b.down.Store(down)
			b.started = time.Now().Add(-time.Hour)
			var done []string
			b.n.Updater.Snapshot = func(context.Context) (*record.Saved, error) {
				done = append(done, "snapshot")
				return &record.Saved{Snapshot: "s"}, nil
			}
			b.o.Others = func(context.Context) (bool, error) { return true, nil }
			if err := b.asked(t.Context(), Ask{Do: do}, func(string) {}); err != nil {
				t.Fatalf("%s: %v", do, err)
			}
			r := b.record()
			node, err := b.cluster.Tracker().Get(corev1.SchemeGroupVersion.WithResource("nodes"), "", "n")
			check(t, err)
			if r.Before == nil || r.Before.Ready == down || len(r.Before.Network) == 0 || !r.Before.Reachable || r.Saved == nil || strings.Join(done, " ") != "snapshot" || node.(*corev1.Node).Spec.Unschedulable == down || b.restarts.Load() != 1 {
				t.Errorf("%s, server down %v: %+v, %+v, %v, cordoned %v", do, down, r, r.Before, done, node.(*corev1.Node).Spec.Unschedulable)
			}
			if waits, _ := b.waits(t.Context(), r.Before); down && waits != "" {
				t.Errorf("%s: the trial of an agent whose server is down waits for %s", do, waits)
			}
		}
	}
}

// Where no skerryd runs, a command still takes the machine to another release, and the trial is about what is known.
func TestByHandWithoutSkerryd(t *testing.T) {
	b := newBench(t, machine.Update{})
	b.n.Config.Source = b.repo
	b.n.Updater.Hooks = update.Hooks{}
	restarted := 0
	check(t, b.n.Alone(t.Context(), Ask{Do: DoRollback}, func(string) {}, func(string) error { restarted++; return nil }))
	if r := b.record(); r.Before == nil || r.Before.Ready || r.Before.API || !r.Before.Reachable || len(r.Before.Network) == 0 || restarted != 1 {
		t.Errorf("%+v, %+v", r, r.Before)
	}
}

// A person's command reaches the service over its socket: what is said comes, then how it ended; who hangs up calls it off.
func TestControlSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "control") // a socket's name is short
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	if err := Call(t.Context(), socket, Ask{Do: DoCheck}, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}), make(chan error, 1)
	var served sync.WaitGroup
	served.Go(func() {
		_ = Listen(ctx, socket, func(ctx context.Context, a Ask, say func(string)) error {
			say(a.Do + " begins")
			if !a.Force {
				return errors.New("there is no room")
			}
			if a.Do == DoApply {
				close(begun)
				<-ctx.Done()
				ended <- context.Cause(ctx)
			}
			return nil
		})
	})
	for {
		if fi, err := os.Stat(socket); err == nil && fi.Mode().Perm() == 0o600 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	var said []string
	say := func(text string) { said = append(said, text) }
	if err := Call(t.Context(), socket, Ask{Do: DoRollback}, say); err == nil || err.Error() != "there is no room" {
		t.Errorf("got %v", err)
	}
	check(t, Call(t.Context(), socket, Ask{Do: DoRollback, Force: true}, say))
	if !slices.Equal(said, []string{"rollback begins", "rollback begins"}) {
		t.Errorf("said %q", said)
	}
	person, leave := context.WithCancelCause(t.Context())
	away := errors.New("Ctrl-C")
	go func() { <-begun; leave(away) }()
	if err := Call(person, socket, Ask{Do: DoApply, Force: true}, say); !errors.Is(err, away) {
		t.Errorf("left: %v", err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "went away") {
		t.Errorf("the service goes on: %v", err)
	}
	cancel()
	served.Wait()
}
