package membership

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skerry-os/skerry/pkg/pki"
)

// Who looks at the events learns in time what ends, once a day and no more.
func TestWhatEndsIsTold(t *testing.T) {
	b := newBench(t, 0, nil)
	count := func() map[string]int {
		t.Helper()
		list, err := b.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		for _, e := range list.Items {
			out[e.Reason]++
			if e.Reason == "AuthorityExpires" && !strings.Contains(e.Message, "rotate-ca") {
				t.Errorf("says %q", e.Message)
			}
		}
		return out
	}
	now := time.Now()
	b.tellExpiry(t.Context(), b.client, now)
	b.tellExpiry(t.Context(), b.client, now.Add(pki.Lifetime*2/3)) // they are renewed about now
	if got := count(); len(got) != 0 {
		t.Errorf("when all is well: %v", got)
	}
	late := now.Add(pki.Lifetime - pki.Lifetime/10)
	for range 3 {
		b.tellExpiry(t.Context(), b.client, late)
	}
	first := count()
	if first["CertificateExpires"] != 9 || first["AuthorityExpires"] != 0 {
		t.Errorf("before the certificates end: %v", first)
	}
	b.tellExpiry(t.Context(), b.client, now.Add(9*pki.Lifetime+pki.Lifetime/2))
	if got := count(); got["AuthorityExpires"] != 3 {
		t.Errorf("in the authorities' last year: %v", got)
	}
}

// Whoever is not let in is told of, and who asks again and again is not told of again and again.
func TestRefusalsAreTold(t *testing.T) {
	b := newBench(t, 0, nil)
	for range 3 {
		b.refusedNode("n", "another-clusters-token")
		b.refusedNode("kubernetes", own)
	}
	list, err := b.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range list.Items {
		got[e.Reason] += e.InvolvedObject.Name + ": " + e.Message + "\n"
	}
	if strings.Count(got["JoinRefused"], "\n") != 1 || !strings.Contains(got["JoinRefused"], "s1: a machine at 127.0.0.1 was refused: the token is not this cluster's") {
		t.Errorf("a wrong token: %q", got["JoinRefused"])
	}
	if strings.Count(got["NodeRefused"], "\n") != 1 || !strings.Contains(got["NodeRefused"], "kubernetes: node kubernetes at 127.0.0.1 was refused: ") {
		t.Errorf("a wrong name: %q", got["NodeRefused"])
	}
}

func (b *bench) refusedNode(name, token string) { b.refused(b.node(name, "m", token)) }
