package agent

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// After a change of nameservers the DNS pods of before go, and nothing else.
func TestRenewDNS(t *testing.T) {
	since := time.Unix(1e9, 0)
	pod := func(name string, started time.Time, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name, Labels: map[string]string{"k8s-app": "kube-dns"}},
			Spec:       corev1.PodSpec{NodeName: "n", DNSPolicy: corev1.DNSDefault},
			Status:     corev1.PodStatus{StartTime: &metav1.Time{Time: started}},
		}
		if change != nil {
			change(p)
		}
		return p
	}
	client := fake.NewClientset(
		pod("old", since.Add(-time.Hour), nil),
		pod("new", since.Add(time.Second), nil),
		pod("asks-elsewhere", since.Add(-time.Hour), func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSNone }),
		pod("not-started", since, func(p *corev1.Pod) { p.Status.StartTime = nil }),
		pod("other", since.Add(-time.Hour), func(p *corev1.Pod) { p.Labels = nil }),
	)
	n, err := (&dns{node: "n", client: client}).renew(t.Context(), since)
	if n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, p := range list.Items {
		left = append(left, p.Name)
	}
	slices.Sort(left)
	if want := []string{"asks-elsewhere", "new", "not-started", "other"}; !slices.Equal(left, want) {
		t.Errorf("left are %v", left)
	}
}
