package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	utilnode "k8s.io/kubernetes/pkg/util/node"

	"github.com/skerry-os/skerry/pkg/supervise"
)

// ownNode stands between kube-proxy and the API where kube-proxy looks at its own Node. kube-proxy calls os.Exit when that is
// deleted or has other addresses, and offers no way to be told otherwise. In a process that is a whole server this must not
// happen in the middle of whatever else it does: so kube-proxy is not shown such a change. Instead everything is stopped in order
// and started anew: for other addresses because of what is told here, for a deleted Node because of whoever follows the pod
// network, which runs without kube-proxy too.
//
// It is an authentication provider of client-go, the one public way from a kubeconfig to the requests that are made with it. It
// asks for JSON, so that it can read the answers.
type ownNode struct {
	name string
	news chan nodeNews

	mu        sync.Mutex
	known     bool     // kube-proxy has seen the Node
	addresses []net.IP // of it, once there were any
	told      bool
}

// nodeNews is why everything must start anew, as an event says it.
type nodeNews struct{ reason, message string }

func newOwnNode(name string) *ownNode { return &ownNode{name: name, news: make(chan nodeNews, 1)} }

var ownNodes atomic.Int64 // client-go knows providers by a name of the process

// kubeconfig writes a copy of a kubeconfig whose requests come by here, into the folder, and returns its name.
func (o *ownNode) kubeconfig(name, folder string) (string, error) {
	provider := fmt.Sprintf("skerry-own-node-%d", ownNodes.Add(1))
	err := rest.RegisterAuthProviderPlugin(provider, func(string, map[string]string, rest.AuthProviderConfigPersister) (rest.AuthProvider, error) {
		return o, nil
	})
	if err != nil {
		return "", err
	}
	k, err := clientcmd.LoadFromFile(name)
	if err != nil {
		return "", err
	}
	for _, user := range k.AuthInfos {
		user.AuthProvider = &clientcmdapi.AuthProviderConfig{Name: provider}
	}
	out := filepath.Join(folder, kubeProxyKubeconfig)
	return out, clientcmd.WriteToFile(*k, out)
}

// Login is client-go's; there is nobody to ask.
func (o *ownNode) Login() error { return nil }

// WrapTransport is client-go's.
func (o *ownNode) WrapTransport(next http.RoundTripper) http.RoundTripper {
	return transport(func(r *http.Request) (*http.Response, error) {
		q := r.URL.Query()
		if r.Method != http.MethodGet || r.URL.Path != "/api/v1/nodes" || q.Get("fieldSelector") != "metadata.name="+o.name {
			return next.RoundTrip(r)
		}
		r = r.Clone(r.Context())
		r.Header.Set("Accept", "application/json")
		resp, err := next.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusOK {
			return resp, err
		}
		if watch := q.Get("watch"); watch == "true" || watch == "1" {
			resp.Body = o.stream(resp.Body)
			return resp, nil
		}
		return o.list(resp)
	})
}

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// list lets an answer through that shows no change, and makes an error of another.
func (o *ownNode) list(resp *http.Response) (*http.Response, error) {
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it is read
	if err != nil {
		return nil, err
	}
	var all corev1.NodeList
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, err
	}
	ok := len(all.Items) > 0 || !o.gone()
	for i := range all.Items {
		ok = ok && o.same(&all.Items[i])
	}
	if !ok {
		return nil, fmt.Errorf("node %s is not shown to kube-proxy as it is now", o.name)
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp, nil
}

// filtered is a watch's stream without what kube-proxy must not see.
type filtered struct {
	*io.PipeReader
	from io.Closer
}

func (f filtered) Close() error {
	_ = f.PipeReader.Close() // never fails
	return f.from.Close()
}

func (o *ownNode) stream(from io.ReadCloser) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(o.filter(from, json.NewEncoder(w))) }()
	return filtered{r, from}
}

func (o *ownNode) filter(from io.Reader, to *json.Encoder) error {
	seen := false // in this stream
	for in := json.NewDecoder(from); ; {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := in.Decode(&e); err != nil {
			return err
		}
		var node corev1.Node
		switch e.Type {
		case "ADDED", "MODIFIED":
			if err := json.Unmarshal(e.Object, &node); err != nil {
				return err
			}
			seen = true
			if !o.same(&node) {
				continue
			}
		case "DELETED":
			continue
		case "BOOKMARK":
			if err := json.Unmarshal(e.Object, &node); err != nil {
				return err
			}
			// The end of a list that has no Node in it.
			if node.Annotations[metav1.InitialEventsAnnotationKey] == "true" && !seen && o.gone() {
				return io.ErrUnexpectedEOF
			}
		}
		if err := to.Encode(e); err != nil {
			return err
		}
	}
}

// same says whether the Node has the addresses that kube-proxy knows; it learns the first.
func (o *ownNode) same(node *corev1.Node) bool {
	now, _ := utilnode.GetNodeHostIPs(node) // an error is a Node without any
	o.mu.Lock()
	before := o.addresses
	if len(before) == 0 {
		o.known, o.addresses = true, now
	}
	o.mu.Unlock()
	if len(before) == 0 || slices.EqualFunc(before, now, net.IP.Equal) {
		return true
	}
	if len(now) > 0 { // one that has none is about to get some
		o.tell(nodeNews{"NodeAddressChanged", fmt.Sprintf("the addresses of node %s were %s and are %s", o.name, before, now)})
	}
	return false
}

// gone says that the Node is not there although it was.
func (o *ownNode) gone() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.known
}

func (o *ownNode) tell(n nodeNews) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.told {
		o.told = true
		o.news <- n
	}
}

// again asks for everything to be started anew, and says why.
func (l *layout) again(ctx context.Context, n nodeNews) error {
	l.tellOfNode(ctx, n)
	return fmt.Errorf("%s: %w", n.message, supervise.ErrAgain)
}

// tellOfNode makes an event of it, if the API takes one at once.
func (l *layout) tellOfNode(ctx context.Context, n nodeNews) {
	if err := l.recordEvent(ctx, n); err != nil {
		slog.Warn("an event was not recorded", "reason", n.reason, "err", err)
	}
}

func (l *layout) recordEvent(ctx context.Context, n nodeNews) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", l.KubeletKubeconfig)
	if err == nil {
		var client kubernetes.Interface
		if client, err = kubernetes.NewForConfig(config); err == nil {
			now := metav1.Now()
			_, err = client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
				ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", l.NodeName, now.UnixNano()), Namespace: metav1.NamespaceDefault},
				InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: l.NodeName, APIVersion: "v1"},
				Type:           corev1.EventTypeWarning, Reason: n.reason, Message: n.message,
				FirstTimestamp: now, LastTimestamp: now, Count: 1, Source: corev1.EventSource{Component: "skerryd", Host: l.NodeName},
			}, metav1.CreateOptions{})
		}
	}
	return err
}
