package crictl

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is written of an ID must lead to one thing.
func TestPick(t *testing.T) {
	all := []string{"3f2a01", "3f2a02", "77", "770"}
	for _, c := range []struct{ id, want, problem string }{
		{"3f2a01", "3f2a01", ""},
		{"77", "77", ""}, // the whole of one, the beginning of another
		{"770", "770", ""},
		{"3f", "", "2 containers"},
		{"9", "", "no container"},
		{"", "", "no container"},
	} {
		got, err := pick("container", c.id, all)
		if got != c.want || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%q: %q, %v", c.id, got, err)
		}
	}
}

// Each command explains itself, and no letter of a flag is taken twice, which cobra finds when it is called.
func TestHelp(t *testing.T) {
	for _, c := range New("/none").Commands() {
		root := New("/none")
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs([]string{"-r", "/none", c.Name(), "--help"})
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), "Examples:") {
			t.Errorf("crictl %s --help: %v\n%s", c.Name(), err, out.String())
		}
	}
}

// Without a runtime the message says what to look at.
func TestNoRuntime(t *testing.T) {
	for _, args := range [][]string{{"ps"}, {"pods"}, {"images"}, {"info"}, {"version"}, {"exec", "a", "sh"}, {"logs", "a"}} {
		root := New("/no/such.sock")
		root.SetArgs(args)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "/no/such.sock") || !strings.Contains(err.Error(), "does skerryd run") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestTexts(t *testing.T) {
	if got := bytesText(78_123_456); got != "78.12MB" {
		t.Error(got)
	}
	if got := bytesText(0); got != "0B" {
		t.Error(got)
	}
	for d, want := range map[time.Duration]string{5 * time.Second: "5 seconds ago", 90 * time.Second: "About a minute ago", 3 * time.Hour: "3 hours ago", 72 * time.Hour: "3 days ago"} {
		if got := ago(time.Now().Add(-d)); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
	if got := stateName(cri.ContainerState_CONTAINER_RUNNING); got != "Running" {
		t.Error(got)
	}
}

// Scripts read JSON: keys as in the runtime's interface, states by name, and details as objects and not as text.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	if err := printJSON(cmd, "containers", &cri.Container{Id: "3f", PodSandboxId: "9b", State: cri.ContainerState_CONTAINER_EXITED}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"containers": [`, `"podSandboxId": "9b"`, `"state": "CONTAINER_EXITED"`, `"labels": {}`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
	text, err := withInfo(&cri.ContainerStatus{Id: "3f"}, map[string]string{"info": `{"pid":7}`, "note": "plain"})
	if err != nil || !strings.Contains(string(text), `"info":{"pid":7}`) || !strings.Contains(string(text), `"note":"plain"`) {
		t.Errorf("%s, %v", text, err)
	}
}
