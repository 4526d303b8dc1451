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
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// farm is a cluster whose nodes do what they are asked, some of them badly.
type farm struct {
	t      *testing.T
	nodes  map[string]*corev1.Node
	bad    map[string]map[string]string // version -> node -> why it fails there; "" hangs
	plan   *plan
	status Status
	now    time.Time
	order  []string // in which nodes were asked, as node=version
	most   int      // nodes under way at a time
}

func newFarm(t *testing.T, spec Spec, names ...string) *farm {
	t.Helper()
	p, err := read(spec)
	if err != nil {
		t.Fatal(err)
	}
	f := &farm{t: t, nodes: map[string]*corev1.Node{}, bad: map[string]map[string]string{}, plan: p, now: noon}
	for _, name := range names {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}, Annotations: map[string]string{}}}
		if strings.HasPrefix(name, "s") {
			n.Labels[serverLabel] = "true"
		}
		f.nodes[name] = n
		f.ready(name, true)
		f.report(name, Report{Version: "1.0.0", Offered: "1.1.0"})
	}
	return f
}

func (f *farm) ready(name string, yes bool) {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	f.nodes[name].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
}

func (f *farm) report(name string, r Report) {
	b, err := json.Marshal(r)
	if err != nil {
		f.t.Fatal(err)
	}
	f.nodes[name].Annotations[reportAnnotation] = string(b)
}

// pass is one decision, whose requests are put onto the nodes.
func (f *farm) pass() decision {
	var all, mine []member
	for _, n := range f.nodes {
		m := memberOf(n)
		all = append(all, m)
		if f.plan.selector.Matches(labels.Set(n.Labels)) {
			mine = append(mine, m)
		}
	}
	d := f.plan.decide("p", f.status, all, mine, f.now)
	f.status = d.status
	for _, m := range mine {
		r := d.requests[m.node.Name]
		if r == nil {
			f.t.Fatalf("node %s of the plan has no request", m.node.Name)
		}
		if r.Version != "" && !m.runs(r.Version) && (m.request == nil || m.request.Version != r.Version) {
			f.order = append(f.order, m.node.Name+"="+r.Version)
		}
		b, err := json.Marshal(r)
		if err != nil {
			f.t.Fatal(err)
		}
		m.node.Annotations[requestAnnotation] = string(b)
	}
	f.most = max(f.most, len(d.status.Updating))
	return d
}

// work lets every node that was asked do its update.
func (f *farm) work() {
	for name, n := range f.nodes {
		r, now := RequestOf(n), ReportOf(n)
		if r == nil || now == nil || r.Version == "" || r.Version == now.Version {
			continue
		}
		why, bad := f.bad[r.Version][name]
		switch {
		case !bad:
			f.report(name, Report{Version: r.Version, Failed: now.Failed})
		case why != "":
			now.Failed = map[string]string{r.Version: why}
			f.report(name, *now)
		}
	}
}

// until goes on, a minute at a time, until the plan is in the phase.
func (f *farm) until(phase string) {
	f.t.Helper()
	for range 500 {
		if f.pass(); f.status.Phase == phase {
			return
		}
		f.work()
		f.now = f.now.Add(time.Minute)
	}
	f.t.Fatalf("never %s: %+v", phase, f.status)
}

func (f *farm) runs(version string) (names []string) {
	for name, n := range f.nodes {
		if ReportOf(n).Version == version {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (f *farm) wantOrder(want string) {
	f.t.Helper()
	if got := strings.Join(f.order, " "); got != want {
		f.t.Errorf("asked %s, want %s", got, want)
	}
}

func soak(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
func many(n int32) *intstr.IntOrString      { v := intstr.FromInt32(n); return &v }

func TestServersGoFirstAndOneAtATime(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Concurrency: many(10)}, "a1", "a2", "a3", "s1", "s2", "s3")
	for range 3 {
		f.pass()
		if len(f.status.Updating) != 1 {
			t.Fatalf("%v under way", f.status.Updating)
		}
		f.work()
	}
	f.until(Complete)
	f.wantOrder("s1=1.1.0 s2=1.1.0 s3=1.1.0 a1=1.1.0 a2=1.1.0 a3=1.1.0")
	if f.status.Progress != "6/6" || f.most != 3 {
		t.Errorf("%s, %d at a time", f.status.Progress, f.most)
	}
}

// A server that was silent and comes back old waits for the agents that went meanwhile.
func TestAServerWaitsForAgentsUnderWay(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Concurrency: many(10)}, "a1", "s1")
	f.ready("s1", true)
	old := f.nodes["s1"].Annotations[reportAnnotation]
	delete(f.nodes["s1"].Annotations, reportAnnotation)
	f.pass()
	f.wantOrder("a1=1.1.0")
	f.nodes["s1"].Annotations[reportAnnotation] = old
	f.pass()
	f.wantOrder("a1=1.1.0")
	f.work()
	f.until(Complete)
	f.wantOrder("a1=1.1.0 s1=1.1.0")
}

