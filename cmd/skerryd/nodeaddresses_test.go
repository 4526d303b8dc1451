package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
)

// Another node is asked directly, whether it was there at the start or came later; what is none goes through the proxy. Without
// an API, everything but this node does.
func TestOtherNodesAreNotProxied(t *testing.T) {
	up := true
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up || r.URL.Path != "/api/v1/nodes" {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"name":"a1"},"status":{"addresses":[
			{"type":"Hostname","address":"a1"},{"type":"InternalIP","address":"192.0.2.8"},{"type":"InternalIP","address":"2001:db8::8"}]}}]}`)
	}))
	defer api.Close()
	t.Setenv("HOME", t.TempDir())
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: '" + api.URL + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := machine.DefaultServer()
	s.HTTPSProxy = "http://192.0.2.99:3128"
	ask := func(address string) bool {
		t.Helper()
		c, err := nodeConfig(s, "s1", []netip.Addr{netip.MustParseAddr("192.0.2.7")}, &pki.Files{KubeProxy: kubeconfig})
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Proxy(&url.URL{Scheme: "https", Host: address})
		if err != nil {
			t.Fatal(err)
		}
		return p != nil
	}
	for address, through := range map[string]bool{"192.0.2.7:5000": false, "192.0.2.8:5000": false, "[2001:db8::8]:5000": false, "192.0.2.9:5000": true} {
		if got := ask(address); got != through {
			t.Errorf("%s through the proxy: %v", address, got)
		}
	}
	up = false
	if ask("192.0.2.7:5000") || !ask("192.0.2.8:5000") {
		t.Error("without an API: another way than expected")
	}
}
