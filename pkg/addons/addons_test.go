package addons

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes/fake"
)

// bench is folders of manifests and two keepers of one cluster, which can be told to refuse an object.
type bench struct {
	*testing.T
	dir                 string
	cfg                 Config
	components, persons *keeper
	off                 []string

	objects map[string]string // what the cluster has, with digests
	applied []string          // during the last pass
	refuse  string
	inUse   string // a definition
}

func (b *bench) apply(_ context.Context, o object) error {
	if o.GetName() == b.refuse {
		return errors.New("no")
	}
	b.objects[o.GetName()] = o.digest()
	b.applied = append(b.applied, o.GetName())
	return nil
}

func (b *bench) serve(_ context.Context, r ref) error {
	b.applied = append(b.applied, r.Name+" is served")
	return nil
}

func (b *bench) remove(_ context.Context, r ref) error {
	if r.Name == b.refuse {
		return errors.New("no")
	}
	if r.Name == b.inUse {
		return errInUse
	}
	delete(b.objects, r.Name)
	return nil
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: t.TempDir(), objects: map[string]string{}}
	b.cfg = Config{
		Node: "north", Components: filepath.Join(b.dir, "components"), Manifests: filepath.Join(b.dir, "manifests"),
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd00:43::a")}, ClusterDomain: "cluster.local",
	}
	client := fake.NewClientset()
	b.components = &keeper{kind: ofComponent, units: func() ([]unit, error) { return componentUnits(b.cfg) }, cluster: b, records: newConfigMaps(client)}
	b.persons = b.server("north", "manifests")
	b.persons.records = b.components.records
	b.write("components/.keep", "")
	return b
}

// server is a keeper of another server's folder in the same cluster.
func (b *bench) server(name, folder string) *keeper {
	return &keeper{kind: ofManifests, node: name, units: func() ([]unit, error) { return manifestUnits(filepath.Join(b.dir, folder)) },
		cluster: b, records: b.components.records}
}

func (b *bench) write(name, text string) {
	b.Helper()
	p := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) delete(name string) {
	b.Helper()
	if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
		b.Fatal(err)
	}
}

