package membership

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/token"
)

// A node's token opens for that node and no other, and for one machine of that name.
func TestATokenForANode(t *testing.T) {
	b := newBench(t, 0, nil)
	made, err := CreateToken(t.Context(), b.client, Token{Node: "a1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	want(t, b.refused(b.node("a2", "m", made.Secret)), "is for node a1", `"a2"`)
	first := b.node("a1", "m1", made.Secret)
	b.joins(first)
	// The answer got lost: the machine asks again.
	first.DataDir = t.TempDir()
	b.joins(first)
	b.heardOf("a1", time.Now())
	want(t, b.refused(b.node("a1", "copy", made.Secret)), "belongs to machine m1", "is alive")
	b.heardOf("a1", time.Now().Add(-time.Hour))
	want(t, b.refused(b.node("a1", "copy", made.Secret)), "skerryd node approve a1")
	if _, err := ApproveNode(t.Context(), b.client, "a1"); err != nil {
		t.Fatal(err)
	}
	b.joins(b.node("a1", "copy", made.Secret)) // the same card in a new machine
	all, err := ListTokens(t.Context(), b.client, time.Now())
	if err != nil || len(all) != 1 || all[0].Node != "a1" || all[0].Machine != "copy" {
		t.Errorf("listed as %+v %v", all, err)
	}
	if _, err := join.FetchKubeconfig(t.Context(), b.addr, made.Secret); err == nil {
		t.Error("a node's token opened the cluster")
	}
	// Who is removed does not come back with it.
	if err := RemoveNode(t.Context(), b.client, "a1"); err != nil {
		t.Fatal(err)
	}
	want(t, b.refused(b.node("a1", "copy", made.Secret)), "the token is not this cluster's")
}

// A server's token lets that server join as one, and opens nothing else.
func TestATokenForAServer(t *testing.T) {
	b := newBench(t, 0, func(c *Config) { c.Alone = "" })
	made, err := CreateToken(t.Context(), b.client, Token{Node: "s2", Server: true}, 0)
	if err != nil {
		t.Fatal(err)
	}
	tk, err := token.Parse(b.pinned("x")[:69] + made.Secret)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(node string) (*join.Answer, error) {
		return join.Join(t.Context(), b.addr, tk, join.Request{Node: node, Machine: join.Machine{ID: "m"}, Addresses: []string{"192.0.2.8"}, Time: time.Now(), Server: true})
	}
	if _, err := ask("s3"); err == nil {
		t.Error("another server joined with it")
	}
	a, err := ask("s2")
	if err != nil || len(a.Files) == 0 {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := join.FetchKubeconfig(t.Context(), b.addr, tk.String()); err == nil {
		t.Error("a server's token gave the kubeconfig")
	}
}

// The machines of a fleet may ask before the server has stored its tokens: they wait, and are taken in as soon as it has, once.
func TestSeededTokens(t *testing.T) {
	b := newBench(t, 0, nil)
	tokens := []seed.Token{{Secret: "aaaaaa.bbbbbbbbbbbbbbbb", Node: "a1"}, {Secret: "cccccc.bbbbbbbbbbbbbbbb", Node: "a2"}}
	data, err := seed.MarshalPending(tokens)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.cfg.DataDir, seed.PendingName)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, b.refused(b.node("a1", "m1", tokens[0].Secret)), "has not stored the fleet's tokens yet")
	want(t, b.refused(b.node("a2", "m1", tokens[0].Secret)), "is for node a1")
	// Power fails when one of them is stored.
	if _, err := CreateToken(t.Context(), b.client, Token{Secret: tokens[0].Secret, Node: "a1"}, 0); err != nil {
		t.Fatal(err)
	}
	b.joins(b.node("a1", "m1", tokens[0].Secret))
	for range 2 { // a second time there is nothing to store
		if !b.storePending(t.Context(), b.client) {
			t.Error("not stored")
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the tokens are still in their file")
	}
	b.joins(b.node("a2", "m2", tokens[1].Secret))
	all, err := ListTokens(t.Context(), b.client, time.Now())
	if err != nil || len(all) != 2 || all[0].Machine != "m1" {
		t.Errorf("%+v %v", all, err)
	}
}

// What a fleet prints for a cluster that runs already is what this package reads.
func TestManifestsAreTokens(t *testing.T) {
	b := newBench(t, 0, nil)
	tokens := []seed.Token{{Secret: "aaaaaa.bbbbbbbbbbbbbbbb", Node: "a9"}, {Secret: "123456.bbbbbbbbbbbbbbbb", Node: "s9", Server: true}}
	for doc := range bytes.SplitSeq(seed.Manifest(tokens), []byte("---\n")) {
		var s corev1.Secret
		if err := yaml.UnmarshalStrict(doc, &s); err != nil {
			t.Fatal(err)
		}
		if s.Name == "" {
			continue
		}
		s.Data = map[string][]byte{}
		for k, v := range s.StringData { // as the API does
			s.Data[k] = []byte(v)
		}
		if _, err := b.client.CoreV1().Secrets(s.Namespace).Create(t.Context(), &s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := ListTokens(t.Context(), b.client, time.Now())
	if err != nil || len(all) != 2 || all[0].Secret != tokens[1].Secret || !all[0].Server || all[0].Node != "s9" || all[1].Server || all[1].Node != "a9" {
		t.Errorf("%+v %v", all, err)
	}
}
