package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func server(name string, member uint64) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{memberAnnotation: strconv.FormatUint(member, 16)}}}
}

// The server that takes the lease over acts on what was deleted while nobody held it, and not on what is long past or came back. It
// removes the member that the deleted node had: one that has joined again by then, and is about to register, has another.
func TestDeletionsWaitForTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeletions()
		d.gone(server("long ago", 1))
		time.Sleep(heldFor)
		d.gone(server("came back", 2))
		d.gone(server("gone", 0xfffffffffffffff3))
		d.gone(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "no server"}})
		d.back("came back")
		time.Sleep(heldFor / 2)
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			d.each(ctx, func(name string, member uint64) { got = append(got, fmt.Sprintf("%s %x", name, member)) })
		}()
		synctest.Wait()
		d.gone(server("while it is held", 4))
		synctest.Wait()
		cancel()
		<-ended
		if want := []string{"gone fffffffffffffff3", "while it is held 4"}; !slices.Equal(got, want) {
			t.Errorf("acted on %q, want %q", got, want)
		}
	})
}

func TestDeletionsAreSeen(t *testing.T) {
	client := fake.NewClientset(server("a", 1), server("b", 2))
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
	d.each(ctx, func(name string, member uint64) {
		if name != "a" || member != 1 {
			t.Errorf("%s with the member %x was not deleted", name, member)
		}
		cancel()
	})
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Error("the deletion was not seen")
	}
}
