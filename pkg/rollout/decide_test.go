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
	edits  int
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
	p.name, p.attempt = "p", "p.0"
	f := &farm{t: t, nodes: map[string]*corev1.Node{}, bad: map[string]map[string]string{}, plan: p, now: noon}
	for _, name := range names {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}, Annotations: map[string]string{}}}
		if strings.HasPrefix(name, "s") {
			n.Labels[serverLabel] = "true"
		}
		f.nodes[name] = n
		f.ready(name, true)
		f.report(name, Report{Version: "1.0.0", Offer: Offer{Channel: spec.Channel, Offered: "1.1.0"}})
	}
	return f
}

// edit changes the plan's spec.
func (f *farm) edit(change func(*Spec)) {
	f.t.Helper()
	change(&f.plan.spec)
	p, err := read(f.plan.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	f.edits++
	p.name, p.attempt = "p", fmt.Sprintf("p.%d", f.edits)
	f.plan = p
}

// offer lets every node be offered a release.
func (f *farm) offer(o Offer) {
	for name, n := range f.nodes {
		r := *ReportOf(n)
		r.Offer = o
		f.report(name, r)
	}
}

func (f *farm) ready(name string, yes bool) {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	f.nodes[name].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.NewTime(f.now)}}
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
	d := f.plan.decide(f.status, all, mine, f.now)
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
		if now.Attempt != r.Attempt {
			now.Attempt, now.Failed = r.Attempt, nil
		}
		switch {
		case !bad:
			now.Version = r.Version
		case why != "":
			now.Failed = map[string]string{r.Version: why}
		}
		f.report(name, *now)
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

// A server that is silent, and known to be no older than the release, holds no agent back; when it comes back it waits for those that went.
func TestAServerWaitsForAgentsUnderWay(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Concurrency: many(10)}, "a1", "s1")
	f.offer(Offer{Offered: "1.1.0", Kubernetes: "v1.37.2"})
	f.nodes["s1"].Status.NodeInfo.KubeletVersion = "v1.37.1"
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
	f.offer(Offer{Channel: "stable", Offered: "1.2.0"})
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
	if !strings.Contains(f.status.Message, "a1: was asked and is not back") || f.now.Sub(noon) < 10*time.Minute {
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
	f.report("a3", Report{Version: "1.0.0", Attempt: "p.0", Failed: map[string]string{"1.1.0": "no room either"}})
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

// Whom a person names as canaries are they, agents and servers alike, and nobody else in their place.
func TestCanariesBySelector(t *testing.T) {
	named := func(names ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "name", Operator: "In", Values: names}}}
	}
	for _, tt := range []struct {
		count int
		named []string
		soak  string // who runs it for an hour before the others; "" is that nobody goes
		order string
	}{
		{0, []string{"a3"}, "a3", "a3 s1 s2 a1 a2"},
		{0, []string{"s2"}, "s2", "s2 s1 a1 a2 a3"},
		{0, []string{"a2", "a3"}, "a2", "a2 a3 s1 s2 a1"}, // one by default; the other is the first of the rest
		{2, []string{"a3", "s2"}, "s2 a3", "s2 a3 s1 a1 a2"},
		{2, []string{"a3"}, "a3", "a3 s1 s2 a1 a2"}, // nobody fills up
		{1, []string{"b1"}, "", ""},
	} {
		f := newFarm(t, Spec{Version: "1.1.0", Canary: &Canary{Count: tt.count, NodeSelector: named(tt.named...), Soak: soak(time.Hour)}}, "a1", "a2", "a3", "s1", "s2")
		f.offer(Offer{Offered: "1.1.0", Kubernetes: "v1.37.2"})
		for _, n := range f.nodes {
			n.Status.NodeInfo.KubeletVersion = "v1.37.1"
		}
		f.pass()
		if tt.soak == "" {
			if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "spec.canary.nodeSelector") || len(f.order) > 0 {
				t.Errorf("%v: %+v, asked %v", tt.named, f.status, f.order)
			}
			continue
		}
		f.until(Soaking)
		f.wantOrder(strings.ReplaceAll(tt.soak, " ", "=1.1.0 ") + "=1.1.0")
		f.until(Complete)
		f.wantOrder(strings.ReplaceAll(tt.order, " ", "=1.1.0 ") + "=1.1.0")
	}
}

