package settings

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/pkg/machine"
)

var update = flag.Bool("update", false, "rewrite cmd/skerryd/FLAGS.md")

// The table that people read is what the code does.
func TestFlagsTable(t *testing.T) {
	const file = "../../FLAGS.md"
	want := table()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the code says; run go test ./cmd/skerryd/internal/settings -args -update", file)
	}
}

func table() string {
	var b strings.Builder
	b.WriteString("# K3s's flags\n\nWhat becomes of each flag of `k3s server` and `k3s agent` when it is given to skerryd, on the command line or as a key of the config\n" +
		"file. This page is made from the code: do not edit it.\n\n- supported: does the same here\n- ignored: accepted with a warning\n- refused: an error that says what to do instead\n")
	for _, role := range []machine.Role{machine.RoleServer, machine.RoleAgent} {
		count := map[machine.Verdict]int{}
		var rows strings.Builder
		for _, k := range machine.K3sFlags(role) {
			count[k.Verdict]++
			note := strings.ReplaceAll(k.Note, "|", "\\|")
			if k.Verdict == machine.Supported {
				if names := environment[k.Name]; names != nil {
					note = strings.TrimPrefix(note+"; also `$"+strings.Join(names, "`, `$")+"`", "; ")
				}
			}
			fmt.Fprintf(&rows, "| `--%s` | %s | %s |\n", k.Name, k.Verdict, note)
		}
		fmt.Fprintf(&b, "\n## skerryd %s\n\n%d supported, %d ignored, %d refused. Every setting is a variable, too: `--node-ip` is `$SKERRY_NODE_IP` or `$K3S_NODE_IP`.\n\n| flag | here | |\n|---|---|---|\n%s",
			role, count[machine.Supported], count[machine.Ignored], count[machine.Refused], rows.String())
	}
	return b.String()
}

// Every flag in the table does what the table says, typed and in a file.
func TestK3sFlags(t *testing.T) {
	for _, k := range machine.K3sFlags(machine.RoleServer) {
		if k.Verdict == machine.Supported {
			continue
		}
		arg, line := "--"+k.Name+"=x", k.Name+": [x, y]\n"
		if k.Switch {
			arg, line = "--"+k.Name, k.Name+": true\n"
		}
		_, err := readArgs(t, "", arg)
		_, fileErr := readArgs(t, line+"node-name: north\n")
		switch k.Verdict {
		case machine.Ignored:
			if err != nil || fileErr != nil {
				t.Errorf("%s should be ignored: typed %v, in a file %v", k.Name, err, fileErr)
			}
		case machine.Refused:
			if err == nil || !strings.Contains(err.Error(), k.Note) || fileErr == nil || !strings.Contains(fileErr.Error(), k.Note) {
				t.Errorf("%s should be refused: typed %v, in a file %v", k.Name, err, fileErr)
			}
			if k.Switch {
				if _, err := readArgs(t, k.Name+": false\n", "--"+k.Name+"=false"); err != nil {
					t.Errorf("%s=false asks for nothing and is refused: %v", k.Name, err)
				}
			}
		}
	}
}

// Names that K3s has for our settings are taken, and what is wrong in a file keeps its line.
func TestTranslated(t *testing.T) {
	s, err := readArgs(t, "etcd-snapshot-retention: 9\nsystem-default-registry: r.example.org\nkube-controller-arg:\n- v=2\nkube-cloud-controller-manager-arg:\n# why\n- a=b\n- c=d\nnode-name: north\n",
		"--kube-controller-arg=v=3", "-t", "sixteen-characters", "-v", "4")
	if err != nil || s.SnapshotRetention != 9 || s.NodeName != "north" || s.KubeControllerManagerArg[0] != "v=3" || s.Token != "sixteen-characters" {
		t.Errorf("got %+v, %v", s, err)
	}
	_, err = readArgs(t, "kube-cloud-controller-manager-arg:\n- a=b\n- c=d\nhttps-listen-port: 0\n")
	if err == nil || !strings.Contains(err.Error(), ":4:") {
		t.Errorf("the fault is in line 4: %v", err)
	}
}

// Every setting is a variable, of any kind.
func TestVariables(t *testing.T) {
	t.Setenv("K3S_DISABLE", "coredns,servicelb")
	t.Setenv("SKERRY_HTTPS_LISTEN_PORT", "7443")
	t.Setenv("K3S_CLUSTER_INIT", "true")
	t.Setenv("K3S_NODE_IP", "192.0.2.7")
	s, err := readArgs(t, "disable: [ingress]\n")
	if err != nil || len(s.Disable) != 2 || s.HTTPSListenPort != 7443 || !s.ClusterInit || s.NodeIP != "192.0.2.7" {
		t.Errorf("got %+v, %v", s, err)
	}
	t.Setenv("SKERRY_HTTPS_LISTEN_PORT", "many")
	if _, err := readArgs(t, ""); err == nil || !strings.Contains(err.Error(), "SKERRY_HTTPS_LISTEN_PORT") {
		t.Errorf("a variable that is no number: %v", err)
	}
}
