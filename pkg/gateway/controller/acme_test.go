package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddypki"
	_ "github.com/caddyserver/caddy/v2/modules/caddypki/acmeserver"
	_ "github.com/caddyserver/caddy/v2/modules/caddytls"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	"github.com/smallstep/certificates/acme"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/skerry-os/skerry/pkg/gateway"
)

// An ACME issuer, Caddy's, reaches this controller's answers at the challenge's path and gives a certificate, once.
func TestACME(t *testing.T) {
	directory, root := acmeServer(t)
	client := fake.NewClientset()
	w := &watcher{namespace: "ingress", stores: map[string]cache.Store{"configmaps": cache.NewStore(cache.MetaNamespaceKeyFunc)}}
	watch, err := client.CoreV1().ConfigMaps("ingress").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	go func() {
		for e := range watch.ResultChan() {
			_ = w.stores["configmaps"].Update(e.Object)
		}
	}()
	c := &Controller{Options: Options{Namespace: "ingress"}, client: client, watch: w}
	c.acme = newIssuer(client, "ingress", w, func() {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(l.Addr())
	}
	acme.InsecurePortHTTP01 = a.Port // instead of 80
	web := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.ServeChallenge(w, r) {
			http.NotFound(w, r)
		}
	})}
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() { _ = web.Close() })
	_ = w.stores["configmaps"].Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ingress", Name: acmeConfig}, Data: map[string]string{
		"directory": directory, "ca.crt": root, "email": "somebody@example.org",
	}})

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.acme.ensure(ctx, "localhost"); err != nil {
		t.Fatal(err)
	}
	s, err := client.CoreV1().Secrets("ingress").Get(ctx, secretName("localhost"), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil || pair.Leaf.VerifyHostname("localhost") != nil || s.Annotations[gateway.ACMEHostAnnotation] != "localhost" {
		t.Errorf("Secret holds %v, %v, %v", pair.Leaf, err, s.Annotations)
	}
	m, err := client.CoreV1().ConfigMaps("ingress").Get(ctx, acmeChallenges, metav1.GetOptions{})
	if err != nil || len(m.Data) > 0 {
		t.Errorf("challenges left behind: %v, %v", m, err)
	}
	// An issuer that cannot be reached: what there is stays, and the next try is not at once.
	_ = w.stores["configmaps"].Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ingress", Name: acmeConfig}, Data: map[string]string{
		"directory": "https://127.0.0.1:1/",
	}})
	c.acme.want([]string{"localhost", "other.test"})
	if again := c.acme.pass(ctx); again < firstPause-time.Second || again > firstPause {
		t.Errorf("looks again after %v", again)
	}
}

// acmeServer runs an issuer with a CA of its own and gives its directory and root certificate.
func acmeServer(t *testing.T) (directory, root string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	err = caddy.Load(fmt.Appendf(nil, `{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"level": "ERROR"}}},
"storage": {"module": "file_system", "root": %q},
"apps": {
  "pki": {"certificate_authorities": {"local": {"install_trust": false}}},
  "tls": {"certificates": {"automate": ["localhost"]}, "automation": {"policies": [{"subjects": ["localhost"], "issuers": [{"module": "internal"}]}]}},
  "http": {"servers": {"acme": {"listen": [%q], "automatic_https": {"disable_redirects": true}, "tls_connection_policies": [{}],
    "routes": [{"handle": [{"handler": "acme_server", "ca": "local", "challenges": ["http-01"]}]}]}}}
}}`, dir, address), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
	data, err := os.ReadFile(filepath.Join(dir, "pki/authorities/local/root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return "https://localhost:" + port + "/acme/local/directory", string(data)
}
