package images

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-os/skerry/image/oci"
)

// What Archive writes can be pulled, by whatever name of a registry, as far as a client follows digests; nothing else can.
func TestRegistry(t *testing.T) {
	layer, err := oci.Tar(map[string]oci.File{"hello": {Data: []byte("world"), Mode: 0o644}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "images.tar")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.WriteLayered(file, []oci.Layered{{Refs: []string{"registry.k8s.io/e2e/one:1", "registry.k8s.io/two:2"}, Arch: "amd64", Layers: [][]byte{layer}}}); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	registry, err := OpenRegistry(name)
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close() //nolint:errcheck // read only
	server := httptest.NewServer(registry)
	defer server.Close()
	get := func(path string) (int, http.Header, []byte) {
		t.Helper()
		r, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close() //nolint:errcheck // read only
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, r.Header, body
	}
	if code, _, _ := get("/v2/"); code != http.StatusOK {
		t.Errorf("/v2/: %d", code)
	}
	for _, path := range []string{"/v2/e2e/one/manifests/2", "/v2/two/blobs/sha256:00", "/v2/three/manifests/1", "/"} {
		if code, _, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	code, header, body := get("/v2/two/manifests/2?ns=registry.k8s.io")
	sum := header.Get("Docker-Content-Digest")
	if code != http.StatusOK || sum != oci.Digest(body) {
		t.Fatalf("manifest: %d, %s", code, sum)
	}
	if _, header, _ := get("/v2/e2e/one/manifests/" + sum); header.Get("Content-Type") != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("by digest: %v", header)
	}
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(body, &manifest); err != nil || len(manifest.Layers) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	for _, sum := range []string{manifest.Config.Digest, manifest.Layers[0].Digest} {
		if code, _, body := get(fmt.Sprintf("/v2/two/blobs/%s", sum)); code != http.StatusOK || oci.Digest(body) != sum {
			t.Errorf("blob %s: %d", sum, code)
		}
	}
}
