package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func nodeAt(ips ...string) *corev1.Node {
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "7"}}
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	return n
}

// Through a real client with a real informer, as kube-proxy has it: what would end the process is not seen, and other addresses are
// told here.
func TestOwnNode(t *testing.T) {
	marked := nodeAt()
	marked.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	type event struct {
		Type   string       `json:"type"`
		Object *corev1.Node `json:"object"`
	}
	synced := []event{{"ADDED", nodeAt("192.0.2.1")}, {"BOOKMARK", marked}}
	for name, c := range map[string]struct {
		first  []event // of the first watch, which then ends; later ones have the end of an empty list alone
		reason string  // of the news; "" for none
		seen   string  // the address that the informer has at the end
	}{
		"nothing new": {append(synced, event{"MODIFIED", nodeAt("192.0.2.1")}), "", "192.0.2.1"},
		"deleted":     {append(synced, event{"DELETED", nodeAt("192.0.2.1")}), "", "192.0.2.1"},
		"moved":       {append(synced, event{"MODIFIED", nodeAt("192.0.2.2")}), "NodeAddressChanged", "192.0.2.1"},
		"gone":        {synced, "", "192.0.2.1"},
		"none at all": {append(synced, event{"MODIFIED", nodeAt()}), "", "192.0.2.1"},
		"first":       {[]event{{"ADDED", nodeAt()}, {"BOOKMARK", marked}, {"MODIFIED", nodeAt("192.0.2.3")}}, "", "192.0.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			var watches atomic.Int32
			api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept") != "application/json" || r.URL.Query().Get("watch") == "" {
					t.Errorf("asked for %s as %s", r.URL, r.Header.Get("Accept"))
				}
				w.Header().Set("Content-Type", "application/json")
				events := c.first
				if watches.Add(1) > 1 {
					events = []event{{"BOOKMARK", marked}}
				}
				for _, e := range events {
					_ = json.NewEncoder(w).Encode(e)
				}
				w.(http.Flusher).Flush()
				if name != "gone" || watches.Load() > 1 {
					<-r.Context().Done()
				}
			}))
			defer api.Close()
			dir := t.TempDir()
			given := filepath.Join(dir, "given")
			text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]\nusers: [{name: u, user: {token: t}}]\n"+
				"contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n", api.URL)
			if err := os.WriteFile(given, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			own := newOwnNode("n")
			file, err := own.kubeconfig(given, dir)
			if err != nil {
				t.Fatal(err)
			}
			config, err := clientcmd.BuildConfigFromFlags("", file)
			if err != nil {
				t.Fatal(err)
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
				informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=n" }))
			nodes := factory.Core().V1().Nodes()
			_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { t.Error("kube-proxy is shown the deletion") }})
			if err != nil {
				t.Fatal(err)
			}
			factory.Start(ctx.Done())
			factory.WaitForCacheSync(ctx.Done())
			if c.reason != "" {
				select {
				case n := <-own.news:
					if n.reason != c.reason {
						t.Errorf("news: %+v", n)
					}
				case <-ctx.Done():
					t.Fatal("no news")
				}
			}
			address := ""
			for ctx.Err() == nil && address != c.seen {
				if n, err := nodes.Lister().Get("n"); err == nil && len(n.Status.Addresses) > 0 {
					address = n.Status.Addresses[0].Address
				}
				time.Sleep(time.Millisecond)
			}
			if address != c.seen {
				t.Errorf("seen at %q", address)
			}
			select {
			case n := <-own.news:
				t.Errorf("more news: %+v", n)
			default:
			}
		})
	}
}

func TestOwnNodeLists(t *testing.T) {
	own := newOwnNode("n")
	answer := func(items ...corev1.Node) error {
		body, err := json.Marshal(corev1.NodeList{Items: items})
		if err != nil {
			t.Fatal(err)
		}
		rt := own.WrapTransport(transport(func(*http.Request) (*http.Response, error) {
			rec := httptest.NewRecorder()
			_, _ = rec.Write(body)
			return rec.Result(), nil
		}))
		resp, err := rt.RoundTrip(httptest.NewRequest(http.MethodGet, "/api/v1/nodes?fieldSelector=metadata.name%3Dn", nil))
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := answer(); err != nil {
		t.Errorf("before there is a Node: %v", err)
	}
	if err := answer(*nodeAt("192.0.2.1")); err != nil {
		t.Error(err)
	}
	if err := answer(); err == nil || !strings.Contains(err.Error(), "node n") {
		t.Errorf("kube-proxy is shown that the Node is gone: %v", err)
	}
}
