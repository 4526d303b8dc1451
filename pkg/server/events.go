package server

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skerry-os/skerry/pkg/datastore"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// events carries what the datastore tells to the API. It tells most when the API cannot take it: before it is up, and on a full
// disk. So the events wait here, and the oldest go when too many do.
type events struct {
	kubeconfig, node string
	queue            chan told
}

type told struct {
	datastore.Event
	at time.Time
}

// untold outlives a server's services: with a full disk all of them may be started anew before the API can take an event.
var untold = make(chan told, 64)

func newEvents(kubeconfig, node string) *events {
	return &events{kubeconfig: kubeconfig, node: node, queue: untold}
}

// tell never waits.
func (e *events) tell(event datastore.Event) { e.put(told{event, time.Now()}) }

func (e *events) put(t told) {
	for {
		select {
		case e.queue <- t:
			return
		default:
		}
		select {
		case <-e.queue:
		default:
		}
	}
}

func (e *events) service() supervise.Service {
	return supervise.Service{Name: "datastore-events", Needs: []string{"kube-apiserver"}, Run: e.run}
}

func (e *events) run(ctx context.Context, ready func()) error {
	config, err := clientcmd.BuildConfigFromFlags("", e.kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ready()
	e.carry(ctx, client)
	return nil
}

// carry posts what is told until ctx ends. What it cannot is for the next.
func (e *events) carry(ctx context.Context, client kubernetes.Interface) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-e.queue:
			if !e.post(ctx, client, t) {
				e.put(t)
				return
			}
		}
	}
}

// post tries until the event is stored or ctx ends.
func (e *events) post(ctx context.Context, client kubernetes.Interface, t told) bool {
	kind := corev1.EventTypeNormal
	if t.Warning {
		kind = corev1.EventTypeWarning
	}
	at := metav1.NewTime(t.at)
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", e.node, t.at.UnixNano()), Namespace: metav1.NamespaceDefault},
		// kubelet's events name nodes in the same way, and kubectl describe looks for that.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: e.node, UID: types.UID(e.node)},
		Reason:         t.Reason, Message: t.Message, Type: kind,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		Source: corev1.EventSource{Component: "skerryd", Host: e.node},
	}
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		_, err := client.CoreV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			return true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
		}
	}
}