// A canary that would be newer than its servers waits for them, and the plan says so.
func TestACanaryAgentDoesNotOutrunServers(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Canary: &Canary{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "a1"}}}}, "a1", "s1")
	f.offer(Offer{Offered: "1.1.0", Kubernetes: "v1.38.0"})
	f.nodes["s1"].Status.NodeInfo.KubeletVersion = "v1.37.1"
	f.pass()
	if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "server s1, which has Kubernetes v1.37.1") || len(f.order) > 0 {
		t.Fatalf("%+v, asked %v", f.status, f.order)
	}
}

// A plan goes by the offers of its own channel, also when a person gives it another one.
func TestAPlanFollowsItsChannel(t *testing.T) {
	f := newFarm(t, Spec{Channel: "beta"}, "a1", "a2")
	f.offer(Offer{Channel: "stable", Offered: "1.1.0"})
	d := f.pass()
	if f.status.Phase != Waiting || len(f.order) > 0 || d.requests["a1"].Channel != "beta" {
		t.Fatalf("%+v, asked %v, %+v", f.status, f.order, d.requests["a1"])
	}
	f.report("a2", Report{Version: "1.0.0", Offer: Offer{Channel: "beta", Offered: "1.2.0"}})
	f.pass()
	f.wantOrder("a1=1.2.0")
	// Back to stable, whose newest is older: nobody else goes to beta's, and who has it stays.
	f.work()
	f.edit(func(s *Spec) { s.Channel = "stable" })
	f.report("a2", Report{Version: "1.0.0", Offer: Offer{Channel: "stable", Offered: "1.1.0"}})
	f.until(Complete)
	f.wantOrder("a1=1.2.0 a2=1.1.0")
	if !strings.Contains(f.status.Message, "a1, which runs 1.2.0") || f.status.Progress != "1/2" {
		t.Errorf("%+v", f.status)
	}
	// A release that is taken out of the channel again is no goal any more.
	f = newFarm(t, Spec{Channel: "stable"}, "a1", "a2")
	f.bad["1.1.0"] = map[string]string{"a1": "panic"}
	f.until(Failed)
	f.offer(Offer{Channel: "stable", Offered: "1.0.5"})
	f.until(Complete)
	f.wantOrder("a1=1.1.0 a1=1.0.5 a2=1.0.5")
}

// A plan for a version lets its nodes look for that, and leaves those alone that run something newer.
func TestAPlanForAVersionDoesNotGoBack(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0"}, "a1", "a2")
	f.report("a1", Report{Version: "1.2.0"})
	if d := f.pass(); d.requests["a2"].Target != "1.1.0" {
		t.Errorf("%+v", d.requests["a2"])
	}
	f.until(Complete)
	f.wantOrder("a2=1.1.0")
}

// Whatever it was that failed: a person who changes the plan, or makes another one, has it tried again. Without that it stays.
func TestResume(t *testing.T) {
	failures := map[string]func(f *farm){
		"a release that was tried and left": func(f *farm) { f.bad["1.1.0"] = map[string]string{"a1": "kernel panic"} },
		"a node that is not back":           func(f *farm) { f.bad["1.1.0"] = map[string]string{"a1": ""} },
	}
	people := map[string]func(f *farm){
		"another spec": func(f *farm) { f.edit(func(s *Spec) { s.Deadline = soak(11 * time.Minute) }) },
		"spec.resume":  func(f *farm) { f.edit(func(s *Spec) { s.Resume = "the mirror is back" }) },
		"a pause": func(f *farm) {
			f.edit(func(s *Spec) { s.Paused = true })
			f.pass()
			f.edit(func(s *Spec) { s.Paused = false })
		},
		"another plan": func(f *farm) { f.edit(func(*Spec) {}); f.status = Status{} },
		"another plan of a name, after a while without": func(f *farm) {
			for _, n := range f.nodes {
				delete(n.Annotations, requestAnnotation)
			}
			f.edit(func(*Spec) {})
			f.status = Status{}
		},
	}
	for failed, fail := range failures {
		for resumed, resume := range people {
			f := newFarm(t, Spec{Version: "1.1.0", Deadline: soak(10 * time.Minute)}, "a1", "a2")
			fail(f)
			f.until(Failed)
			for range 20 {
				f.pass()
				f.work()
				f.now = f.now.Add(time.Hour)
			}
			f.wantOrder("a1=1.1.0")
			if f.status.Phase != Failed || RequestOf(f.nodes["a1"]).Version != "" {
				t.Fatalf("%s: %+v, a1 is asked %+v", failed, f.status, RequestOf(f.nodes["a1"]))
			}
			resume(f)
			f.pass()
			if since := RequestOf(f.nodes["a1"]).Since; !since.Equal(f.now) {
				t.Errorf("%s, %s: a1 is asked since %v, want %v", failed, resumed, since, f.now)
			}
			f.until(Failed) // it is still bad
			f.bad = nil
			resume(f)
			f.until(Complete)
			f.wantOrder("a1=1.1.0 a1=1.1.0 a1=1.1.0 a2=1.1.0")
		}
	}
}

