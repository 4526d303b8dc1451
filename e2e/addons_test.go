package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/skerry-os/skerry/pkg/addons"
)

// skerryd runs one of its other commands beside the server.
func (e *engine) skerryd(args ...string) (string, error) {
	args = e.inside(append([]string{e.program}, args...)...)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

func (e *engine) manifest(name, text string) {
	e.t.Helper()
	p := filepath.Join(e.data(), "server", "manifests", name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *engine) unmanifest(name string) {
	e.t.Helper()
	if err := os.RemoveAll(filepath.Join(e.data(), "server", "manifests", name)); err != nil {
		e.t.Fatal(err)
	}
}

// archive puts an image of one file, in Docker's form, into the folder that is imported at the start.
func (e *engine) archive(name string, pack func([]byte) []byte, tag string) {
	e.t.Helper()
	layer := string(tarball(e.t, map[string]string{"hello": tag}))
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%x"]},"config":{}}`, sha256.Sum256([]byte(layer)))
	archive := tarball(e.t, map[string]string{
		"layer.tar": layer, "config.json": config, "manifest.json": `[{"Config":"config.json","RepoTags":["` + tag + `"],"Layers":["layer.tar"]}]`,
	})
	dir := filepath.Join(e.data(), "agent", "images")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), pack(archive), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

// airgap is about images that come with the release and from a person's archives: all there, all pinned, none stored twice.
func airgap(t *testing.T, e *engine) {
	out, err := e.skerryd("ctr", "--address", filepath.Join(e.runDir(), "containerd.sock"), "-n", "k8s.io", "images", "ls")
	if err != nil {
		t.Fatal(err, out)
	}
	for _, image := range []string{"skerry.local/pause:1", "skerry.local/addons:", "example.org/airgap:1", "example.org/plain:1"} {
		i := strings.Index(out, image)
		if i < 0 {
			t.Errorf("%s is not there:\n%s", image, out)
			continue
		}
		if line, _, _ := strings.Cut(out[i:], "\n"); !strings.Contains(line, "io.cri-containerd.pinned=pinned") {
			t.Errorf("is not pinned: %s", line)
		}
	}
	// Layers are unpacked, and their packed form goes when containerd next collects.
	biggest := func() (size int64) {
		_ = filepath.WalkDir(filepath.Join(e.data(), "agent", "containerd", "io.containerd.content.v1.content"), func(_ string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // what goes while we look is gone
			}
			if info, err := d.Info(); err == nil {
				size = max(size, info.Size())
			}
			return nil
		})
		return size
	}
	for end := time.Now().Add(patience); biggest() > 1<<20; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatalf("a layer of %d bytes is kept packed", biggest())
		}
	}
}

// gone waits until an object is not there.
func (c cluster) gone(args ...string) {
	c.Helper()
	c.eventually(patience, func(out string) bool { return out == "" }, append([]string{"get", "--ignore-not-found", "-o", "name"}, args...)...)
}

const shipsDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Ship, plural: ships, singular: ship}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
`

// Manifests, components, charts and registries on one server: starting it is what takes the time.
func TestNativeAddons(t *testing.T) {
	e := newEngine(t)
	far := newFarHost(t, e)
	e.flags = []string{"--private-registry", filepath.Join(e.dir, "registries.yaml"), "--disable", "metrics-server"}
	// What is there before the first start is applied too.
	e.manifest("early.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: early}\n")
	e.archive("airgap.tar.gz", func(b []byte) []byte { return zipped(t, b) }, "example.org/airgap:1")
	e.archive("plain.tar", func(b []byte) []byte { return b }, "example.org/plain:1")
	e.archive("broken.tar.zst", func([]byte) []byte { return []byte("no archive") }, "")
	e.archive("later.txt", func([]byte) []byte { return []byte("# to pull\nlibrary/listed:1\n") }, "")
	e.start()
	c := e.cluster()
	c.ready()

	t.Run("images", func(t *testing.T) { airgap(t, e) })
	t.Run("status", func(t *testing.T) {
		out, err := e.skerryd("status", "--kubeconfig", e.kubeconfig(), "--wait-ready", "--json", "--timeout", "5m")
		if err != nil {
			t.Fatal(err, out)
		}
		var s addons.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err, out)
		}
		i := slices.IndexFunc(s.Components, func(c addons.ComponentStatus) bool { return c.Name == "coredns" })
		if !s.Ready || len(s.Nodes) != 1 || i < 0 || !s.Components[i].Ready || s.Components[i].Objects < 5 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("manifests", func(t *testing.T) { manifests(t, e, c) })
	t.Run("components", func(t *testing.T) { components(t, e, c) })
	t.Run("charts", func(t *testing.T) { charts(t, e, c, far) })
	t.Run("registries", func(t *testing.T) { registries(t, e, c, far) })
	t.Run("a change while no server runs", func(t *testing.T) {
		e.stop()
		e.unmanifest("early.yaml")
		e.start()
		c.gone("configmap", "early")
	})
}

func manifests(t *testing.T, e *engine, c cluster) {
	c.T = t
	c.eventually(patience, contains("early"), "get", "configmap", "early", "-o", "name")
	// A namespace and a definition that stand behind what needs them, in other files, and one file that is broken.
	e.manifest("fleet/10-ship.yaml", "apiVersion: example.org/v1\nkind: Ship\nmetadata: {name: titanic, namespace: sea}\n")
	e.manifest("fleet/20-sea.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: sea}\n"+"---"+shipsDefinition)
	e.manifest("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: [\n")
	c.eventually(patience, contains("titanic"), "-n", "sea", "get", "ships", "-o", "name")
	c.eventually(patience, contains("broken.yaml:6: is not YAML"), "get", "events", "-A", "--field-selector", "reason=ManifestFault", "-o", "jsonpath={.items[*].message}")
	// Changed by somebody: made as the file says again.
	if _, err := c.try(t.Context(), "", "delete", "configmap", "early"); err != nil {
		t.Error(err)
	}
	c.eventually(patience, contains("early"), "get", "configmap", "early", "-o", "name")
	// A definition in use stays with its objects; the rest goes.
	if _, err := c.try(t.Context(), "apiVersion: example.org/v1\nkind: Ship\nmetadata: {name: mine}\n", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	e.unmanifest("fleet")
	e.unmanifest("broken.yaml")
	c.gone("namespace", "sea")
	c.eventually(patience, contains("objects of this kind are there"), "get", "events", "-A", "--field-selector", "reason=ManifestFault", "-o", "jsonpath={.items[*].message}")
	if _, err := c.try(t.Context(), "", "delete", "ship", "mine"); err != nil {
		t.Fatal(err)
	}
	c.gone("crd", "ships.example.org")
}

func components(t *testing.T, e *engine, c cluster) {
	c.T = t
	out, err := e.skerryd("disable", "--kubeconfig", e.kubeconfig(), "corends")
	if err == nil || !strings.Contains(out, `"corends" is not a component; known are coredns, `) || strings.Count(out, "\n") != 1 {
		t.Errorf("%v %s", err, out)
	}
	if out, err := e.skerryd("enable", "--kubeconfig", e.kubeconfig(), "metrics-server"); err == nil || !strings.Contains(out, "--disable") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := e.skerryd("disable", "--kubeconfig", e.kubeconfig(), "coredns"); err != nil {
		t.Fatal(err, out)
	}
	c.gone("-n", "kube-system", "deployment", "coredns")
	out, err = e.skerryd("status", "--kubeconfig", e.kubeconfig())
	if !strings.Contains(out, "disabled by skerryd disable") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := e.skerryd("enable", "--kubeconfig", e.kubeconfig(), "coredns"); err != nil {
		t.Fatal(err, out)
	}
	c.ready()
}

// farHost is a machine at the other end of the engine's wire, with a chart repository and a registry.
type farHost struct {
	address string
	mu      sync.Mutex
	user    string
	seen    []string
	files   map[string][]byte
	blobs   http.Handler
}

func newFarHost(t *testing.T, e *engine) *farHost {
	t.Helper()
	f := &farHost{files: map[string][]byte{}, blobs: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	var l net.Listener
	err := e.within(func() (err error) { l, err = net.Listen("tcp", "192.0.2.2:0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	srv := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return f
}

func (f *farHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, r.Method+" "+r.URL.Path)
	if data, ok := f.files[r.URL.Path]; ok {
		_, _ = w.Write(data)
		return
	}
	name, password, _ := r.BasicAuth()
	if f.user != "" && f.user != name+":"+password {
		w.Header().Set("WWW-Authenticate", `Basic realm="far"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	f.blobs.ServeHTTP(w, r)
}

