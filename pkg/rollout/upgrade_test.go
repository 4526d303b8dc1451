package rollout

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// upgradePlan is a Plan that is carried out, changed by a line of its spec.
func upgradePlan(t *testing.T, line string) *unstructured.Unstructured {
	t.Helper()
	spec := map[string]any{}
	for _, text := range []string{"{version: v1.2.0, concurrency: 1, nodeSelector: {}, upgrade: {image: rancher/k3s-upgrade}}", "{" + line + "}"} {
		if err := yaml.Unmarshal([]byte(text), &spec); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "upgrade.cattle.io/v1", "kind": "Plan", "metadata": map[string]any{"name": "p", "namespace": "kube-system"}, "spec": spec,
	}}
}

// What a Plan says is carried out, all of it.
func TestPlansThatAreCarriedOut(t *testing.T) {
	drain := func(s Spec) string { return s.Drain.OnDeadline + " after " + duration(s.Drain.Deadline).String() }
	for _, tt := range []struct {
		line, want string
		got        func(Spec) string
	}{
		{"version: v1.2.0", "1.2.0", func(s Spec) string { return s.Version + s.Channel }},
		{`version: "", channel: "https://update.example.org/v1/channels/stable"`, "stable", func(s Spec) string { return s.Version + s.Channel }},
		{"upgrade: {image: 'docker.io/rancher/k3s-upgrade:v1', args: [upgrade]}", "1.2.0", func(s Spec) string { return s.Version }},
		{"concurrency: 3", "3", func(s Spec) string { return s.Concurrency.String() }},
		{"concurrency: 0", "paused", func(s Spec) string { return map[bool]string{true: "paused"}[s.Paused] }},
		{"jobActiveDeadlineSecs: 900", "15m0s", func(s Spec) string { return duration(s.Deadline).String() }},
		{"jobActiveDeadlineSecs: -1", "0s", func(s Spec) string { return duration(s.Deadline).String() }},
		{"cordon: false", "stay", func(s Spec) string { return map[bool]string{false: "stay"}[*s.Drain.Enabled] }},
		{"drain: {force: true, skipWaitForDeleteTimeout: 60}", " after 0s", drain}, // upstream's example: budgets hold
		{"drain: {disableEviction: true}", "Force after 0s", drain},
		{"drain: {timeout: 120000000000}", " after 2m0s", drain},
		{"drain: {timeout: 120s}", " after 2m0s", drain},
		{"drain: {ignoreDaemonSets: true, deleteEmptydirData: true, gracePeriod: -1}", " after 0s", drain},
		{"prepare: {image: rancher/k3s-upgrade, args: [prepare, k3s-server]}, exclusive: true, serviceAccountName: a, tolerations: [{operator: Exists}]", "1.2.0", func(s Spec) string { return s.Version }},
		{"window: {days: ['0', mo, Tuesday, we, thursday, fr, sa], startTime: '2:00', endTime: '05:30', timeZone: UTC}", "02:00-05:30", func(s Spec) string { return strings.Join(s.Windows, " ") }},
	} {
		s, err := translated(upgradePlan(t, tt.line))
		if err != nil || tt.got(s) != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.line, tt.got(s), err, tt.want)
		}
	}
}

// A Plan is for the nodes that its own controller would take: none without a selector, all with an empty one, and none that opts out.
func TestNodesOfAPlan(t *testing.T) {
	nodes := map[string]labels.Set{"a": {"zone": "a"}, "b": {"zone": "b"}, "out": {"zone": "a", "plan.upgrade.cattle.io/p": "disabled"}, "done": {"zone": "a", "plan.upgrade.cattle.io/p": "c0ffee"}}
	for line, want := range map[string]string{"nodeSelector: {}": "a b done", "nodeSelector: {matchLabels: {zone: a}}": "a done"} {
		s, err := translated(upgradePlan(t, line))
		if err != nil {
			t.Fatal(err)
		}
		selector, err := metav1.LabelSelectorAsSelector(s.NodeSelector)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"a", "b", "done", "out"} {
			if selector.Matches(nodes[name]) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", line, got, want)
		}
	}
}

