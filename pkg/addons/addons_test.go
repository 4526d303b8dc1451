package addons

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %}\n"

// bench is folders of manifests and an API that can be told to refuse.
type bench struct {
	*testing.T
	*keeper
	applied []string
	refuse  string
}

func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	b := &bench{T: t}
	b.keeper = &keeper{applied: map[string]string{}, cfg: Config{
		Components: filepath.Join(dir, "components"), Manifests: filepath.Join(dir, "manifests"), Disable: []string{"ingress"},
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd00:43::a")}, ClusterDomain: "cluster.local",
	}}
	b.apply = func(_ context.Context, o object) error {
		if o.GetName() == b.refuse {
			return errors.New("no")
		}
		b.applied = append(b.applied, o.GetName())
		return nil
	}
	return b
}

func (b *bench) write(name, text string) {
	b.Helper()
	p := filepath.Join(filepath.Dir(b.cfg.Components), name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
}

func named(name string) string { return strings.ReplaceAll(configMap, "%", name) }

// pass runs one and gives what it applied.
func (b *bench) passes() ([]string, error, error) {
	b.applied = nil
	components, persons := b.pass(b.Context())
	return b.applied, components, persons
}

func TestPass(t *testing.T) {
	b := newBench(t)
	if got, components, persons := b.passes(); len(got) != 0 || components != nil || persons != nil {
		t.Errorf("without folders: %v, %v, %v", got, components, persons)
	}
	b.write("components/coredns/coredns.yaml", named("dns")+"---\n# nothing\n---\n"+named("dns-2"))
	b.write("components/ingress/ingress.yaml", named("disabled"))
	b.write("manifests/20.yaml", named("second"))
	b.write("manifests/10.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"first"}},{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"first-2"}}]}`)
	b.write("manifests/.20.yaml.swp", "x")
	b.write("manifests/README.md", "x")
	got, components, persons := b.passes()
	if want := []string{"dns", "dns-2", "first", "first-2", "second"}; !slices.Equal(got, want) || components != nil || persons != nil {
		t.Errorf("got %v, %v, %v", got, components, persons)
	}
	if got, _, _ := b.passes(); len(got) != 0 {
		t.Errorf("applied again without a change: %v", got)
	}
	b.write("manifests/20.yaml", named("second")+"data: {a: b}\n")
	if got, _, _ := b.passes(); !slices.Equal(got, []string{"second"}) {
		t.Errorf("after a change: %v", got)
	}
	if err := os.Remove(filepath.Join(b.cfg.Manifests, "20.yaml")); err != nil {
		t.Fatal(err)
	}
	if got, components, persons := b.passes(); len(got) != 0 || components != nil || persons != nil {
		t.Errorf("after a removal: %v, %v, %v", got, components, persons)
	}
}

// A refused object is tried again, and keeps neither its file's others nor other files back; a person's fault is not a
// component's.
func TestPassKeepsGoing(t *testing.T) {
	b := newBench(t)
	b.write("components/coredns/coredns.yaml", named("dns"))
	b.write("manifests/a.yaml", named("one")+"---\n"+named("two")+"---\n"+named("three"))
	b.write("manifests/b.yaml", named("four"))
	b.write("manifests/c.yaml", "apiVersion: v1\nkind: [\n")
	b.write("manifests/d.yaml", named("five")+"---\nkind: Nameless\napiVersion: v1\n---\n{a: b}\n")
	b.refuse = "two"
	got, components, persons := b.passes()
	if !slices.Equal(got, []string{"dns", "one", "three", "four"}) || components != nil {
		t.Errorf("got %v, %v", got, components)
	}
	for _, want := range []string{"a.yaml:5: ConfigMap two: no", "c.yaml: ", "d.yaml:5: Nameless has no", "d.yaml:8: is not a Kubernetes object"} {
		if persons == nil || !strings.Contains(persons.Error(), want) {
			t.Errorf("%q is not in %v", want, persons)
		}
	}
	b.refuse = ""
	if got, _, _ := b.passes(); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("the second time: %v", got)
	}
	b.refuse = "dns"
	b.write("components/coredns/coredns.yaml", named("dns")+"data: {a: b}\n")
	if _, components, _ := b.passes(); components == nil {
		t.Error("a component that cannot be applied is no error")
	}
}

// The components in the repository render, and say what the settings say.
func TestShippedComponents(t *testing.T) {
	b := newBench(t)
	b.cfg.Components = "../../overlays/server/usr/share/skerry/manifests"
	kinds := map[string]object{}
	b.apply = func(_ context.Context, o object) error { kinds[o.String()] = o; return nil }
	if _, components, persons := b.passes(); components != nil || persons != nil {
		t.Fatal(components, persons)
	}
	service, ok := kinds["Service kube-system/kube-dns"]
	if !ok {
		t.Fatalf("no DNS service in %v", kinds)
	}
	spec := service.Object["spec"].(map[string]any)
	if spec["clusterIP"] != "10.43.0.10" || spec["clusterIPs"].([]any)[1] != "fd00:43::a" {
		t.Errorf("spec is %v", spec)
	}
	corefile := kinds["ConfigMap kube-system/coredns"].Object["data"].(map[string]any)["Corefile"].(string)
	if !strings.Contains(corefile, "kubernetes cluster.local in-addr.arpa") {
		t.Errorf("Corefile is %s", corefile)
	}
}

func TestRenderRefusesUnknown(t *testing.T) {
	if _, err := render(Config{})("x.yaml", []byte("a: {{ .Unknown }}")); err == nil || !strings.Contains(err.Error(), "Unknown") {
		t.Errorf("%v", err)
	}
}
