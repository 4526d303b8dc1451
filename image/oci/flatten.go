package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
)

// Flatten takes a person's archive apart, as Apart does with component images, whatever its layers hold: into rest, an OCI layout without
// layers, and into a tar archive for each image, of all its layers laid over each other. Those are files in dir, by the chain ID of
// the image's layers (sha256 in hex); it needs room there for all that is in the images, twice.
func Flatten(archive io.ReadSeeker, arch, dir string, rest io.Writer) (trees map[string]string, err error) {
	a, err := readImages(archive, arch)
	if err != nil {
		return nil, err
	}
	trees = map[string]string{}
	isLayer := map[string]bool{}
	for _, image := range a.images {
		for _, l := range image.layers {
			isLayer[l] = true
		}
		var cfg config
		if err := a.read(image.config, &cfg); err != nil {
			return nil, err
		}
		if len(cfg.RootFS.DiffIDs) != len(image.layers) {
			return nil, fmt.Errorf("%s: has %d layers; its config says %d", image.names[0], len(image.layers), len(cfg.RootFS.DiffIDs))
		}
		chain := chainID(cfg.RootFS.DiffIDs)
		if chain == "" || trees[chain] != "" {
			continue
		}
		file := filepath.Join(dir, chain+".tar")
		if err := flatten(archive, image, cfg.RootFS.DiffIDs, file); err != nil {
			return nil, fmt.Errorf("%s: %w", image.names[0], err)
		}
		trees[chain] = file
	}
	w := archiver{tw: tar.NewWriter(rest)}
	if err := a.copyRest(archive, &w, isLayer); err != nil {
		return nil, err
	}
	return trees, w.close()
}

// chainID is the digest of a stack of layers, in hex (OCI image specification, config.md, layer ChainID).
func chainID(diffIDs []string) (chain string) {
	for i, d := range diffIDs {
		if chain += " " + d; i == 0 {
			chain = d
			continue
		}
		chain = digest([]byte(chain))
	}
	if chain == "" {
		return ""
	}
	return chain[len("sha256:"):]
}

// flatten writes an image's tree into a file.
func flatten(archive io.ReadSeeker, image parts, diffIDs []string, file string) error {
	spool, err := os.CreateTemp(filepath.Dir(file), "spool-")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(spool.Close(), os.Remove(spool.Name())) }()
	t := newTree(spool)
	for n, layer := range image.layers {
		packed, err := find(archive, layer)
		if err != nil {
			return fmt.Errorf("%s: %w", layer, err)
		}
		if err := layOn(t, packed, diffIDs[n]); err != nil {
			return fmt.Errorf("%s: %w", layer, err)
		}
	}
	out, err := os.OpenFile(filepath.Clean(file), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(out, 1<<20)
	return errors.Join(t.write(buffered), buffered.Flush(), out.Close())
}

// layOn lays a layer on that must be the one with the diff ID.
func layOn(t *tree, packed io.Reader, diffID string) error {
	plain, err := unpacked(packed)
	if err != nil {
		return err
	}
	defer plain.Close() //nolint:errcheck // what it gave is held against a digest
	sum := summing{plain, sha256.New()}
	if err := t.lay(&sum); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, &sum); err != nil { // what stands behind the end belongs to it
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return fmt.Errorf("is %s; its config says %s", got, diffID)
	}
	return nil
}

// summing is a reader that knows the digest of what it gave.
type summing struct {
	r io.Reader
	hash.Hash
}

func (s *summing) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	_, _ = s.Write(p[:n]) // a hash takes all
	return n, err
}

// unpacked undoes gzip and zstd, if it is one of them.
func unpacked(packed io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(packed)
	magic, _ := b.Peek(4) // a layer may be empty
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b)
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// find gives the bytes of a file of an archive.
func find(archive io.ReadSeeker, name string) (io.Reader, error) {
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) != name {
			continue
		}
		if h.Typeflag == tar.TypeSymlink { // docker save of old, for a layer that two images have
			return find(archive, path.Join(path.Dir(name), h.Linkname))
		}
		return r, nil
	}
}

// copyRest copies all but the layers, which is what can be read as JSON. Docker's own form is completed to an OCI layout, for
// containerd makes one of it from the layers.
func (a *contents) copyRest(archive io.ReadSeeker, w *archiver, isLayer map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(a.small)) {
		w.file(name, a.small[name])
	}
	if a.isLayout() {
		return nil
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sums := map[string]descriptor{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a.layout(w, sums)
		}
		if err != nil {
			return err
		}
		if name := path.Clean(h.Name); isLayer[name] && h.Typeflag == tar.TypeReg {
			sum := sha256.New()
			size, err := io.Copy(sum, r)
			if err != nil {
				return err
			}
			sums[name] = descriptor{MediaType: typeLayer, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: int(size)}
		}
	}
}

// layout writes what an OCI layout has beside Docker's files.
func (a *contents) layout(w *archiver, layers map[string]descriptor) error {
	idx := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, image := range a.images {
		m := manifest{SchemaVersion: 2, MediaType: typeManifest, Config: w.blob(typeConfig, a.small[image.config]), Layers: []descriptor{}}
		for _, l := range image.layers {
			d := layers[l]
			if d.Digest == "" { // a symbolic link to another's, which is named by what is in it
				d = descriptor{MediaType: typeLayer, Digest: digest([]byte(l))}
			}
			m.Layers = append(m.Layers, d)
		}
		man := w.blobJSON(typeManifest, m)
		for _, name := range image.names {
			ref, err := reference.ParseDockerRef(name)
			if err != nil {
				return fmt.Errorf("%s: is not the name of an image: %w", name, err)
			}
			d := man
			d.Annotations = map[string]string{"io.containerd.image.name": ref.String()}
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	w.json("index.json", idx)
	w.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return nil
}
