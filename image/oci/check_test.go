package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// What a node could not import is refused when the release is built, with the image's name and what to do.
func TestCheckArchive(t *testing.T) {
	docker := func(list string, files map[string]string) map[string]string {
		out := map[string]string{"manifest.json": list}
		for name, text := range files {
			out[name] = text
		}
		return out
	}
	amd64 := `{"architecture": "amd64", "os": "linux"}`
	layout := func(name string, manifest any) map[string]string {
		out := map[string]string{"oci-layout": `{"imageLayoutVersion": "1.0.0"}`}
		put := func(v any) string {
			data, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			d := Digest(data)
			out[blobPath(descriptor{Digest: d})] = string(data)
			return d
		}
		if m, ok := manifest.(map[string]any); ok { // platforms by name: a list of images
			list := []descriptor{{Digest: put("attestation"), Platform: &platform{Architecture: "unknown", OS: "unknown"}}}
			for _, arch := range []string{"arm64", "amd64", "arm"} {
				if m[arch] == nil {
					continue
				}
				p := &platform{Architecture: arch, OS: "linux"}
				conf := descriptor{Digest: put(p)}
				list = append(list, descriptor{Digest: put(map[string]any{"config": conf}), Platform: p})
			}
			manifest = map[string]any{"manifests": list}
		}
		a := map[string]string{"io.containerd.image.name": name}
		if name == "" {
			a = nil
		}
		idx, err := json.Marshal(index{Manifests: []descriptor{{Digest: put(manifest), Annotations: a}}})
		if err != nil {
			t.Fatal(err)
		}
		out["index.json"] = string(idx)
		return out
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string // "": is good
	}{
		"docker save":                 {docker(`[{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"]}]`, map[string]string{"c.json": amd64, "l/layer.tar": "x"}), ""},
		"docker save of an id":        {docker(`[{"Config": "c.json", "RepoTags": null, "Layers": []}]`, map[string]string{"c.json": amd64}), "an image in it has no name; save it by its name and tag"},
		"one of two without a name":   {docker(`[{"Config": "c.json", "RepoTags": ["app:1"]}, {"Config": "c.json"}]`, map[string]string{"c.json": amd64}), "has no name"},
		"another architecture":        {docker(`[{"Config": "c.json", "RepoTags": ["app:1"]}]`, map[string]string{"c.json": `{"architecture": "arm64", "os": "linux"}`}), "app:1: is for linux/arm64; the release is for linux/amd64"},
		"another system":              {docker(`[{"Config": "c.json", "RepoTags": ["app:1"]}]`, map[string]string{"c.json": `{"architecture": "amd64", "os": "windows"}`}), "app:1: is for windows/amd64"},
		"a layer is missing":          {docker(`[{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"]}]`, map[string]string{"c.json": amd64}), "app:1: l/layer.tar: a layer that is not in it"},
		"a config is missing":         {docker(`[{"Config": "c.json", "RepoTags": ["app:1"]}]`, nil), "app:1: c.json: is not in it"},
		"a list that is none":         {docker(`{"a": 1}`, nil), "manifest.json: "},
		"an empty list":               {docker(`[]`, nil), "its manifest.json is empty"},
		"neither":                     {map[string]string{"repositories": "{}"}, "holds no container images"},
		"an index without its layout": {map[string]string{"index.json": "{}"}, "holds no container images"},
		"layout for all":              {layout("app:1", map[string]any{"arm64": 1, "amd64": 1}), ""},
		"layout for others":           {layout("app:1", map[string]any{"arm64": 1, "arm": 1}), "app:1: is for linux/arm64, linux/arm; the release is for linux/amd64"},
		"layout without a name":       {layout("", map[string]any{"amd64": 1}), "has no name"},
		"layout without its image":    {map[string]string{"oci-layout": "{}", "index.json": `{"manifests": [{"digest": "` + Digest(nil) + `", "annotations": {"io.containerd.image.name": "app:1"}}]}`}, "app:1: blobs/sha256/"},
		"layout with a bad digest":    {map[string]string{"oci-layout": "{}", "index.json": `{"manifests": [{"digest": "../x", "annotations": {"io.containerd.image.name": "app:1"}}]}`}, `app:1: "../x": is not a digest`},
		"empty layout":                {map[string]string{"oci-layout": "{}", "index.json": `{"manifests": []}`}, "its index.json is empty"},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for file, text := range c.files {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + file, Mode: 0o644, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		err := CheckArchive(bytes.NewReader(buf.Bytes()), "amd64")
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if len(c.files) > 0 && c.want == "" {
			if err := CheckArchive(bytes.NewReader(buf.Bytes()[:700]), "amd64"); err == nil {
				t.Errorf("%s, cut: %v", name, err)
			}
		}
	}
	for arch, good := range map[string]bool{"amd64": true, "arm64": true, "arm": true} {
		var buf bytes.Buffer
		if err := (Image{Ref: "skerry.local/pause:1", Arch: arch, Program: "pause", Binary: []byte("x")}).Write(&buf); err != nil {
			t.Fatal(err)
		}
		if err := CheckArchive(&buf, arch); (err == nil) != good {
			t.Errorf("our own, for %s: %v", arch, err)
		}
	}
}