// named is a ConfigMap for each name.
func named(names ...string) string {
	var all []string
	for _, n := range names {
		all = append(all, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n", n))
	}
	return strings.Join(all, "---\n")
}

// pass runs one, gives what it applied in order, and the faults it has to tell.
func (b *bench) pass(k *keeper, all bool) ([]string, string) {
	b.Helper()
	b.applied = nil
	outcomes, err := k.pass(b.Context(), func(n string) bool { return slices.Contains(b.off, n) }, all)
	if err != nil {
		b.Fatal(err)
	}
	var faults []string
	for _, o := range outcomes {
		if o.fault != nil {
			faults = append(faults, o.unit+": "+o.fault.Error())
		}
	}
	return b.applied, strings.Join(faults, "\n")
}

// has compares what the cluster has.
func (b *bench) has(names ...string) {
	b.Helper()
	var got []string
	for n := range b.objects {
		got = append(got, n)
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		b.Errorf("the cluster has %q, want %q", got, names)
	}
}

func (b *bench) want(k *keeper, applied ...string) {
	b.Helper()
	if got, faults := b.pass(k, false); !slices.Equal(got, applied) || faults != "" {
		b.Errorf("applied %q (%s), want %q", got, faults, applied)
	}
}

func TestAppliesWhatChanged(t *testing.T) {
	b := newBench(t)
	b.write("components/coredns/coredns.yaml", named("dns")+"---\n# nothing\n---\n"+named("dns-2"))
	b.write("manifests/20.yaml", named("second"))
	b.write("manifests/10.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"first"}},{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"first-2"}}]}`)
	b.write("manifests/.20.yaml.swp", "x")
	b.write("manifests/README.md", "x")
	b.write("manifests/mine/deep/a.yml", named("deep"))
	b.want(b.components, "dns", "dns-2")
	b.want(b.persons, "first", "first-2", "second", "deep")
	b.want(b.components)
	b.want(b.persons)
	b.write("manifests/20.yaml", named("second")+"data: {a: b}\n")
	b.want(b.persons, "second")
	if got, _ := b.pass(b.persons, true); len(got) != 4 {
		t.Errorf("what others may have changed: %q", got)
	}
}

// A file that goes, or no longer names an object, takes the object with it: now, after a restart, and when it was renamed.
func TestRemovesWhatIsNoLongerWanted(t *testing.T) {
	b := newBench(t)
	b.write("manifests/a.yaml", named("one", "two"))
	b.write("manifests/b.yaml", named("three"))
	b.write("manifests/c/c.yaml", named("four"))
	b.want(b.persons, "one", "two", "three", "four")
	b.write("manifests/a.yaml", named("one"))
	b.want(b.persons)
	b.has("four", "one", "three")
	b.delete("manifests/c")
	b.delete("manifests/b.yaml")
	again := b.server("north", "manifests") // another process
	b.want(again)
	b.has("one")
	b.delete("manifests/a.yaml")
	b.write("manifests/z.yaml", named("one"))
	b.refuse = "one" // it would be told, were it removed
	b.pass(again, false)
	b.has("one")
	b.refuse = ""
	b.want(again, "one")
	// "default" is what no namespace means: writing it does not remove the object.
	b.write("manifests/z.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, namespace: default}\n")
	b.want(again, "one")
	b.has("one")
	b.delete("manifests/z.yaml")
	b.want(again)
	b.has()
	if left, err := again.records.list(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("records are left: %v %v", left, err)
	}
}

// What cannot be removed is tried again, however long it takes.
func TestRemovalIsRetried(t *testing.T) {
	b := newBench(t)
	b.write("manifests/a.yaml", named("one"))
	b.want(b.persons, "one")
	b.delete("manifests/a.yaml")
	b.refuse = "one"
	if _, faults := b.pass(b.persons, false); !strings.Contains(faults, "a: ConfigMap one: removing it: no") {
		t.Error(faults)
	}
	b.refuse = ""
	b.want(b.persons)
	b.has()
}

// A refused object is tried again, and keeps neither its file's others nor other files back. A file that cannot be read keeps
// what it made.
func TestKeepsGoing(t *testing.T) {
	b := newBench(t)
	b.write("manifests/c.yaml", named("old"))
	b.want(b.persons, "old")
	b.write("manifests/a.yaml", named("one", "two", "three"))
	b.write("manifests/b.yaml", named("four"))
	b.write("manifests/c.yaml", "apiVersion: v1\nkind: [\n")
	b.write("manifests/d.yaml", named("five")+"---\nkind: Nameless\napiVersion: v1\n---\n{a: b}\n")
	b.write("manifests/e.yaml", named("one"))
	b.refuse = "two"
	got, faults := b.pass(b.persons, false)
	if !slices.Equal(got, []string{"one", "three", "four", "five"}) {
		t.Errorf("applied %q", got)
	}
	b.has("five", "four", "old", "one", "three")
	for _, want := range []string{
		"a.yaml:5: ConfigMap two: no", "c.yaml:2: is not YAML: ", "d.yaml:5: Nameless has no", "d.yaml:8: is not a Kubernetes object",
		"e.yaml:1: ConfigMap one is in ", "a.yaml:1 too",
	} {
		if !strings.Contains(faults, want) {
			t.Errorf("%q is not in %s", want, faults)
		}
	}
	b.refuse = ""
	b.delete("manifests/e.yaml")
	b.write("manifests/c.yaml", named("new"))
	if got, _ := b.pass(b.persons, false); !slices.Equal(got, []string{"two", "new"}) {
		t.Errorf("the second time: %q", got)
	}
	b.has("five", "four", "new", "one", "three", "two")
}

// Namespaces come first and definitions second, whatever file they are in; they go last.
func TestOrder(t *testing.T) {
	b := newBench(t)
	b.write("manifests/a.yaml", "apiVersion: example.org/v1\nkind: Ship\nmetadata: {name: ship, namespace: sea}\n")
	b.write("manifests/b.yaml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: ships}\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: boats}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: sea}\n")
	b.want(b.persons, "sea", "ships", "boats", "ships is served", "boats is served", "ship")
	b.delete("manifests/a.yaml")
	b.delete("manifests/b.yaml")
	outcomes, err := b.persons.pass(t.Context(), func(string) bool { return false }, false)
	if err != nil || len(outcomes) != 2 || len(outcomes[1].removed) != 3 || outcomes[1].removed[0].Name != "ships" {
		t.Errorf("%+v %v", outcomes, err)
	}
}

// A component that is disabled keeps its definitions while people have objects of them, which is shown and is no fault: a server
// becomes ready. When the objects are gone, the definitions go.
func TestDefinitionsInUseStay(t *testing.T) {
	b := newBench(t)
	b.write("components/helm/helm.yaml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: charts}\n---\n"+named("rights"))
	b.want(b.components, "charts", "charts is served", "rights")
	b.off, b.inUse = []string{"helm"}, "charts"
	b.want(b.components)
	b.has("charts")
	all, err := b.components.records.list(t.Context())
	if err != nil || len(all) != 1 || !strings.Contains(all[0].fault, "CustomResourceDefinition charts: removing it: "+errInUse.Error()) {
		t.Errorf("what is shown is %+v, %v", all, err)
	}
	b.inUse = ""
	b.want(b.components)
	b.has()
}

func TestDisabledAndSkipped(t *testing.T) {
	b := newBench(t)
	b.write("components/coredns/coredns.yaml", named("dns"))
	b.write("components/ingress/ingress.yaml", named("ingress"))
	b.write("manifests/mine/a.yaml", named("mine"))
	b.off = []string{"ingress"}
	b.want(b.components, "dns")
	b.off = nil
	b.want(b.components, "ingress")
	b.want(b.persons, "mine")
	b.off = []string{"ingress", "mine"}
	b.want(b.components)
	b.want(b.persons)
	b.has("dns")
	b.off = nil
	// K3s's way: X.yaml.skip leaves X alone, which is to say it neither applies nor removes it.
	b.write("manifests/traefik.yaml.skip", "")
	b.write("manifests/coredns.yaml.skip", "")
	b.write("manifests/mine.skip", "")
	b.write("manifests/a.yaml", named("a"))
	b.write("manifests/b/b.yaml", named("b"))
	b.write("manifests/b/b.yaml.skip", "")
	b.write("components/coredns/coredns.yaml", named("dns", "dns-2"))
	b.want(b.components)
	b.want(b.persons, "a")
	b.has("a", "dns")
	b.delete("components")
	if _, err := b.components.pass(t.Context(), func(string) bool { return false }, false); !errors.Is(err, errNoComponents) {
		t.Errorf("a missing folder: %v", err)
	}
	b.has("a", "dns")
}

// A component's object is not a person's to change by a file of their own, and the file says what to do.
func TestComponentsObjectsAreItsOwn(t *testing.T) {
	b := newBench(t)
	b.write("components/coredns/coredns.yaml", named("dns"))
	b.want(b.components, "dns")
	b.write("manifests/dns.yaml", named("dns")+"data: {a: b}\n")
	got, faults := b.pass(b.persons, false)
	if len(got) != 0 || !strings.Contains(faults, "dns.yaml:1: ConfigMap dns is component coredns's") || !strings.Contains(faults, "skerryd disable coredns") {
		t.Errorf("%q %s", got, faults)
	}
	b.off = []string{"coredns"}
	b.want(b.components)
	b.want(b.persons, "dns")
}

// Each server applies its own folder; an object goes with the last file that wants it, and two that differ do not fight.
func TestTwoServers(t *testing.T) {
	b := newBench(t)
	north, south := b.persons, b.server("south", "south")
	b.write("manifests/a.yaml", named("one"))
	b.write("south/a.yaml", named("one", "two"))
	b.want(north, "one")
	b.want(south, "one", "two")
	b.delete("manifests/a.yaml")
	b.want(north)
	b.has("one", "two")
	b.write("manifests/a.yaml", named("one")+"data: {from: north}\n")
	b.want(north, "one")
	for range 3 {
		if got, faults := b.pass(south, true); !slices.Equal(got, []string{"two"}) || faults != "" {
			t.Errorf("south fights: %q %s", got, faults)
		}
	}
	b.delete("south/a.yaml")
	b.want(south)
	b.has("one")
}

// The components in the repository render, and say what the settings say.
func TestShippedComponents(t *testing.T) {
	b := newBench(t)
	b.cfg.Components = "../../overlays/server/usr/share/skerry/manifests"
	units, err := componentUnits(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]object{}
	for _, u := range units {
		w := &work{unit: u, record: &record{}, wanted: map[ref]object{}}
		w.load()
		if len(w.faults) > 0 {
			t.Error(u.name, w.faults)
		}
		for _, o := range w.objects {
			kinds[o.String()] = o
		}
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
