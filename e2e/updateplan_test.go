package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/e2e/nodes"
)

// An update plan on a real API, its nodes' words spoken by the test: the server is asked first, then the agent; a failure stops it; a
// Plan of the system-upgrade-controller is carried out when it means an update and refused when it does not.
func TestNodesUpdatePlan(t *testing.T) {
	w := newWire(t)
	s, a := w.Node("s1"), w.Node("a1")
	s.Start("server", "--disable", "ingress,metrics-server")
	s.Ready()
	a.Start("agent", "--server", s.URL(), "--token", s.Token())
	a.Ready()
	// report says it for the attempt that the node is asked for, as the node would.
	report := func(n *nodes.Node, text string) {
		t.Helper()
		var r struct{ Attempt string }
		if asked := s.Kubectl("get", "node", n.Name, "-o", `jsonpath={.metadata.annotations.updates\.skerry\.io/request}`); asked != "" {
			if err := json.Unmarshal([]byte(asked), &r); err != nil {
				t.Fatal(err)
			}
		}
		text = strings.Replace(text, "{", fmt.Sprintf(`{"attempt":%q,`, r.Attempt), 1)
		s.Kubectl("annotate", "--overwrite", "node", n.Name, "updates.skerry.io/report="+text)
	}
	asked := func(n *nodes.Node, part string) {
		t.Helper()
		s.Eventually(n.Name+" is asked "+part, func() (bool, string) {
			out, err := s.Try("", "get", "node", n.Name, "-o", `jsonpath={.metadata.annotations.updates\.skerry\.io/request}`)
			if err != nil {
				return false, err.Error()
			}
			if part == "" {
				return out == "", out
			}
			return strings.Contains(out, part), out
		})
	}
	report(s, `{"version":"1.0.0","channel":"stable","offered":"1.1.0"}`)
	report(a, `{"version":"1.0.0","channel":"beta","offered":"1.2.0"}`)
	s.Apply(`{apiVersion: skerry.io/v1alpha1, kind: UpdatePlan, metadata: {name: all}, spec: {channel: stable, canary: {count: 1, soak: 1s}, drain: {deadline: 1m, onDeadline: Force}}}`)
	asked(s, `"version":"1.1.0"`)
	asked(s, `"drain":{"deadlineSeconds":60,"onDeadline":"Force"}`)
	s.Becomes("Rolling 0/2", "get", "updateplan", "all", "-o", "jsonpath={.status.phase} {.status.progress}")
	if out := s.Kubectl("get", "node", a.Name, "-o", `jsonpath={.metadata.annotations.updates\.skerry\.io/request}`); strings.Contains(out, "version") {
		t.Errorf("the agent is asked beside the server: %s", out)
	}
	report(s, `{"version":"1.1.0"}`)
	asked(a, `"version":"1.1.0"`)
	report(a, `{"version":"1.0.0","failed":{"1.1.0":"the kernel did not start"}}`)
	s.Becomes("Failed 1/2", "get", "updateplan", "all", "-o", "jsonpath={.status.phase} {.status.progress}")
	if out := s.Kubectl("get", "updateplans"); !strings.Contains(out, "the kernel did not start") || !strings.Contains(out, "1/2") {
		t.Errorf("kubectl get updateplans:\n%s", out)
	}
	s.Becomes("Failed", "get", "events", "--field-selector", "involvedObject.kind=UpdatePlan,reason=Failed", "-o", "jsonpath={.items[0].reason}")
	// A person has it tried again, and it fails again.
	s.Kubectl("patch", "updateplan", "all", "--type", "merge", "-p", `{"spec": {"resume": "the mirror is back"}}`)
	asked(a, `"version":"1.1.0"`)
	s.Becomes("Rolling 1/2", "get", "updateplan", "all", "-o", "jsonpath={.status.phase} {.status.progress}")
	report(a, `{"version":"1.0.0","failed":{"1.1.0":"the kernel did not start"}}`)
	s.Becomes("Failed 1/2", "get", "updateplan", "all", "-o", "jsonpath={.status.phase} {.status.progress}")
	s.Kubectl("delete", "updateplan", "all")
	asked(s, "")
	asked(a, "")

	s.Apply(`{apiVersion: skerry.io/v1alpha1, kind: UpdatePlan, metadata: {name: odd}, spec: {version: "1", channel: stable}}`)
	s.Becomes("Refused", "get", "updateplan", "odd", "-o", "jsonpath={.status.phase}")
	s.Kubectl("delete", "updateplan", "odd")

	upgrade := `{apiVersion: upgrade.cattle.io/v1, kind: Plan, metadata: {name: %s, namespace: kube-system}, spec: {concurrency: 1, cordon: true, version: v1.1.0,
  nodeSelector: {matchExpressions: [{key: node-role.kubernetes.io/control-plane, operator: DoesNotExist}]}, serviceAccountName: system-upgrade, upgrade: {image: %s}}}`
	s.Apply(fmt.Sprintf(upgrade, "agents", "rancher/k3s-upgrade"))
	s.Apply(fmt.Sprintf(upgrade, "tools", "example.org/tools/bash"))
	s.Apply(strings.Replace(fmt.Sprintf(upgrade, "odd", "rancher/k3s-upgrade"), "cordon: true", "drain: {timeout: soon}", 1))
	validated := `jsonpath={.status.conditions[?(@.type=="Validated")].status}`
	s.Becomes("True", "-n", "kube-system", "get", "plans.upgrade.cattle.io", "agents", "-o", validated)
	s.Becomes("False", "-n", "kube-system", "get", "plans.upgrade.cattle.io", "tools", "-o", validated)
	s.Becomes("False", "-n", "kube-system", "get", "plans.upgrade.cattle.io", "odd", "-o", validated)
	s.Becomes("Refused", "-n", "kube-system", "get", "events", "--field-selector", "involvedObject.kind=Plan,involvedObject.name=odd,reason=Refused", "-o", "jsonpath={.items[0].reason}")
	report(a, `{"version":"1.0.0","offered":"1.1.0"}`)
	asked(a, `"plan":"upgrade-kube-system-agents","version":"1.1.0"`)
	asked(s, "") // it is no agent
	report(a, `{"version":"1.1.0"}`)
	s.Becomes("True", "-n", "kube-system", "get", "plans.upgrade.cattle.io", "agents", "-o", `jsonpath={.status.conditions[?(@.type=="Complete")].status}`)
	s.Kubectl("-n", "kube-system", "delete", "plans.upgrade.cattle.io", "agents")
	s.Becomes("", "get", "updateplans", "-o", "name")
}