// A change of the plan does not begin anew what is under way.
func TestAChangeLeavesWhatIsUnderWay(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0"}, "a1", "a2")
	f.pass()
	before := *RequestOf(f.nodes["a1"])
	f.now = f.now.Add(time.Minute)
	f.edit(func(s *Spec) { s.Paused = true })
	f.pass()
	if now := *RequestOf(f.nodes["a1"]); now.Attempt != before.Attempt || !now.Since.Equal(before.Since) || now.Version != "1.1.0" {
		t.Errorf("asked %+v, then %+v", before, now)
	}
	f.work()
	f.edit(func(s *Spec) { s.Paused = false })
	f.until(Complete)
	f.wantOrder("a1=1.1.0 a2=1.1.0")
}

// What a node tries to get over is said, and no failure before the deadline.
func TestProblemsOfASource(t *testing.T) {
	f := newFarm(t, Spec{Version: "1.1.0", Deadline: soak(10 * time.Minute)}, "a1", "a2")
	f.bad["1.1.0"] = map[string]string{"a1": ""}
	f.pass()
	f.report("a1", Report{Version: "1.0.0", Attempt: "p.0", Problem: "the mirror lags"})
	f.pass()
	if f.status.Phase != Rolling || !strings.Contains(f.status.Message, "a1: the mirror lags") || len(f.status.Failed) > 0 {
		t.Fatalf("%+v", f.status)
	}
	f.until(Failed)
	if !strings.Contains(f.status.Message, "the mirror lags") || f.now.Sub(noon) < 10*time.Minute {
		t.Fatalf("%+v after %v", f.status, f.now.Sub(noon))
	}
}

// Nodes that do not come back are failures, each of them, and take nobody's place.
func TestDeadNodes(t *testing.T) {
	for _, tt := range []struct {
		allowed, concurrency int
		dead                 []string
		phase, order         string
	}{
		{1, 1, []string{"a1"}, Complete, "a1=1.1.0 a2=1.1.0 a3=1.1.0 a4=1.1.0"},
		{2, 1, []string{"a1", "a3"}, Complete, "a1=1.1.0 a2=1.1.0 a3=1.1.0 a4=1.1.0"},
		{2, 2, []string{"a1", "a2"}, Complete, "a1=1.1.0 a2=1.1.0 a3=1.1.0 a4=1.1.0"},
		{1, 2, []string{"a1", "a2"}, Failed, "a1=1.1.0 a2=1.1.0"},
		{0, 1, []string{"a2"}, Failed, "a1=1.1.0 a2=1.1.0"},
	} {
		f := newFarm(t, Spec{Version: "1.1.0", MaxFailures: tt.allowed, Concurrency: many(int32(tt.concurrency)), Deadline: soak(10 * time.Minute)}, "a1", "a2", "a3", "a4")
		f.bad["1.1.0"] = map[string]string{}
		for _, name := range tt.dead {
			f.bad["1.1.0"][name] = ""
		}
		f.until(tt.phase)
		f.wantOrder(tt.order)
		if len(f.status.Failed) != len(tt.dead) && tt.phase == Complete {
			t.Errorf("%v are dead; failed are %v", tt.dead, f.status.Failed)
		}
	}
}

// A node that has the release and dies is waited for, and is a failure at the deadline.
func TestANodeThatDiesWithTheRelease(t *testing.T) {
	for allowed, phase := range []string{Failed, Complete} {
		f := newFarm(t, Spec{Version: "1.1.0", MaxFailures: allowed, Deadline: soak(10 * time.Minute)}, "a1", "a2")
		f.pass()
		f.work()
		f.ready("a1", false)
		f.pass()
		if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "a1") {
			t.Fatalf("%+v", f.status)
		}
		f.now = f.now.Add(11 * time.Minute)
		if f.until(phase); phase == Failed && !strings.Contains(f.status.Message, "a1: runs 1.1.0 and is not Ready") {
			t.Errorf("%+v", f.status)
		}
	}
}

