package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/yaml"

	"github.com/skerry-os/skerry/pkg/controllers"
)

// cluster is an API with a controller.
type cluster struct {
	t       *testing.T
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	now     time.Time
	told    []string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, client: fake.NewClientset(), now: noon}
	c.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{Plans: "UpdatePlanList", Upgrades: "PlanList"})
	// It has no apply.
	c.dynamic.PrependReactor("patch", Plans.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.PatchAction)
		if p.GetPatchType() != types.ApplyPatchType {
			return false, nil, nil
		}
		o := &unstructured.Unstructured{}
		if err := json.Unmarshal(p.GetPatch(), &o.Object); err != nil {
			return true, nil, err
		}
		o.SetUID(types.UID("uid-of-" + o.GetName()))
		return true, o, c.dynamic.Tracker().Create(Plans, o, "")
	})
	return c
}

func (c *cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) create(kind schema.GroupVersionResource, o *unstructured.Unstructured) {
	c.t.Helper()
	o.SetUID(types.UID("uid-of-" + o.GetName()))
	_, err := c.dynamic.Resource(kind).Namespace(o.GetNamespace()).Create(c.t.Context(), o, metav1.CreateOptions{})
	c.check(err)
}

// plan creates an UpdatePlan, as old as its name says.
func (c *cluster) plan(name, spec string) {
	c.t.Helper()
	var s map[string]any
	c.check(yaml.Unmarshal([]byte(spec), &s))
	c.create(Plans, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": Group + "/v1alpha1", "kind": "UpdatePlan", "metadata": map[string]any{"name": name, "generation": int64(1)}, "spec": s,
	}})
}

func (c *cluster) node(name string, server bool, r Report) {
	c.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}}
	if server {
		n.Labels[serverLabel] = "true"
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	_, err := c.client.CoreV1().Nodes().Create(c.t.Context(), n, metav1.CreateOptions{})
	c.check(err)
	c.report(name, r)
}

func (c *cluster) report(name string, r Report) {
	c.t.Helper()
	_, err := c.client.CoreV1().Nodes().Patch(c.t.Context(), name, types.MergePatchType, r.Patch(), metav1.PatchOptions{})
	c.check(err)
}

func (c *cluster) list(kind schema.GroupVersionResource) []unstructured.Unstructured {
	c.t.Helper()
	l, err := c.dynamic.Resource(kind).List(c.t.Context(), metav1.ListOptions{})
	c.check(err)
	return l.Items
}

func (c *cluster) names(kind schema.GroupVersionResource) string {
	var names []string
	for _, o := range c.list(kind) {
		names = append(names, o.GetName())
	}
	return strings.Join(names, " ")
}

// text is a field of an object, as JSON.
func (c *cluster) text(kind schema.GroupVersionResource, namespace, name, field string) string {
	c.t.Helper()
	o, err := c.dynamic.Resource(kind).Namespace(namespace).Get(c.t.Context(), name, metav1.GetOptions{})
	c.check(err)
	b, err := json.Marshal(o.Object[field])
	c.check(err)
	return string(b)
}

func (c *cluster) request(node string) *Request {
	c.t.Helper()
	n, err := c.client.CoreV1().Nodes().Get(c.t.Context(), node, metav1.GetOptions{})
	c.check(err)
	return RequestOf(n)
}

func (c *cluster) asked() string {
	var names []string
	for _, n := range []string{"a1", "a2", "s1", "s2", "s3"} {
		if _, err := c.client.CoreV1().Nodes().Get(c.t.Context(), n, metav1.GetOptions{}); err != nil {
			continue
		}
		if r := c.request(n); r != nil && r.Version != "" {
			names = append(names, fmt.Sprintf("%s=%s by %s", n, r.Version, r.Plan))
		}
	}
	return strings.Join(names, ", ")
}

func (c *cluster) events() string { return strings.Join(c.told, "\n") }

