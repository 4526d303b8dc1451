package server

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// The server that takes the lease over acts on what was deleted while nobody held it, and not on what is long past or came back.
func TestDeletionsWaitForTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeletions()
		d.gone("long ago")
		time.Sleep(heldFor)
		d.gone("came back")
		d.gone("gone")
		d.back("came back")
		time.Sleep(heldFor / 2)
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		ended := make(chan struct{})
		go func() { defer close(ended); d.each(ctx, func(name string) { got = append(got, name) }) }()
		synctest.Wait()
		d.gone("while it is held")
		synctest.Wait()
		cancel()
		<-ended
		if want := []string{"gone", "while it is held"}; !slices.Equal(got, want) {
			t.Errorf("acted on %q, want %q", got, want)
		}
	})
}

func TestDeletionsAreSeen(t *testing.T) {
	node := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	client := fake.NewClientset(node("a"), node("b"))
	d, stop, err := watchDeleted(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	nodes := client.CoreV1().Nodes()
	for range 1000 { // until the watch has begun
		if len(client.Actions()) >= 2 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := nodes.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d.each(ctx, func(name string) {
		if name != "a" {
			t.Errorf("%s was not deleted", name)
		}
		cancel()
	})
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Error("the deletion was not seen")
	}
}