func TestAServerWaitsForTheOthers(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0"}, "s1", "s2", "s3")
	f.ready("s3", false)
	f.pass()
	if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "s3") || len(f.order) > 0 {
		t.Fatalf("%+v, asked %v", f.status, f.order)
	}
	f.ready("s3", true)
	f.until(Complete)
}

// An agent is not made newer than a server, even one of another plan or of none.
func TestAgentsWaitForServersOfOthers(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "a1"}}}, "a1", "s1")
	f.pass()
	if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "s1") || f.nodes["s1"].Annotations[requestAnnotation] != "" {
		t.Fatalf("%+v", f.status)
	}
	f.report("s1", Report{Version: "1.1.0"})
	f.until(Complete)
	f.wantOrder("a1=1.1.0")
}

func TestABadReleaseStopsAtTheCanary(t *testing.T) {
	f := newFarm(t, Spec{Channel: "stable", Canary: &Canary{Count: 1, Soak: soak(time.Hour)}, Concurrency: many(5)}, "a1", "a2", "a3", "a4")
	f.bad["1.1.0"] = map[string]string{"a1": "kernel panic"}
	f.until(Failed)
	f.wantOrder("a1=1.1.0")
	if !strings.Contains(f.status.Message, "a1: kernel panic") || !slices.Equal(f.runs("1.0.0"), []string{"a1", "a2", "a3", "a4"}) {
		t.Fatalf("%+v", f.status)
	}
	for range 100 { // and stays so
		f.pass()
		f.work()
		f.now = f.now.Add(time.Hour)
	}
	f.wantOrder("a1=1.1.0")
	// A newer release is another start.
	for _, name := range []string{"a1", "a2", "a3", "a4"} {
		r := *ReportOf(f.nodes[name])
		r.Offered = "1.2.0"
		f.report(name, r)
	}
	f.until(Complete)
	f.wantOrder("a1=1.1.0 a1=1.2.0 a2=1.2.0 a3=1.2.0 a4=1.2.0")
}

func TestStagesAndSoaking(t *testing.T) {
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("a%02d", i))
	}
	f := newFarm(t, Spec{
		Version: "1.1.0", Concurrency: many(100), Canary: &Canary{Count: 2, Soak: soak(time.Hour)},
		Waves: []Wave{{Upto: "25%", Soak: soak(30 * time.Minute)}, {Upto: "50%"}},
	}, names...)
	f.pass()
	f.work()
	f.pass()
	if len(f.order) != 2 || f.status.Phase != Soaking {
		t.Fatalf("%v, %+v", f.order, f.status)
	}
	f.now = f.now.Add(59 * time.Minute)
	if d := f.pass(); len(f.order) != 2 || d.again <= 0 || d.again > time.Minute {
		t.Fatalf("%v, again in %v", f.order, d.again)
	}
	f.now = f.now.Add(2 * time.Minute)
	f.pass()
	if len(f.order) != 5 {
		t.Fatalf("the second stage has %v", f.order)
	}
	f.work()
	f.pass()
	f.now = f.now.Add(31 * time.Minute)
	f.pass()
	if len(f.order) != 10 {
		t.Fatalf("the third stage has %v", f.order)
	}
	f.work()
	f.pass() // no soaking between the third and the last
	if len(f.order) != 20 {
		t.Fatalf("the last stage has %v", f.order)
	}
	f.until(Complete)
}

func TestNobodyGoesWhileAnUpdatedNodeIsNotReady(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0"}, "a1", "a2")
	f.pass()
	f.work()
	f.ready("a1", false)
	f.pass()
	if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "a1") || len(f.order) != 1 {
		t.Fatalf("%+v, asked %v", f.status, f.order)
	}
	f.ready("a1", true)
	f.until(Complete)
}

func TestANodeThatDoesNotComeBackIsAFailure(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Deadline: soak(10 * time.Minute)}, "a1", "a2")
	f.bad["1.1.0"] = map[string]string{"a1": ""}
	f.until(Failed)
	if !strings.Contains(f.status.Message, "a1: asked 1") || f.now.Sub(noon) < 10*time.Minute {
		t.Fatalf("%+v after %v", f.status, f.now.Sub(noon))
	}
	f.wantOrder("a1=1.1.0")
	f.report("a1", Report{Version: "1.1.0"}) // it does, late
	f.until(Complete)
}

