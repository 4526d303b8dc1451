package server

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/skerry-os/skerry/pkg/datastore"
)

// The labels come to a Node that has none, come back when somebody takes them, and come to one that is made anew; others' nodes
// and labels are left alone.
func TestRolesAreKept(t *testing.T) {
	c := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	nodes := c.CoreV1().Nodes()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	want := roleLabels(datastore.Etcd)
	if len(want) != 2 || len(roleLabels(datastore.SQLite)) != 1 {
		t.Fatalf("%v, %v", want, roleLabels(datastore.SQLite))
	}
	marks := metav1.ObjectMeta{Labels: want, Annotations: map[string]string{memberAnnotation: "8e9e05c52164694d"}}
	go func() { ended <- keepMarks(ctx, c, "own", marks) }()
	has := func(when string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			n, err := nodes.Get(t.Context(), "own", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			missing := ""
			for key := range want {
				if n.Labels[key] != "true" {
					missing = key
				}
			}
			if n.Annotations[memberAnnotation] != marks.Annotations[memberAnnotation] {
				missing = memberAnnotation
			}
			if missing == "" {
				if n.Labels["zone"] != "north" {
					t.Fatalf("%s: %v", when, n.Labels)
				}
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %s is missing", when, missing)
			}
		}
	}
	fresh := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "own", Labels: map[string]string{"zone": "north"}}}
	if _, err := nodes.Create(t.Context(), fresh, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	has("a new node")
	if _, err := nodes.Update(t.Context(), fresh, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	has("labels taken away")
	if err := nodes.Delete(t.Context(), "own", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Create(t.Context(), fresh, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	has("made anew")
	if other, err := nodes.Get(t.Context(), "other", metav1.GetOptions{}); err != nil || len(other.Labels) > 0 {
		t.Errorf("%v, %v", other, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
