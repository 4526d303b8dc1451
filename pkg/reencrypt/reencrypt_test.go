package reencrypt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/skerry-os/skerry/pkg/server/secrets"
)

// A server counts however long ago it gave a sign of life within its lease, and although it is off: with a file of before the
// rotation it could read no secret.
func TestServers(t *testing.T) {
	node := func(name string, labels map[string]string) runtime.Object {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	server := map[string]string{"node-role.kubernetes.io/control-plane": "true"}
	lease := func(name string, age time.Duration) runtime.Object {
		hour, renewed := int32(3600), metav1.NewMicroTime(time.Now().Add(-age))
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system", Labels: map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver"}},
			Spec:       coordinationv1.LeaseSpec{RenewTime: &renewed, LeaseDurationSeconds: &hour},
		}
	}
	for name, c := range map[string]struct {
		want int
		has  []runtime.Object
	}{
		"one":                          {1, []runtime.Object{node("s1", server), node("a1", nil), lease("l1", time.Second)}},
		"two, each with a fresh lease": {2, []runtime.Object{node("s1", server), node("s2", server), lease("l1", time.Second), lease("l2", time.Second)}},
		"two, leases between renewals": {2, []runtime.Object{lease("l1", 9*time.Minute), lease("l2", 5*time.Minute)}},
		"one of two is off":            {2, []runtime.Object{node("s1", server), node("s2", server), lease("l1", time.Minute), lease("l2", 5*time.Hour)}},
		"one was removed long ago":     {1, []runtime.Object{node("s1", server), lease("l1", 5*time.Minute), lease("l2", 2*time.Hour)}},
		"another has no Node yet":      {2, []runtime.Object{node("s1", server), lease("l1", 5*time.Minute), lease("l2", time.Minute)}},
	} {
		c2 := &Cluster{Client: fake.NewClientset(c.has...)}
		if n, err := c2.Servers(t.Context()); err != nil || n != c.want {
			t.Errorf("%s: %d servers, %v; want %d", name, n, err, c.want)
		}
	}
}

// api is as much of an API server as this package asks: it reads the file when it is asked, writes secrets under the first key,
// and can read no other than those it has keys for.
type api struct {
	t      *testing.T
	file   string
	stored map[string]string // secret: the key it is stored under
	fail   func(step int) bool
	step   int
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.step++
	if a.fail != nil && a.fail(a.step) {
		http.Error(w, "power is gone", http.StatusGone)
		return
	}
	e, err := secrets.ReadEncryption(a.file)
	if err != nil {
		a.t.Error(err)
	}
	has := func(key string) bool {
		return slices.ContainsFunc(e.Keys, func(k secrets.Key) bool { return k.Name == key }) || key == "" && e.Plain != secrets.PlainNever
	}
	readable := func(name string) bool {
		if !has(a.stored[name]) {
			a.t.Errorf("secret %s is stored under %q, which the file does not have any more", name, a.stored[name])
		}
		return true
	}
	object := func(name string) corev1.Secret {
		return corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	}
	name := filepath.Base(r.URL.Path)
	var answer any
	switch {
	case r.URL.Path == "/metrics":
		digest, err := secrets.Digest(a.file)
		if err != nil {
			a.t.Error(err)
		}
		fmt.Fprintf(w, "apiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"x\",hash=%q} 1\n", digest)
		return
	case name == "secrets":
		list := corev1.SecretList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "SecretList"}}
		for s := range a.stored {
			readable(s)
			list.Items = append(list.Items, object(s))
		}
		answer = list
	default:
		readable(name)
		if r.Method == http.MethodPut {
			a.stored[name] = e.Keys[0].Name
			if e.Plain == secrets.PlainWritten {
				a.stored[name] = ""
			}
		}
		answer = object(name)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// Wherever a change of how secrets are stored is cut short, every secret stays readable, and the next run ends it.
func TestCutShort(t *testing.T) {
	steps := map[string]struct {
		run  func(context.Context, *Cluster) error
		want func(e *secrets.Encryption, key string) bool
	}{
		"rotate-keys": {
			func(ctx context.Context, c *Cluster) error { return c.RotateKeys(ctx) },
			func(e *secrets.Encryption, key string) bool {
				return e.Plain == secrets.PlainNever && key == "key2" && len(e.Keys) == 1
			},
		},
		"disable": {
			func(ctx context.Context, c *Cluster) error { return c.SetPlain(ctx, true) },
			func(e *secrets.Encryption, key string) bool { return e.Plain == secrets.PlainWritten && key == "" },
		},
		"disable, and enable again": {
			func(ctx context.Context, c *Cluster) error {
				return errors.Join(c.SetPlain(ctx, true), c.SetPlain(ctx, false))
			},
			func(e *secrets.Encryption, key string) bool { return e.Plain == secrets.PlainNever && key == "key1" },
		},
	}
	for name, s := range steps {
		t.Run(name, func(t *testing.T) {
			for cut := 1; ; cut++ {
				dir := t.TempDir()
				if err := secretsFile(dir); err != nil {
					t.Fatal(err)
				}
				a := &api{t: t, file: filepath.Join(dir, "server", "encryption.yaml"), stored: map[string]string{"a": "key1", "b": "key1", "c": "key1"}}
				a.fail = func(step int) bool { return step == cut }
				srv := httptest.NewServer(a)
				t.Cleanup(srv.Close)
				client, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, QPS: -1})
				if err != nil {
					t.Fatal(err)
				}
				c := &Cluster{Client: client, File: a.file, Say: func(string, ...any) {}}
				first := s.run(t.Context(), c)
				reached := a.step >= cut
				if first != nil {
					if err := s.run(t.Context(), c); err != nil && !strings.Contains(err.Error(), "finish it first") {
						t.Fatalf("cut at request %d (%v): the next run: %v", cut, first, err)
					}
				}
				e, err := secrets.ReadEncryption(a.file)
				if err != nil {
					t.Fatal(err)
				}
				for secret, key := range a.stored {
					if !s.want(e, key) {
						t.Fatalf("cut at request %d (%v): secret %s is stored under %q, with %d keys", cut, first, secret, key, len(e.Keys))
					}
				}
				if !reached {
					return
				}
			}
		})
	}
}

func secretsFile(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, "server"), 0o700); err != nil {
		return err
	}
	e := secrets.Encryption{Keys: []secrets.Key{{Name: "key1", Secret: "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}}}
	_, err := e.Write(filepath.Join(dir, "server", "encryption.yaml"))
	return err
}
