package helm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

// object reads a manifest into one of the package's types, as the controller does.
func object(t *testing.T, text string, into any) {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	if err := decode(u, into); err != nil {
		t.Fatal(err)
	}
}

func TestValues(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "more", Namespace: "kube-system"}, Data: map[string][]byte{
		"a": []byte("from: secret\ndeep: {s: 1}\n"), "b": []byte("unused: true\n"),
	}})
	var c chart
	object(t, `
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: x, namespace: kube-system}
spec:
  valuesContent: |
    from: chart
    deep: {a: 1, b: 1, list: [1, 2]}
  valuesSecrets: [{name: more, keys: [a]}]
  set: {deep.a: 9, text: "007", flag: "true", dots\.in\.names: x}
  timeout: 90s
`, &c)
	var config chartConfig
	object(t, "apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: x}\nspec: {failurePolicy: abort, valuesContent: 'deep: {b: 2, list: [3]}'}\n", &config)
	got, err := values(t.Context(), client, &c, &config, false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"deep":{"a":9,"b":2,"list":[3],"s":1},"dots.in.names":"x","flag":true,"from":"secret","text":"007"}`; string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
	if c.timeout() != 90*time.Second || c.policy(&config) != abort || c.policy(&chartConfig{}) != reinstall || c.namespace() != "kube-system" {
		t.Errorf("%v %v %v", c.timeout(), c.policy(&config), c.namespace())
	}
	for text, want := range map[string]string{
		"valuesContent: '['":               "spec.valuesContent",
		"valuesSecrets: [{name: nowhere}]": `secrets "nowhere" not found`,
		"set: {'a[x]': 1}":                 "spec.set: a[x]",
	} {
		var c chart
		object(t, "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: x}\nspec: {"+text+"}\n", &c)
		if _, err := values(t.Context(), client, &c, &chartConfig{}, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A Secret that values come from makes a new release when it changes, unless its updates are ignored; then they are in the next one.
func TestSecretsUpdates(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "kube-system"}, Data: map[string][]byte{"a": []byte("x: 1\n")}}
	client := fake.NewClientset(secret)
	for _, where := range []string{"HelmChart", "HelmChartConfig"} {
		for _, ignored := range []bool{false, true} {
			var c chart
			var config chartConfig
			c.Namespace = "kube-system"
			spec := fmt.Sprintf("spec: {valuesSecrets: [{name: s, ignoreUpdates: %v}]}\n", ignored)
			into := any(&c)
			if where != "HelmChart" {
				into = &config
			}
			object(t, "apiVersion: helm.cattle.io/v1\nkind: "+where+"\nmetadata: {name: x, namespace: kube-system}\n"+spec, into)
			digest := func(text string) string {
				t.Helper()
				secret.Data["a"] = []byte(text)
				if _, err := client.CoreV1().Secrets("kube-system").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				given, err := values(t.Context(), client, &c, &config, false)
				if err != nil || fmt.Sprintf("x: %v\n", given["x"]) != text {
					t.Errorf("the chart is given %v, %v", given, err)
				}
				counted, err := values(t.Context(), client, &c, &config, true)
				if err != nil {
					t.Fatal(err)
				}
				d, err := inputs(c.Spec, counted)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			if same := digest("x: 1\n") == digest("x: 2\n"); same != ignored || follows(&c, &config) == ignored {
				t.Errorf("%s, ignored %v: the same release %v, looked at %v", where, ignored, same, follows(&c, &config))
			}
		}
	}
}

// What a release is made of decides whether it is upgraded; who may fetch it, and how long it may take, do not.
func TestInputs(t *testing.T) {
	base := chartSpec{Chart: "x", Version: "1"}
	of := func(s chartSpec, v map[string]any) string {
		t.Helper()
		d, err := inputs(s, v)
		if err != nil || len(d) > 63 {
			t.Fatal(d, err)
		}
		return d
	}
	same := base
	same.AuthSecret, same.FailurePolicy, same.Timeout = &reference{"x"}, abort, &metav1.Duration{Duration: time.Second}
	if of(base, nil) != of(same, nil) {
		t.Error("a detail of fetching is an upgrade")
	}
	other := base
	other.Version = "2"
	if of(base, nil) == of(other, nil) || of(base, nil) == of(base, map[string]any{"a": 1}) {
		t.Error("a change is no upgrade")
	}
}

func chartArchive(t *testing.T, version string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	text := "apiVersion: v2\nname: ship\nversion: " + version + "\n"
	if err := w.WriteHeader(&tar.Header{Name: "ship/Chart.yaml", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// far serves a repository that wants a user, and says who asked a second host with one.
func far(t *testing.T) (repository *httptest.Server, elsewhere *httptest.Server, told *[]string) {
	t.Helper()
	told = &[]string{}
	elsewhere = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, _, _ := r.BasicAuth()
		*told = append(*told, user)
		_, _ = w.Write(chartArchive(t, "3.0.0"))
	}))
	t.Cleanup(elsewhere.Close)
	repository = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "north" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/charts/index.yaml":
			_, _ = fmt.Fprintf(w, "apiVersion: v1\nentries:\n  ship:\n  - {apiVersion: v2, name: ship, version: 1.0.0, urls: [a/ship-1.tgz]}\n  - {apiVersion: v2, name: ship, version: 2.0.0, urls: [/top.tgz]}\n  far:\n  - {apiVersion: v2, name: far, version: 1.0.0, urls: ['%s/x.tgz']}\n", elsewhere.URL)
		case "/charts/a/ship-1.tgz":
			_, _ = w.Write(chartArchive(t, "1.0.0"))
		case "/top.tgz":
			_, _ = w.Write(chartArchive(t, "2.0.0"))
		case "/rubbish.tgz":
			_, _ = io.WriteString(w, "not a chart")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(repository.Close)
	return repository, elsewhere, told
}

func TestFetch(t *testing.T) {
	repository, elsewhere, told := far(t)
	pemOf := func(s *httptest.Server) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	}
	good := origin{ca: append(pemOf(repository), pemOf(elsewhere)...), username: "north", password: "secret"}
	repo := repository.URL + "/charts/"
	for name, c := range map[string]struct {
		spec    chartSpec
		from    origin
		version string
		fault   string
	}{
		"newest":         {chartSpec{Chart: "ship", Repo: repo}, good, "2.0.0", ""},
		"a version":      {chartSpec{Chart: "ship", Repo: repo, Version: "1.0.0"}, good, "1.0.0", ""},
		"a range":        {chartSpec{Chart: "ship", Repo: repo, Version: "~1"}, good, "1.0.0", ""},
		"a URL":          {chartSpec{Chart: repository.URL + "/top.tgz"}, good, "2.0.0", ""},
		"content":        {chartSpec{ChartContent: base64.StdEncoding.EncodeToString(chartArchive(t, "4.0.0"))}, origin{}, "4.0.0", ""},
		"another host":   {chartSpec{Chart: "far", Repo: repo}, good, "3.0.0", ""},
		"no version":     {chartSpec{Chart: "ship", Repo: repo, Version: "9"}, good, "", "ship 9"},
		"no chart":       {chartSpec{Chart: "boat", Repo: repo}, good, "", "boat"},
		"nobody":         {chartSpec{Chart: "ship", Repo: repo}, origin{ca: good.ca}, "", "401"},
		"not trusted":    {chartSpec{Chart: "ship", Repo: repo}, origin{username: "north", password: "secret"}, "", "certificate"},
		"insecure":       {chartSpec{Chart: "ship", Repo: repo}, origin{username: "north", password: "secret", insecure: true}, "2.0.0", ""},
		"name alone":     {chartSpec{Chart: "stable/ship"}, good, "", "say in spec.repo"},
		"nothing":        {chartSpec{}, good, "", "no chart"},
		"rubbish":        {chartSpec{Chart: repository.URL + "/rubbish.tgz"}, good, "", "is not a chart"},
		"rubbish inline": {chartSpec{ChartContent: "%"}, good, "", "spec.chartContent"},
		"bad CA":         {chartSpec{Chart: "ship", Repo: repo}, origin{ca: []byte("x")}, "", "repoCA"},
	} {
		got, err := fetch(t.Context(), c.spec, c.from)
		switch {
		case c.fault != "":
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: %v; want %q", name, err, c.fault)
			}
		case err != nil || got.Metadata.Version != c.version:
			t.Errorf("%s: %v", name, err)
		}
	}
	if want := []string{""}; !reflect.DeepEqual(*told, want) {
		t.Errorf("the other host was told %q: credentials are for the repository", *told)
	}
}

// A chart from a registry, its newest version without one being named, by a user of a docker Secret.
func TestFetchOCI(t *testing.T) {
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	locked := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); locked && (user != "north" || password != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="far"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, version := range []string{"1.0.0", "2.0.0+x"} {
		layer, config := chartArchive(t, version), []byte(`{"name":"ship","version":"`+version+`","apiVersion":"v2"}`)
		digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
		manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"%s","size":%d},"layers":[{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip","digest":"%s","size":%d}]}`,
			digest(config), len(config), digest(layer), len(layer))
		for _, put := range []struct {
			method, path string
			data         []byte
		}{
			{http.MethodPost, "/blobs/uploads/?digest=" + digest(config), config},
			{http.MethodPost, "/blobs/uploads/?digest=" + digest(layer), layer},
			{http.MethodPut, "/manifests/" + strings.ReplaceAll(version, "+", "_"), manifest},
		} {
			req, err := http.NewRequestWithContext(t.Context(), put.method, srv.URL+"/v2/charts/ship"+put.path, bytes.NewReader(put.data))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			resp, err := http.DefaultClient.Do(req)
			if err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatal(put.path, resp, err)
			}
			_ = resp.Body.Close()
		}
	}
	locked = true
	docker := dockerCredentials(fmt.Appendf(nil, `{"auths":{"https://%s/v1/":{"auth":"%s"}}}`, host, base64.StdEncoding.EncodeToString([]byte("north:secret"))))
	for version, want := range map[string]string{"": "2.0.0+x", "1.0.0": "1.0.0", "2.0.0+x": "2.0.0+x"} {
		got, err := fetch(t.Context(), chartSpec{Chart: "oci://" + host + "/charts/ship", Version: version}, origin{plain: true, docker: docker})
		if err != nil || got.Metadata.Version != want {
			t.Errorf("%q: %v", version, err)
		}
	}
	if got, err := fetch(t.Context(), chartSpec{Chart: "ship", Repo: "oci://" + host + "/charts", Version: "1.0.0"}, origin{plain: true, username: "north", password: "secret"}); err != nil || got.Metadata.Version != "1.0.0" {
		t.Errorf("a repository that is a registry: %v", err)
	}
	if _, err := fetch(t.Context(), chartSpec{Chart: "oci://" + host + "/charts/ship", Version: "1.0.0"}, origin{plain: true}); err == nil {
		t.Error("nobody may fetch it")
	}
}