func TestFailuresThatAPlanAllows(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", MaxFailures: 1}, "a1", "a2", "a3")
	f.bad["1.1.0"] = map[string]string{"a2": "no room"}
	f.until(Complete)
	if !strings.Contains(f.status.Message, "a2: no room") || f.status.Progress != "2/3" {
		t.Fatalf("%+v", f.status)
	}
	f.bad["1.1.0"]["a3"] = "no room either"
	f.report("a3", Report{Version: "1.0.0", Failed: map[string]string{"1.1.0": "no room either"}})
	f.until(Failed)
}

func TestWindowsAndPauses(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Windows: []string{"23:00-01:00"}}, "a1", "a2")
	f.pass()
	if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "23:00-01:00") {
		t.Fatalf("%+v", f.status)
	}
	f.now = time.Date(2026, 11, 28, 0, 30, 0, 0, time.UTC)
	f.pass()
	f.wantOrder("a1=1.1.0")
	f.plan.spec.Paused = true
	f.work()
	f.pass()
	if f.status.Phase != Paused || f.status.Updated != 1 {
		t.Fatalf("%+v", f.status)
	}
	f.wantOrder("a1=1.1.0")
	f.plan.spec.Paused = false
	f.until(Complete)
}

// A node that says nothing is not counted as good, and holds nobody up.
func TestSilentNodes(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0"}, "a1", "a2")
	delete(f.nodes["a1"].Annotations, reportAnnotation)
	f.pass()
	f.work2("a2")
	f.pass()
	if f.status.Phase != Waiting || f.status.Progress != "1/2" || !strings.Contains(f.status.Message, "a1") {
		t.Fatalf("%+v", f.status)
	}
}

func (f *farm) work2(name string) { f.report(name, Report{Version: RequestOf(f.nodes[name]).Version}) }

func TestCanariesBySelector(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Canary: &Canary{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "a3"}}}}, "a1", "a2", "a3")
	f.until(Complete)
	f.wantOrder("a3=1.1.0 a1=1.1.0 a2=1.1.0")
}

func TestPlansThatMakeNoSense(t *testing.T) {
	yes := true
	for want, spec := range map[string]Spec{
		"either a version or a channel": {},
		"either a version":              {Version: "1", Channel: "c"},
		"not the name":                  {Version: "../1"},
		"spec.maxFailures":              {Version: "1", MaxFailures: -1},
		"spec.waves[0].upto":            {Version: "1", Waves: []Wave{{Upto: "101%"}}},
		"spec.waves[1].upto":            {Version: "1", Waves: []Wave{{Upto: "50%"}, {Upto: "25%"}}},
		"spec.windows[0]":               {Version: "1", Windows: []string{"25:00-01:00"}},
		"spec.drain.onDeadline":         {Version: "1", Drain: &DrainSpec{Enabled: &yes, OnDeadline: "Panic"}},
		"spec.deadline":                 {Version: "1", Deadline: soak(time.Second)},
		"spec.canary.count":             {Version: "1", Canary: &Canary{Count: -1}},
		"spec.nodeSelector":             {Version: "1", NodeSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}},
		"spec.concurrency":              {Version: "1", Concurrency: &intstr.IntOrString{Type: intstr.String, StrVal: "half"}},
	} {
		if _, err := read(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", spec, err, want)
		}
	}
}

func TestPlansOfTheUpgradeController(t *testing.T) {
	k3s := func(image, version, channel string) *upgrade {
		u := &upgrade{}
		u.Spec.Version, u.Spec.Channel = version, channel
		u.Spec.Upgrade = &struct {
			Image string `json:"image"`
		}{image}
		return u
	}
	for _, tt := range []struct {
		u    *upgrade
		want string // an error, or the version or channel
	}{
		{k3s("rancher/k3s-upgrade", "v1.2.0", ""), "1.2.0"},
		{k3s("docker.io/rancher/k3s-upgrade:v1", "", "https://update.example.org/v1/channels/stable"), "stable"},
		{k3s("rancher/k3s-upgrade", "v1.30.4+k3s1", ""), "is one of K3s"},
		{k3s("example.org:5000/tools/bash:5", "v1.2.0", ""), "would run image"},
		{&upgrade{}, "has no spec.upgrade"},
		{k3s("rancher/k3s-upgrade", "", ""), "not the name"},
	} {
		s, err := translated(tt.u)
		if got := s.Version + s.Channel; err == nil && got != tt.want || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %q, %v, want %q", tt.u.Spec, got, err, tt.want)
		}
	}
}