// pass is one of the controller's, over what the API has now.
func (c *cluster) pass() {
	c.t.Helper()
	index := func() cache.Indexer {
		return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	nodes, err := c.client.CoreV1().Nodes().List(c.t.Context(), metav1.ListOptions{})
	c.check(err)
	known, plans, upgrades := index(), index(), index()
	for _, n := range nodes.Items {
		c.check(known.Add(&n))
	}
	for _, o := range c.list(Plans) {
		c.check(plans.Add(&o))
	}
	for _, o := range c.list(Upgrades) {
		c.check(upgrades.Add(&o))
	}
	events := record.NewFakeRecorder(100)
	ctl := &controller{
		Kit: &controllers.Kit{Client: c.client, Events: events}, dynamic: c.dynamic, nodes: corelisters.NewNodeLister(known),
		plans: cache.NewGenericLister(plans, Plans.GroupResource()), upgrades: cache.NewGenericLister(upgrades, Upgrades.GroupResource()),
		now: func() time.Time { return c.now },
	}
	_, err = ctl.pass(c.t.Context())
	c.check(err)
	close(events.Events)
	for e := range events.Events {
		c.told = append(c.told, e)
	}
}

// Of all servers, in however many plans, one is away at a time.
func TestPlansTakeTurnsWithServers(t *testing.T) {
	c := newCluster(t)
	for _, s := range []string{"s1", "s2", "s3"} {
		c.node(s, true, Report{Version: "1.0.0"})
		c.plan("p-"+s, "{version: 1.1.0, nodeSelector: {matchLabels: {name: "+s+"}}}")
	}
	var order []string
	for range 10 {
		c.pass()
		var away []string
		for _, s := range []string{"s1", "s2", "s3"} {
			n, err := c.client.CoreV1().Nodes().Get(t.Context(), s, metav1.GetOptions{})
			c.check(err)
			if r := RequestOf(n); r.Version != "" && !memberOf(n).runs(r.Version) {
				away = append(away, s)
			}
		}
		if len(away) > 1 {
			t.Fatalf("%v are away", away)
		}
		order = append(order, away...)
		for _, s := range away {
			c.report(s, Report{Version: "1.1.0"})
		}
	}
	if !slices.Equal(order, []string{"s1", "s2", "s3"}) {
		t.Errorf("asked %v", order)
	}
}

// A plan that cannot be read says so, and keeps no other plan waiting.
func TestPlansThatCannotBeRead(t *testing.T) {
	c := newCluster(t)
	c.node("a1", false, Report{Version: "1.0.0"})
	c.plan("a-deadline", "{version: 1.1.0, deadline: soon}")
	c.plan("b-count", "{version: 1.1.0, maxFailures: few}")
	c.plan("c-sense", "{version: 1.1.0, channel: stable}")
	c.plan("d-good", "{version: 1.1.0}")
	c.pass()
	for name, want := range map[string]string{"a-deadline": `soon`, "b-count": "maxFailures", "c-sense": "either a version or a channel"} {
		if status := c.text(Plans, "", name, "status"); !strings.Contains(status, Refused) || !strings.Contains(status, want) {
			t.Errorf("%s: %s, want %s", name, status, want)
		}
	}
	if got := c.asked(); got != "a1=1.1.0 by d-good" {
		t.Errorf("asked %s", got)
	}
}

// A plan that is made again begins anew, also when nobody saw that there was none for a moment.
func TestAPlanMadeAgain(t *testing.T) {
	c := newCluster(t)
	c.node("a1", false, Report{Version: "1.0.0"})
	c.plan("p", "{version: 1.1.0}")
	c.pass()
	attempt := c.request("a1").Attempt
	c.report("a1", Report{Version: "1.0.0", Attempt: attempt, Failed: map[string]string{"1.1.0": "kernel panic"}})
	c.pass()
	if status := c.text(Plans, "", "p", "status"); !strings.Contains(status, Failed) || c.asked() != "" {
		t.Fatalf("%s, asked %s", status, c.asked())
	}
	c.check(c.dynamic.Resource(Plans).Delete(t.Context(), "p", metav1.DeleteOptions{}))
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": Group + "/v1alpha1", "kind": "UpdatePlan", "metadata": map[string]any{"name": "p", "uid": "another", "generation": int64(1)}, "spec": map[string]any{"version": "1.1.0"}}}
	_, err := c.dynamic.Resource(Plans).Create(t.Context(), o, metav1.CreateOptions{})
	c.check(err)
	c.pass()
	if got := c.asked(); got != "a1=1.1.0 by p" || c.request("a1").Attempt == attempt {
		t.Errorf("asked %s, attempt %s", got, c.request("a1").Attempt)
	}
}
