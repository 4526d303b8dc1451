package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/imagetest"
)

var (
	onHost = flag.Bool("native", false, "run skerryd on this host; needs root and programs in -out")
	inVM   = flag.Bool("vm", false, "boot the image in QEMU; needs an image and programs in -out")
	outDir = flag.String("out", "../out", "the Makefile's out folder")
)

// built is a file that `make` made.
func built(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(*outDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; `make image programs` builds it", err)
	}
	return path
}

// cluster is one that runs, as its administrator sees it.
type cluster struct {
	*testing.T
	kubectl  []string // the command and the flags that lead to the cluster
	programs string   // the folder of skerryd and kubectl on the node
}

func (c cluster) try(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.kubectl[0], append(c.kubectl[1:len(c.kubectl):len(c.kubectl)], args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, stderr.String(), stdout.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// eventually asks again until the answer is right, and shows what runs in the cluster when it never is.
func (c cluster) eventually(limit time.Duration, right func(string) bool, args ...string) string {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	for {
		out, err := c.try(ctx, "", args...)
		if err == nil && right(out) {
			return out
		}
		select {
		case <-ctx.Done():
			c.Fatalf("not within %v: kubectl %s: %v\n%s\n%s", limit, strings.Join(args, " "), err, out, c.everything())
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c cluster) everything() string {
	var b strings.Builder
	for _, args := range [][]string{{"get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"}} {
		out, err := c.try(context.Background(), "", args...)
		fmt.Fprintf(&b, "$ kubectl %s\n%s\n", strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}

func contains(part string) func(string) bool {
	return func(out string) bool { return strings.Contains(out, part) }
}

// patience is how long anything may take on an emulated processor under load.
const patience = 12 * time.Minute

// ready waits for the node and for the cluster's DNS.
func (c cluster) ready() {
	c.Helper()
	c.eventually(patience, contains("True"), "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	c.eventually(patience, contains("1"), "-n", "kube-system", "get", "deployment", "coredns", "-o", "jsonpath={.status.readyReplicas}")
}

// start makes the workload.
func (c cluster) start() {
	c.Helper()
	b, err := os.ReadFile("testdata/workload.yaml")
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.try(c.Context(), strings.ReplaceAll(string(b), "NODE_PROGRAMS", c.programs), "apply", "-f", "-"); err != nil {
		c.Fatal(err)
	}
}

// running waits for the workload.
func (c cluster) running() {
	c.Helper()
	c.eventually(patience, contains("1"), "-n", "e2e", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	c.eventually(patience, contains("True"), "-n", "e2e", "get", "pod", "client", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
}

// pods gives the names and identities of the workload's.
func (c cluster) pods() string {
	c.Helper()
	return c.eventually(patience, contains("client"), "-n", "e2e", "get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{\"\\n\"}{end}")
}

// works tries everything a person does with a pod, and returns what pods does.
func (c cluster) works() string {
	c.Helper()
	c.running()
	c.eventually(patience, contains("with CoreDNS 1.15.0"), "-n", "e2e", "exec", "client", "--", "/skerry-addons", "coredns", "-version")
	c.eventually(patience, contains(".:5353"), "-n", "e2e", "logs", "client")
	// From inside the pod: a name, CoreDNS, the Service's address, kube-proxy, the other pod.
	c.eventually(patience, func(out string) bool { return out == "OK" },
		"-n", "e2e", "exec", "client", "--", "/node/kubectl", "--server=http://web.e2e.svc.cluster.local", "get", "--raw=/health")
	return c.pods()
}

// same says that the pods of before are the pods of now.
func (c cluster) same(before, now string) {
	c.Helper()
	if before != now {
		c.Errorf("the pods were\n%s\nand are now\n%s", before, now)
	}
}

// described asks for the descriptions of the API, which the server makes for the first who asks.
func (c cluster) described() {
	c.Helper()
	for path, want := range map[string]string{
		"/openapi/v3":              `"apis/apps/v1"`,
		"/openapi/v3/apis/apps/v1": "io.k8s.api.apps.v1.DeploymentSpec",
		"/openapi/v2":              "io.k8s.api.apps.v1.DeploymentSpec",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		out, err := c.try(ctx, "", "get", "--raw", path)
		cancel()
		if err != nil || !strings.Contains(out, want) {
			c.Errorf("%s: %v; %q is not in its %d bytes", path, err, want, len(out))
		}
	}
}

// mutates has a policy change an object, the first that needs the descriptions of the API in the server itself. Nobody has asked
// for those before: --raw asks for nothing else.
func (c cluster) mutates() {
	c.Helper()
	const api = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolic"
	c.do(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingAdmissionPolicy","metadata":{"name":"e2e"},"spec":{
		"failurePolicy":"Fail","reinvocationPolicy":"Never",
		"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}],
			"objectSelector":{"matchLabels":{"e2e":"mutates"}}},
		"mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{data: {\"by\": \"policy\"}}"}}]}}`,
		"create", "--raw", api+"ies", "-f", "-")
	c.do(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingAdmissionPolicyBinding","metadata":{"name":"e2e"},"spec":{"policyName":"e2e"}}`,
		"create", "--raw", api+"ybindings", "-f", "-")
	// The binding takes a moment to be seen; until then objects are as they were written, and never refused.
	for range 300 {
		made := c.do(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"e2e-","labels":{"e2e":"mutates"}}}`,
			"create", "--raw", "/api/v1/namespaces/default/configmaps", "-f", "-")
		if strings.Contains(made, `"by":"policy"`) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.Error("the policy changed nothing within 30 s")
}

// typed is what a person at a terminal sees of a command of skerryd on a node, which has no shell: it runs in a privileged pod of an
// image that each node has. The command comes behind how, which is --arguments-only unless skerryd is elsewhere than on an image.
func (c cluster) typed(how []string, args ...string) string {
	c.Helper()
	script := imagetest.Tool(c.T, "script", "bsdutils")
	node := c.do("", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	line := "stty cols 80 rows 24; exec"
	for _, word := range slices.Concat(c.kubectl, []string{"debug", "node/" + node, "-it", "--profile=sysadmin", "--image=skerry.local/host:1"}, how, args) {
		line += " '" + word + "'"
	}
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, script, "-qec", line, "/dev/null").CombinedOutput()
	if err != nil {
		c.Fatalf("%s: %v: %s", line, err, out)
	}
	c.do("", "delete", "pods", "--field-selector", "status.phase!=Running", "--wait=false")
	return string(out)
}
