package gateway

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write the component's definitions anew from upstream's")

const crds = "../../overlays/server/usr/share/skerry/manifests/ingress/10-gateway-api.yaml"

// The definitions that the component installs are those of the module that the code is built with, without the texts: they
// are four fifths of the size, and the API server keeps all of it in memory.
func TestDefinitions(t *testing.T) {
	where, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	version, root, _ := strings.Cut(strings.TrimSpace(string(where)), " ")
	dir := filepath.Join(root, "config/crd/standard")
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) < 9 {
		t.Fatalf("%s: %v, %v", dir, files, err)
	}
	slices.Sort(files)
	out := bytes.NewBufferString("# The Gateway API " + version + ", standard channel, without descriptions. Made by go test ./pkg/gateway -run Definitions -args -update\n")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
			var doc yaml.Node
			if d.Decode(&doc) != nil {
				break
			}
			strip(&doc)
			text, err := yaml.Marshal(&doc)
			if err != nil {
				t.Fatal(err)
			}
			out.WriteString("---\n")
			out.Write(text)
		}
	}
	if strings.Contains(out.String(), "{{") {
		t.Error("holds what a template would fill in")
	}
	if *update {
		if err := os.WriteFile(crds, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(crds, 0o644); err != nil { //nolint:gosec // a manifest like the others
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(crds)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, out.Bytes()) {
		t.Errorf("%s is not upstream's of %s; run go test ./pkg/gateway -run Definitions -args -update", crds, version)
	}
}

// strip takes descriptions and comments away, but for a property of that name.
func strip(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); {
			if n.Content[i].Value == "description" && n.Content[i+1].Kind == yaml.ScalarNode {
				n.Content = slices.Delete(n.Content, i, i+2)
				continue
			}
			i += 2
		}
	}
	for _, c := range n.Content {
		strip(c)
	}
}