func (f *farHost) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// tarball packs files.
func tarball(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func testChart(t *testing.T, version, extra string) []byte {
	return zipped(t, tarball(t, map[string]string{
		"ship/Chart.yaml":             "apiVersion: v2\nname: ship\nversion: " + version + "\n",
		"ship/values.yaml":            "name: none\ncargo: none\ndeep: {a: 1, b: 2}\n",
		"ship/templates/ship.yaml":    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {is: '" + version + " {{ .Values.name }} {{ .Values.cargo }} {{ .Values.deep.a }} {{ .Values.deep.b }}'}\n" + extra,
		"ship/crds/anchors.yaml":      strings.NewReplacer("ships", "anchors", "ship", "anchor", "Ship", "Anchor").Replace(shipsDefinition),
		"ship/templates/_helpers.tpl": "",
	}))
}

func charts(t *testing.T, e *engine, c cluster, far *farHost) {
	c.T = t
	index := func(versions ...string) []byte {
		var b strings.Builder
		b.WriteString("apiVersion: v1\nentries:\n  ship:\n")
		for _, v := range versions {
			fmt.Fprintf(&b, "  - {apiVersion: v2, name: ship, version: %s, urls: [ship-%s.tgz]}\n", v, v)
		}
		return []byte(b.String())
	}
	far.set(func() {
		far.files["/charts/index.yaml"] = index("1.0.0")
		far.files["/charts/ship-1.0.0.tgz"] = testChart(t, "1.0.0", "")
		far.files["/charts/ship-2.0.0.tgz"] = testChart(t, "2.0.0", "")
	})
	is := func(want string) {
		t.Helper()
		c.eventually(patience, func(out string) bool { return out == want }, "-n", "harbour", "get", "configmap", "boat", "-o", "jsonpath={.data.is}")
	}
	object := "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: boat, namespace: kube-system}\nspec:\n  chart: ship\n  repo: http://" + far.address +
		"/charts\n  targetNamespace: harbour\n  createNamespace: true\n  valuesContent: |\n    name: boat\n    deep: {a: 3}\n  set: {cargo: 7}\n"
	e.manifest("boat.yaml", object)
	is("1.0.0 boat 7 3 2")
	c.eventually(patience, contains("anchors"), "get", "crd", "anchors.example.org", "-o", "name")
	c.eventually(patience, contains("True"), "-n", "kube-system", "get", "helmchart", "boat", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	e.manifest("boat-config.yaml", "apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: boat, namespace: kube-system}\nspec:\n  valuesContent: |\n    deep: {b: 4}\n")
	is("1.0.0 boat 7 3 4")
	// A version that is not there is told about, and nothing changes; then it comes.
	e.manifest("boat.yaml", object+"  version: 2.0.0\n")
	c.eventually(patience, contains("ship 2.0.0"), "-n", "kube-system", "get", "events", "--field-selector", "reason=HelmFailed", "-o", "jsonpath={.items[*].message}")
	is("1.0.0 boat 7 3 4")
	far.set(func() { far.files["/charts/index.yaml"] = index("2.0.0", "1.0.0") })
	is("2.0.0 boat 7 3 4")
	// A restart upgrades nothing.
	secrets := []string{"-n", "harbour", "get", "secrets", "-l", "owner=helm", "-o", "jsonpath={.items[*].metadata.uid}"}
	before := c.eventually(patience, func(string) bool { return true }, secrets...)
	e.stop()
	e.start()
	e.manifest("small.yaml", "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: small, namespace: kube-system}\nspec:\n  targetNamespace: harbour\n  chartContent: "+
		base64.StdEncoding.EncodeToString(testChart(t, "3.0.0", ""))+"\n")
	c.eventually(patience, func(out string) bool { return out == "3.0.0 none none 1 2" }, "-n", "harbour", "get", "configmap", "small", "-o", "jsonpath={.data.is}")
	if now := c.eventually(patience, func(string) bool { return true }, "-n", "harbour", "get", "secrets", "-l", "owner=helm,name=boat", "-o", "jsonpath={.items[*].metadata.uid}"); now != before {
		t.Errorf("releases were %s and are %s after a restart", before, now)
	}
	// Gone with its file, and its release with it.
	e.unmanifest("boat.yaml")
	e.unmanifest("small.yaml")
	c.gone("-n", "harbour", "configmap", "boat", "small")
	c.gone("-n", "kube-system", "helmcharts")
	c.gone("-n", "harbour", "secrets", "-l", "owner=helm")
}

// put stores an image of one file in a registry.
func (f *farHost) put(t *testing.T, repository string) {
	t.Helper()
	layer := tarball(t, map[string]string{"hello": "hello"})
	digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]},"config":{}}`, digest(layer))
	packed := zipped(t, layer)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%d}]}`,
		digest(config), len(config), digest(packed), len(packed))
	for _, put := range []struct {
		method, path string
		data         []byte
	}{
		{http.MethodPost, "/blobs/uploads/?digest=" + digest(config), config},
		{http.MethodPost, "/blobs/uploads/?digest=" + digest(packed), packed},
		{http.MethodPut, "/manifests/1", manifest},
	} {
		req, err := http.NewRequestWithContext(context.Background(), put.method, "http://far/v2/"+repository+put.path, bytes.NewReader(put.data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w := &answer{header: http.Header{}}
		f.blobs.ServeHTTP(w, req)
		if w.code != http.StatusCreated {
			t.Fatalf("%s: %d", put.path, w.code)
		}
	}
}

type answer struct {
	header http.Header
	code   int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }

// pulls has kubelet pull an image; there is nothing in it to run.
func pulls(c cluster, name, image string) {
	c.Helper()
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"` + image + `","command":["/hello"]}]}}`
	if _, err := c.try(c.Context(), pod, "apply", "-f", "-"); err != nil {
		c.Fatal(err)
	}
}

func pulled(c cluster, name string) {
	c.Helper()
	c.eventually(patience, contains("Successfully pulled"), "get", "events", "--field-selector", "involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
}

func registries(t *testing.T, e *engine, c cluster, far *farHost) {
	c.T = t
	far.put(t, "mirror/library/hello")
	far.put(t, "mirror/library/listed")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(e.dir, "registries.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The reason why nothing can be pulled reaches whoever looks at the pod.
	write("mirrors:\n  docker.io:\n    endpoints: []\n")
	pulls(c, "broken", "docker.io/library/hello:1")
	c.eventually(patience, contains(`registries.yaml:3:5: unknown key`), "get", "events", "--field-selector", "involvedObject.name=broken", "-o", "jsonpath={.items[*].message}")
	far.set(func() { far.user = "north:secret" })
	mirrors := "mirrors:\n  \"*\":\n    endpoint: [\"http://" + far.address + "\"]\n    rewrite: {\"(.*)\": \"mirror/$1\"}\n"
	write(mirrors + "configs:\n  \"" + far.address + "\": {auth: {username: north, password: secret}}\n")
	pulls(c, "mended", "docker.io/library/hello:1")
	pulled(c, "mended")
	pulls(c, "elsewhere", "registry.example.org/library/hello:1")
	pulled(c, "elsewhere")
	// A list of images to pull, which could not be when the server started.
	e.stop()
	e.start()
	c.eventually(patience, contains("docker.io/library/listed:1"), "get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}")
}
