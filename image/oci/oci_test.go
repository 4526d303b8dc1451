package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
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
		Args: []string{"-conf", "/x"}, User: "65532:65532", BindLowPorts: true}
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
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	top, err := archive.ImportIndex(ctx, store, bytes.NewReader(one.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
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
	if err != nil || !bytes.Equal(data, i.Binary) || h.Mode != 0o755 || h.PAXRecords["SCHILY.xattr.security.capability"] != bindCapability {
		t.Errorf("layer: %+v, %d bytes, %v", h, len(data), err)
	}
	if _, err := tr.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the program: %v", err)
	}
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