// A server that is on its way, by another plan or by itself, keeps the others; as does one that is not Ready.
func TestNoServerGoesBesideAnother(t *testing.T) {
	for what, begin := range map[string]func(f *farm){
		"another plan": func(f *farm) {
			f.nodes["s1"].Annotations[requestAnnotation] = `{"plan":"other","version":"1.1.0","since":"2026-11-27T11:59:00Z"}`
		},
		"itself (writing)": func(f *farm) { f.report("s1", Report{Version: "1.0.0", Phase: "writing"}) },
		"itself (trying)":  func(f *farm) { f.report("s1", Report{Version: "1.1.0", Phase: "trying"}) },
		"not Ready":        func(f *farm) { f.ready("s1", false) },
	} {
		f := newFarm(t, Spec{Version: "1.1.0", NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "s2"}}}, "s1", "s2", "s3")
		begin(f)
		f.pass()
		if f.status.Phase != Waiting || !strings.Contains(f.status.Message, "s1") || len(f.order) > 0 {
			t.Errorf("%s: %+v, asked %v", what, f.status, f.order)
		}
		f.ready("s1", true)
		f.report("s1", Report{Version: "1.1.0"})
		f.until(Complete)
	}
}

func TestVersionSkew(t *testing.T) {
	for _, tt := range []struct {
		who, nodes, release string // nodes as name=kubelet; release as its Kubernetes, "" not known
		want                string // of the reason; "" goes
	}{
		{"a1", "a1=v1.36.0 s1=v1.37.2", "v1.37.9", ""}, // minor versions count
		{"a1", "a1=v1.36.0 s1=v1.37.2", "v1.38.0", "server s1, which has Kubernetes v1.37.2"},
		{"a1", "a1=v1.36.0 s1=v1.38.0 s2=v1.37.0", "v1.38.0", "server s2"}, // the oldest of them counts
		{"a1", "a1=v1.33.0 s1=v1.37.0", "v1.35.0", ""},                     // better than before
		{"a1", "a1=v1.36.0 a2=v1.30.0 s1=v1.37.0", "v1.37.0", ""},
		{"a1", "a1=v1.36.0 s1=v1.37.0", "", "which runs 1.0.0"}, // without a word of its Kubernetes, the release counts
		{"a1", "a1=v1.36.0 s1=v1.37.0=silent", "", "does not report"},
		{"a1", "a1=v1.36.0 s1=v1.37.0=silent", "v1.37.0", ""},
		{"a1", "a1=v1.36.0 s1=v1.36.0=silent", "v1.37.0", "server s1"},
		{"a1", "a1=v1.36.0 s1=v1.37.0=trying", "v1.37.0", "may go back"},
		{"a1", "a1=v1.36.0", "v1.38.0", ""},
		{"s1", "s1=v1.36.0", "v1.37.0", ""},
		{"s1", "s1=v1.36.0", "v1.38.0", "must not skip"},
		{"s1", "s1=v1.36.0", "v1.36.5", ""},
		{"s1", "s1=v1.36.0", "", ""},
		{"s1", "s1=v1.37.0 s2=v1.36.0", "v1.38.0", "server s2, which has Kubernetes v1.36.0"}, // API servers within one of each other
		{"s1", "s1=v1.36.0 s2=v1.38.0", "v1.36.5", "server s2"},
		{"s1", "s1=v1.37.0 a1=v1.35.0", "v1.38.0", ""},
		{"s1", "s1=v1.37.0 a1=v1.34.0", "v1.38.0", "agent a1, whose kubelet is v1.34.0"},
		{"s1", "s1=v1.37.0 a1=v1.34.0=silent", "v1.38.0", "agent a1"},
		{"s1", "s1=v1.36.0 a1=v1.37.0", "v1.36.5", "must not be newer"},
		{"s1", "s1=strange a1=v1.37.0", "v1.36.5", "must not be newer"},
	} {
		var all []member
		for _, text := range strings.Fields(tt.nodes) {
			part := strings.Split(text, "=")
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: part[0], Labels: map[string]string{}}}
			if part[0][0] == 's' {
				n.Labels[serverLabel] = "true"
			}
			n.Status.NodeInfo.KubeletVersion = part[1]
			m := memberOf(n)
			m.ready, m.report = true, &Report{Version: "1.0.0"}
			if len(part) > 2 && part[2] == "silent" {
				m.report = nil
			} else if len(part) > 2 {
				m.report.Phase = part[2]
			}
			all = append(all, m)
		}
		i := slices.IndexFunc(all, func(m member) bool { return m.node.Name == tt.who })
		got := blocked(all[i], all, "1.1.0", tt.release)
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s to %q beside %s: %q, want %q", tt.who, tt.release, tt.nodes, got, tt.want)
		}
	}
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
