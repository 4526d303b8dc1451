package agent

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/kubelet/nodestatus"
)

// A node says its external addresses as a cloud would; kubelet leaves them there.
func TestExternalAddresses(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.NodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8::5")}
	cfg.NodeExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8:1::5")}
	cfg.Settings.NodeLabel, cfg.Settings.NodeTaint = []string{"zone=north"}, []string{"a=b:NoSchedule"}
	want := []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "192.0.2.5"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::5"},
		{Type: corev1.NodeExternalIP, Address: "203.0.113.5"}, {Type: corev1.NodeExternalIP, Address: "2001:db8:1::5"},
		{Type: corev1.NodeHostName, Address: cfg.NodeName},
	}
	l := newLayout(cfg)
	server, err := l.kubeletServer()
	if err != nil {
		t.Fatal(err)
	}
	there := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: cfg.NodeName, Labels: map[string]string{"mine": "too"}}}
	there.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.9"}, {Type: corev1.NodeHostName, Address: cfg.NodeName}}
	for name, client := range map[string]*fake.Clientset{"new": fake.NewClientset(), "there": fake.NewClientset(there)} {
		if err := l.writeAddresses(t.Context(), client, server); err != nil {
			t.Fatal(err)
		}
		node, err := client.CoreV1().Nodes().Get(t.Context(), cfg.NodeName, metav1.GetOptions{})
		if err != nil || !slices.Equal(node.Status.Addresses, want) {
			t.Fatalf("%s: %v, %v", name, node.Status.Addresses, err)
		}
		fresh := node.Labels["zone"] == "north" && len(node.Spec.Taints) == 1 && node.Spec.Taints[0].Key == "a"
		if kept := node.Labels["mine"] == "too"; fresh == kept || fresh != (name == "new") {
			t.Errorf("%s: labels %v, taints %v", name, node.Labels, node.Spec.Taints)
		}
		for _, external := range []bool{true, false} {
			seen := node.DeepCopy()
			set := nodestatus.NodeAddress([]net.IP{cfg.NodeIPs[0].AsSlice(), cfg.NodeIPs[1].AsSlice()}, func(net.IP) error { return nil }, cfg.NodeName, external, nil)
			if err := set(t.Context(), seen); err != nil || slices.Equal(seen.Status.Addresses, want) != external {
				t.Errorf("%s: of it a kubelet makes, with a cloud: %v, %v, %v", name, external, seen.Status.Addresses, err)
			}
		}
	}
}

// Kubelet is not started before the Node has its addresses, and leaves them alone; but for a person's own cloud, or without any.
func TestBeCloud(t *testing.T) {
	var asked atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"kind":"Node","apiVersion":"v1","metadata":{"name":"north-1"}}`)
	}))
	defer api.Close()
	for _, c := range []struct {
		external []netip.Addr
		args     []string
		provider string
		asked    int32
	}{
		{nil, nil, "", 0},
		{[]netip.Addr{netip.MustParseAddr("203.0.113.5")}, nil, "external", 2},
		{[]netip.Addr{netip.MustParseAddr("203.0.113.5")}, []string{"cloud-provider=external"}, "external", 0},
	} {
		asked.Store(0)
		cfg := testConfig(t.TempDir())
		cfg.NodeExternalIPs, cfg.Settings.KubeletArg, cfg.KubeletKubeconfig = c.external, c.args, kubeconfigTo(t, api.URL)
		l := newLayout(cfg)
		server, err := l.kubeletServer()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.beCloud(t.Context(), server); err != nil || server.CloudProvider != c.provider || asked.Load() != c.asked {
			t.Errorf("%v %q: cloud %q, asked %d times, %v", c.external, c.args, server.CloudProvider, asked.Load(), err)
		}
	}
}
