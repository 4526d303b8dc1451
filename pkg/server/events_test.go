package server

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// What the datastore tells on a full disk is an event in the end, though no event can be written and all services are started anew
// before there is room.
func TestEventsOutliveAStart(t *testing.T) {
	if before, now := newEvents("", "s1"), newEvents("", "s1"); before.queue != now.queue {
		t.Error("each start has a queue of its own")
	}
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		full := true
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			return full, nil, errors.New("mvcc: database space exceeded")
		})
		queue := make(chan told, 1)
		life := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			(&events{node: "s1", queue: queue}).carry(ctx, client)
		}
		(&events{node: "s1", queue: queue}).tell(datastore.Event{Warning: true, Reason: datastore.ReasonDiskFull, Message: "full"})
		life()
		full = false
		life()
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || list.Items[0].Reason != datastore.ReasonDiskFull {
			t.Errorf("events: %v, %v", list, err)
		}
	})
}

// They outlive the program, too, which replaces itself: in its environment, and in that of no other.
func TestEventsOutliveAProgram(t *testing.T) {
	if env := KeepUntold([]string{"A=1"}); !slices.Equal(env, []string{"A=1"}) {
		t.Errorf("with nothing to tell: %q", env)
	}
	e := newEvents("", "s1")
	e.tell(datastore.Event{Warning: true, Reason: datastore.ReasonDiskFull, Message: "full"})
	e.tell(datastore.Event{Reason: datastore.ReasonDiskOK, Message: "room"})
	env := KeepUntold(nil)
	if len(env) != 1 || len(e.queue) != 0 {
		t.Fatalf("%q, %d left", env, len(e.queue))
	}
	name, value, _ := strings.Cut(env[0], "=")
	t.Setenv(name, value)
	e = newEvents("", "s1")
	for _, want := range []string{datastore.ReasonDiskFull, datastore.ReasonDiskOK} {
		if got := <-e.queue; got.Reason != want || time.Since(got.At) > time.Minute || got.Warning != (want == datastore.ReasonDiskFull) {
			t.Errorf("%+v, want %s", got, want)
		}
	}
	if _, ok := os.LookupEnv(name); ok {
		t.Error("programs that this one starts have it, too")
	}
	t.Setenv(name, "{")
	if e = newEvents("", "s1"); len(e.queue) != 0 {
		t.Error("rubbish is an event")
	}
}
