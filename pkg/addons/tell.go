package addons

import (
	"log/slog"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	coretyped "k8s.io/client-go/kubernetes/typed/core/v1"
	events "k8s.io/client-go/tools/record"
)

// Reasons of the events, which are about the node whose files they speak of.
const (
	reasonFault   = "ManifestFault"
	reasonMended  = "ManifestMended"
	reasonApplied = "ManifestApplied"
	reasonRemoved = "ManifestRemoved"
)

// teller writes events and the log, once for each thing.
type teller struct {
	recorder events.EventRecorder
	node     *corev1.ObjectReference
	stop     func()

	mu    sync.Mutex
	fault map[string]string // what was last told of a unit
}

func newTeller(client kubernetes.Interface, node string) *teller {
	b := events.NewBroadcaster()
	b.StartRecordingToSink(&coretyped.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return &teller{
		recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "skerry-addons", Host: node}),
		node:     &corev1.ObjectReference{Kind: "Node", Name: node, UID: types.UID(node)}, // as kubelet's own events have it
		stop:     b.Shutdown,
		fault:    map[string]string{},
	}
}

func (t *teller) outcome(what string, o outcome) {
	fault := ""
	if o.fault != nil {
		fault = o.fault.Error()
	}
	t.mu.Lock()
	before := t.fault[what+"/"+o.unit]
	t.fault[what+"/"+o.unit] = fault
	t.mu.Unlock()
	switch {
	case fault == before:
	case fault != "":
		t.event(corev1.EventTypeWarning, reasonFault, o.unit+": "+fault)
	default:
		t.event(corev1.EventTypeNormal, reasonMended, o.unit+": all applied")
	}
	if o.applied > 0 {
		slog.Info(what+": applied", "name", o.unit, "objects", o.applied)
		t.event(corev1.EventTypeNormal, reasonApplied, o.unit)
	}
	if len(o.removed) > 0 {
		var names []string
		for _, r := range o.removed {
			names = append(names, r.String())
		}
		slog.Info(what+": removed what is no longer wanted", "name", o.unit, "objects", names)
		t.event(corev1.EventTypeNormal, reasonRemoved, o.unit+": removed "+strings.Join(names, ", "))
	}
}

// event cuts a message to what an event can hold.
func (t *teller) event(kind, reason, message string) {
	const most = 1000
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "…"
	}
	t.recorder.Event(t.node, kind, reason, message)
}
