package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
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
	At time.Time
}

// untold outlives a server's services: with a full disk all of them may be started anew before the API can take an event.
var untold = make(chan told, 64)

// untoldEnv is how what is untold outlives the program, which then replaces itself: there may be no disk to write it to.
const untoldEnv = "SKERRYD_UNTOLD"

func newEvents(kubeconfig, node string) *events {
	e := &events{kubeconfig: kubeconfig, node: node, queue: untold}
	if text := os.Getenv(untoldEnv); text != "" {
		_ = os.Unsetenv(untoldEnv) // no other program is to have it
		var before []told
		if err := json.Unmarshal([]byte(text), &before); err != nil {
			slog.Warn("what the datastore told before this start is lost", "err", err)
		}
		for _, t := range before {
			e.put(t)
		}
	}
	return e
}

// KeepUntold adds to an environment what this program's datastore told and the API has not taken, for the one that replaces it.
func KeepUntold(env []string) []string {
	var all []told
	for {
		select {
		case t := <-untold:
			all = append(all, t)
			continue
		default:
		}
		break
	}
	if len(all) == 0 {
		return env
	}
	data, err := json.Marshal(all)
	if err != nil {
		return env
	}
	return append(env, untoldEnv+"="+string(data))
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
	at := metav1.NewTime(t.At)
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", e.node, t.At.UnixNano()), Namespace: metav1.NamespaceDefault},
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