// What cannot be carried out is refused, with the field's name; nothing is left out silently.
func TestPlansThatAreRefused(t *testing.T) {
	for line, want := range map[string]string{
		"version: v1.30.4+k3s1":                                 "is one of K3s",
		"upgrade: {image: 'example.org:5000/tools/bash:5'}":     "would run",
		"upgrade: null":                                         "spec.upgrade: is not there",
		"upgrade: {image: rancher/k3s-upgrade, command: [sh]}":  "spec.upgrade: has a command",
		"upgrade: {image: rancher/k3s-upgrade, args: [check]}":  "spec.upgrade: has a command",
		"upgrade: {image: rancher/k3s-upgrade, envs: [{a: b}]}": "spec.upgrade: has a command",
		"version: ''":        "not the name",
		"nodeSelector: null": "spec.nodeSelector",
		"nodeSelector: {matchExpressions: [{key: a, operator: Near}]}":                       "spec.nodeSelector",
		"prepare: {image: example.org/tools}":                                                "spec.prepare",
		"prepare: {image: rancher/k3s-upgrade, args: [migrate]}":                             "spec.prepare",
		"drain: {podSelector: {matchLabels: {a: b}}}":                                        "spec.drain.podSelector",
		"drain: {gracePeriod: 0}":                                                            "spec.drain.gracePeriod",
		"drain: {ignoreDaemonSets: false}":                                                   "spec.drain.ignoreDaemonSets",
		"drain: {deleteEmptydirData: false}":                                                 "spec.drain.deleteEmptydirData",
		"drain: {deleteLocalData: false}":                                                    "spec.drain.deleteEmptydirData",
		"drain: {timeout: soon}":                                                             "spec.drain.timeout",
		"drain: {timeout: 0}":                                                                "spec.drain.timeout",
		"drain: {timeout: -60s}":                                                             "spec.drain.deadline",
		"jobActiveDeadlineSecs: 0":                                                           "spec.jobActiveDeadlineSecs",
		"jobActiveDeadlineSecs: 30":                                                          "spec.deadline",
		"postCompleteDelay: 5m":                                                              "spec.postCompleteDelay",
		"postCompleteLabels: {a: b}":                                                         "spec.postCompleteLabels",
		"secrets: [{name: a, path: /a}]":                                                     "spec.secrets",
		"window: {days: [sa, su], startTime: '02:00', endTime: '05:00'}":                     "spec.window.days",
		"window: {startTime: '02:00', endTime: '05:00'}":                                     "spec.window.days",
		"window: {days: [su,mo,tu,we,th,fr,sa], startTime: '22:00', endTime: '05:00'}":       "spec.window:",
		"window: {days: [su,mo,tu,we,th,fr,sa], startTime: 2am, endTime: '05:00'}":           "spec.window:",
		"window: {days: [su,mo,tu,we,th,fr,sa], timeZone: Europe/Berlin, startTime: '2:00'}": "spec.window.timeZone",
		"concurrency: many":                                                                  "spec: json",
		"drain: 5m":                                                                          "spec: json",
		"retries: 5":                                                                         `unknown field "retries"`, // a field of tomorrow
		"drain: {gently: true}":                                                              `unknown field "gently"`,
	} {
		if s, err := translated(upgradePlan(t, line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %s", line, s, err, want)
		}
	}
}

// Each Plan has an answer in its status, and one that is refused in an event; no Plan keeps another one waiting.
func TestPlansAreAnswered(t *testing.T) {
	c := newCluster(t)
	c.node("a1", false, Report{Version: "1.0.0", Offer: Offer{Offered: "1.2.0"}})
	for name, line := range map[string]string{"good": "cordon: true", "odd": "drain: {timeout: soon}", "strange": "concurrency: many", "weekend": "window: {days: [sa]}"} {
		o := upgradePlan(t, line)
		o.SetName(name)
		c.create(Upgrades, o)
	}
	c.pass()
	c.pass()
	if got := c.names(Plans); got != "upgrade-kube-system-good" {
		t.Errorf("update plans: %s", got)
	}
	for name, want := range map[string]string{"good": "True", "odd": "spec.drain.timeout", "strange": "spec: json", "weekend": "spec.window.days"} {
		status := c.text(Upgrades, "kube-system", name, "status")
		if !strings.Contains(status, want) || strings.Contains(status, `"status":"True","type":"Validated"`) != (name == "good") {
			t.Errorf("%s: %s, want %s", name, status, want)
		}
		if events := strings.Count(c.events(), corev1.EventTypeWarning+" Refused this Plan is not carried out: "+want); name != "good" && events != 1 {
			t.Errorf("%s: %d events that say %s:\n%s", name, events, want, c.events())
		}
	}
	if r := c.request("a1"); r == nil || r.Plan != "upgrade-kube-system-good" || r.Version != "1.2.0" || r.Drain == nil || r.Drain.OnDeadline != Skip {
		t.Errorf("asked %+v", r)
	}
	c.now = c.now.Add(time.Hour)
	told := len(c.told)
	c.pass()
	if len(c.told) > told+1 { // the deadline has an event of its own
		t.Errorf("events again:\n%s", c.events())
	}
}
