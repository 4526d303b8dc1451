package controllers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

// Changes that come together are one pass, those that do not matter none, and a pass that fails or asks for it has another.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quiet = 10 * time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		client := fake.NewClientset(node)
		nodes := client.CoreV1().Nodes()
		k := &Kit{Client: client, Informers: informers.NewSharedInformerFactory(client, 0)}
		all := k.Informers.Core().V1()
		known, passes := -1, 0
		var at time.Time
		var again time.Duration
		var fault error
		ended := make(chan error)
		go func() {
			ended <- k.Loop(ctx, Loop{
				What: "test", On: []cache.SharedIndexInformer{all.Nodes().Informer(), all.ConfigMaps().Informer()}, Settle: time.Second, Retry: time.Minute,
				Same: func(before, now *corev1.Node) bool { return before.Labels["a"] == now.Labels["a"] },
				Pass: func(context.Context) (time.Duration, error) {
					passes, at, known = passes+1, time.Now(), len(all.Nodes().Informer().GetStore().List())
					a, err := again, fault
					again, fault = 0, nil
					return a, err
				},
			})
			k.Informers.Shutdown()
		}()
		expect := func(when string, want int, after time.Duration) {
			t.Helper()
			start := time.Now()
			passes = 0
			time.Sleep(quiet)
			synctest.Wait()
			if passes != want || want > 0 && at.Sub(start) != after {
				t.Errorf("%s: %d passes, the last after %v; want %d and %v", when, passes, at.Sub(start), want, after)
			}
		}
		time.Sleep(quiet)
		if known != 1 || passes == 0 {
			t.Fatalf("%d passes, the last knew %d nodes", passes, known)
		}
		change := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"one", "two"} {
			_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			change(err)
		}
		expect("two together", 1, time.Second)
		node.Labels = map[string]string{"b": "c"}
		_, err := nodes.Update(ctx, node, metav1.UpdateOptions{})
		change(err)
		expect("a heartbeat", 0, 0)
		node.Labels = map[string]string{"a": "b"}
		_, err = nodes.Update(ctx, node, metav1.UpdateOptions{})
		change(err)
		expect("a change", 1, time.Second)
		fault = errors.New("refused")
		change(nodes.Delete(ctx, "n", metav1.DeleteOptions{}))
		expect("a fault", 2, time.Second+time.Minute)
		again = 2 * time.Minute
		change(client.CoreV1().ConfigMaps("default").Delete(ctx, "one", metav1.DeleteOptions{}))
		expect("another look", 2, time.Second+2*time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
