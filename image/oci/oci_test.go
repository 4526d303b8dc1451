package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func addons() Image {
	return Image{Ref: "skerry.local/addons:1", Arch: "arm", Program: "skerry-addons", Binary: bytes.Repeat([]byte("elf"), 50_000),
		Args: []string{"-conf", "/x"}, User: "65532:65532"}
}

// The real reader, containerd's importer, takes the archive and finds in it what was put in.
func TestContainerdReadsIt(t *testing.T) {
	i := addons()
	var one, two bytes.Buffer
	if err := i.Write(&one); err != nil {
		t.Fatal(err)
	}
	if err := i.Write(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("the same image gave two archives (%v)", err)
	}
	ctx := t.Context()
	store, top := imported(t, bytes.NewReader(one.Bytes()))
	var idx ocispec.Index
	read(t, store, top, &idx)
	if len(idx.Manifests) != 1 || idx.Manifests[0].Annotations[images.AnnotationImageName] != i.Ref {
		t.Fatalf("index is %+v", idx)
	}
	m, err := images.Manifest(ctx, store, top, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}))
	if err != nil {
		t.Fatal(err)
	}
	var cfg ocispec.Image
	read(t, store, m.Config, &cfg)
	if cfg.Architecture != "arm" || cfg.Config.User != i.User || len(cfg.Config.Entrypoint) != 3 || cfg.Config.Entrypoint[0] != "/skerry-addons" {
		t.Errorf("config is %+v", cfg)
	}
	if len(m.Layers) != 1 || len(cfg.RootFS.DiffIDs) != 1 {
		t.Fatalf("%d layers, %v", len(m.Layers), cfg.RootFS.DiffIDs)
	}
	blob, err := content.ReadBlob(ctx, store, m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	r, err := compression.DecompressStream(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil || cfg.RootFS.DiffIDs[0].Algorithm().FromBytes(plain) != cfg.RootFS.DiffIDs[0] {
		t.Errorf("the layer is not the one that the config names (%v)", err)
	}
	tr := tar.NewReader(bytes.NewReader(plain))
	h, err := tr.Next()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(tr)
	if err != nil || !bytes.Equal(data, i.Binary) || h.Mode != 0o755 || len(h.PAXRecords) != 0 {
		t.Errorf("layer: %+v, %d bytes, %v", h, len(data), err)
	}
	if _, err := tr.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the program: %v", err)
	}
}

// An image that is entered by a program of a mount says so.
func TestEnter(t *testing.T) {
	var buf bytes.Buffer
	if err := (Image{Ref: "skerry.local/host:1", Arch: "arm", Program: "about", Binary: []byte("x"), Enter: []string{"/host/usr/bin/skerryd", "--root", "/host"}}).Write(&buf); err != nil {
		t.Fatal(err)
	}
	store, top := imported(t, &buf)
	m, err := images.Manifest(t.Context(), store, top, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}))
	if err != nil {
		t.Fatal(err)
	}
	var cfg ocispec.Image
	read(t, store, m.Config, &cfg)
	if !slices.Equal(cfg.Config.Entrypoint, []string{"/host/usr/bin/skerryd", "--root", "/host"}) || cfg.Config.User != "" {
		t.Errorf("config is %+v", cfg.Config)
	}
}

// imported is what containerd makes of an archive.
func imported(t *testing.T, r io.Reader) (content.Store, ocispec.Descriptor) {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := archive.ImportIndex(t.Context(), store, r)
	if err != nil {
		t.Fatal(err)
	}
	return store, top
}

func read(t *testing.T, store content.Provider, d ocispec.Descriptor, v any) {
	t.Helper()
	data, err := content.ReadBlob(t.Context(), store, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

// Docker's manifest.json stands beside and says the same.
func TestDockerManifestAgrees(t *testing.T) {
	var buf bytes.Buffer
	if err := addons().Write(&buf); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	var got []dockerManifest
	tr := tar.NewReader(&buf)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
		if h.Name == "manifest.json" {
			if err := json.NewDecoder(tr).Decode(&got); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got) != 1 || got[0].RepoTags[0] != addons().Ref || !names[got[0].Config] || !names[got[0].Layers[0]] {
		t.Errorf("%+v beside %v", got, names)
	}
}

func TestBadNameIsRefused(t *testing.T) {
	for _, ref := range []string{"", "pause", "pause:1", "skerry.local/pause", "skerry.local/Pause:1", "skerry.local/pause:"} {
		if err := (Image{Ref: ref, Arch: "amd64", Program: "p"}).Write(io.Discard); err == nil {
			t.Errorf("%q was accepted", ref)
		}
	}
}

func TestErrorsOfTheWriterAreReturned(t *testing.T) {
	if err := addons().Write(failing{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// What is left of an archive without its layers is the same image to containerd; the layer's files are those that went in. An image that
// is more than plain files, or not what its config says, is not taken apart.
func TestApart(t *testing.T) {
	i := addons()
	var whole bytes.Buffer
	if err := i.Write(&whole); err != nil {
		t.Fatal(err)
	}
	rest, layers, err := Apart(bytes.NewReader(whole.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if len(rest) > 8<<10 || len(layers) != 1 {
		t.Errorf("left are %d bytes, %d layers", len(rest), len(layers))
	}
	index := func(archived []byte) (ocispec.Descriptor, *ocispec.Image) {
		store, err := local.NewStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		top, err := archive.ImportIndex(t.Context(), store, bytes.NewReader(archived))
		if err != nil {
			t.Fatal(err)
		}
		m, err := images.Manifest(t.Context(), store, top, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}))
		if err != nil {
			t.Fatal(err)
		}
		var cfg ocispec.Image
		read(t, store, m.Config, &cfg)
		return top, &cfg
	}
	a, cfg := index(whole.Bytes())
	if b, _ := index(rest); a.Digest != b.Digest {
		t.Error("without its layer it is another image")
	}
	f := layers[cfg.RootFS.DiffIDs[0].String()]
	if len(f) != 1 || !bytes.Equal(f["skerry-addons"].Data, i.Binary) || f["skerry-addons"].Mode != 0o755 {
		t.Errorf("the layer's files are %d", len(f))
	}

	layered := func(files map[string]File, layers int) []byte {
		layer, err := Tar(files)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteLayered(&b, []Layered{{Refs: []string{"skerry.local/x:1"}, Arch: "amd64", Layers: slices.Repeat([][]byte{layer}, layers)}}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	plain := map[string]File{"a": {Mode: 0o755, Data: []byte("a")}}
	if _, _, err := Apart(bytes.NewReader(layered(plain, 1))); err != nil {
		t.Errorf("a plain file: %v", err)
	}
	for name, archived := range map[string][]byte{
		"two layers":      layered(plain, 2),
		"somebody's file": layered(map[string]File{"a": {Mode: 0o755, UID: 7}}, 1),
		"set-id":          layered(map[string]File{"a": {Mode: 0o4755}}, 1),
		"a link":          layered(map[string]File{"a": {Link: "/etc"}}, 1),
		"a whiteout":      layered(map[string]File{".wh.a": {Mode: 0o644}}, 1),
		"a way out":       layered(map[string]File{"../a": {Mode: 0o644}}, 1),
		"cut short":       whole.Bytes()[:whole.Len()/2],
		"another layer":   bytes.Replace(rest, []byte(`"layers":[`), []byte(`"layers":[`), 1),
		"nothing":         nil,
	} {
		if _, _, err := Apart(bytes.NewReader(archived)); err == nil {
			t.Errorf("%s: is taken apart", name)
		}
	}
}
