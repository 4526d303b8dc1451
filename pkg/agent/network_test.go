package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skerry-os/skerry/pkg/podnet"
	"github.com/skerry-os/skerry/pkg/supervise"
)

// A node that somebody deletes registers again, which takes a new start; who leads to services makes no difference. Here the Node
// is the only one, so that the cluster has none left.
func TestADeletedNodeStartsAnew(t *testing.T) {
	own := nodeAt("192.0.2.1")
	own.UID = "first"
	marked := nodeAt()
	marked.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	deleted := make(chan struct{})
	var mu sync.Mutex
	var event []byte
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := json.NewEncoder(w)
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events"):
			mu.Lock()
			defer mu.Unlock()
			event, _ = io.ReadAll(r.Body)
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"kind":"Event","apiVersion":"v1"}`)
		case r.URL.Path != "/api/v1/nodes" || r.URL.Query().Get("sendInitialEvents") == "":
			w.WriteHeader(http.StatusNotFound)
		default:
			_ = answer.Encode(map[string]any{"type": "ADDED", "object": own})
			_ = answer.Encode(map[string]any{"type": "BOOKMARK", "object": marked})
			w.(http.Flusher).Flush()
			select {
			case <-deleted:
				_ = answer.Encode(map[string]any{"type": "DELETED", "object": own})
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			case <-r.Context().Done():
			}
		}
	}))
	defer api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg := testConfig(t.TempDir())
	cfg.NodeName, cfg.DisableKubeProxy, cfg.FlannelBackend = own.Name, true, string(podnet.None)
	cfg.KubeletKubeconfig = kubeconfigTo(t, api.URL)
	cfg.KubeProxyKubeconfig = cfg.KubeletKubeconfig
	all := Services(cfg)
	i := slices.IndexFunc(all, func(s supervise.Service) bool { return s.Name == "pod-network" })
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- all[i].Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the Node was not seen: %v", err)
	}
	close(deleted)
	if err := <-ended; !errors.Is(err, supervise.ErrAgain) || !strings.Contains(err.Error(), "deleted node n") {
		t.Errorf("a node that was deleted goes on: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !bytes.Contains(event, []byte("NodeDeleted")) {
		t.Errorf("the event: %q", event)
	}
}

func TestIsDeleted(t *testing.T) {
	node := func(name, uid string) *corev1.Node {
		n := &corev1.Node{}
		n.Name, n.UID = name, types.UID(uid)
		return n
	}
	n := newNode(newLayout(Config{NodeName: "own"}))
	for i, c := range []struct {
		nodes []*corev1.Node
		want  bool
	}{
		{nil, false},
		{[]*corev1.Node{node("other", "x")}, false}, // not registered yet
		{[]*corev1.Node{node("other", "x"), node("own", "1")}, false},
		{nil, false}, // not known
		{[]*corev1.Node{node("own", "1")}, false},
		{[]*corev1.Node{node("own", "2")}, true},
		{[]*corev1.Node{node("other", "x")}, true},
		{[]*corev1.Node{}, true},
	} {
		if got := n.isDeleted(c.nodes); got != c.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}

func kubeconfigTo(t *testing.T, url string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + url + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
