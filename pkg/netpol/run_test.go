package netpol

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"
)

// A pod's start waits until the packet filter has its rules, and only where there are policies; the switch takes all rules away.
func TestAdmit(t *testing.T) {
	b := newBench(t)
	client := fake.NewClientset()
	c, err := New("one", client)
	check(t, err)
	c.nft = inNode{b.nft, b.node}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() {}) }()
	defer func() { cancel(); check(t, <-ended) }()

	pod := Pod{Namespace: "x", Name: "p", Node: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.2")}}
	admit := func() {
		t.Helper()
		limit, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		check(t, c.Admit(limit, pod))
	}
	admit() // switched off: at once
	_, err = client.CoreV1().ConfigMaps(SwitchNamespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: SwitchName}}, metav1.CreateOptions{})
	check(t, err)
	_, err = client.CoreV1().Pods("x").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "one"}}, metav1.CreateOptions{})
	check(t, err)
	deny := policyOn("", networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}})
	deny.Spec.PodSelector = metav1.LabelSelector{}
	_, err = client.NetworkingV1().NetworkPolicies("x").Create(ctx, deny, metav1.CreateOptions{})
	check(t, err)
	b.eventually("the policy is in force", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.on && !c.whole })
	admit()
	if !b.isolated("10.42.0.2") {
		t.Error("the pod was let go before its rules were there")
	}
	// The sandbox is made anew with another address, and the API's word is still of the one before.
	pod.Addresses = []netip.Addr{netip.MustParseAddr("10.42.0.3")}
	admit()
	_, err = client.CoreV1().Pods("x").UpdateStatus(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"seen": "yes"}}, Spec: corev1.PodSpec{NodeName: "one"},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.42.0.2"}}}}, metav1.UpdateOptions{})
	check(t, err)
	b.eventually("the API's word has come", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.engine.pods["x/p"].Labels["seen"] == "yes" })
	if !b.isolated("10.42.0.3") || b.isolated("10.42.0.2") {
		t.Error("an old address has taken the place of the new one")
	}
	check(t, client.CoreV1().ConfigMaps(SwitchNamespace).Delete(ctx, SwitchName, metav1.DeleteOptions{}))
	b.eventually("the rules are gone", func() bool { return !b.isolated("10.42.0.3") })
	admit()
}

// inNode runs nft in the node's network, whatever goroutine asks.
type inNode struct {
	knftables.Interface
	node ns.NetNS
}

func (i inNode) Run(ctx context.Context, tx *knftables.Transaction) error {
	return i.node.Do(func(ns.NetNS) error { return i.Interface.Run(ctx, tx) })
}

func (i inNode) List(ctx context.Context, kind string) (out []string, err error) {
	err = i.node.Do(func(ns.NetNS) error { out, err = i.Interface.List(ctx, kind); return err })
	return out, err
}

func (b *bench) eventually(what string, f func() bool) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); !f(); {
		select {
		case <-tick.C:
		case <-end:
			b.t.Fatalf("it never came that %s", what)
		}
	}
}

// isolated asks the kernel whether connections to the address are looked at.
func (b *bench) isolated(address string) (yes bool) {
	b.t.Helper()
	b.on(b.node, func() {
		list, err := b.nft.ListElements(b.t.Context(), "map", "in4")
		if err != nil {
			return // no table
		}
		for _, el := range list {
			yes = yes || strings.Join(el.Key, "") == address
		}
	})
	return yes
}
