package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestArchiveReadsBack(t *testing.T) {
	i := Image{Ref: "skerry.local/coredns:1", Arch: "arm", Program: "coredns", Binary: bytes.Repeat([]byte("elf"), 50_000), Args: []string{"-conf", "/x"}, User: "65532:65532", BindLowPorts: true}
	var one, two bytes.Buffer
	if err := i.Write(&one); err != nil {
		t.Fatal(err)
	}
	if err := i.Write(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("the same image gave two archives (%v)", err)
	}
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(file, one.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(i.Ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Architecture != "arm" || cfg.Variant != "v7" || cfg.Config.User != i.User || len(cfg.Config.Entrypoint) != 3 || cfg.Config.Entrypoint[0] != "/coredns" {
		t.Errorf("config is %+v", cfg)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(r)
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

func TestBadNameIsRefused(t *testing.T) {
	for _, ref := range []string{"", "pause", "skerry.local/pause", "skerry.local/Pause:1"} {
		if err := (Image{Ref: ref, Arch: "amd64", Program: "p"}).Write(io.Discard); err == nil {
			t.Errorf("%q was accepted", ref)
		}
	}
}
