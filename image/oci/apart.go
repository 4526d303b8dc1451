package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Apart takes an archive of component images apart: into an archive without layers, and the files of each layer, by its diff ID
// (sha256:<hex>) and their paths. A node whose root holds those files as they are neither reads nor writes them to have the image.
func Apart(archive io.Reader) (rest []byte, layers map[string]map[string]File, err error) {
	var names []string
	blobs := map[string][]byte{}
	tr := tar.NewReader(archive)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("component image: %w", err)
		}
		if blobs[h.Name], err = io.ReadAll(tr); err != nil {
			return nil, nil, fmt.Errorf("component image: %s: %w", h.Name, err)
		}
		names = append(names, h.Name)
	}
	var list []dockerManifest
	if err := json.Unmarshal(blobs["manifest.json"], &list); err != nil {
		return nil, nil, fmt.Errorf("component image: manifest.json: %w", err)
	}
	layers = map[string]map[string]File{}
	isLayer := map[string]bool{}
	for _, m := range list {
		var cfg config
		if err := json.Unmarshal(blobs[m.Config], &cfg); err != nil {
			return nil, nil, fmt.Errorf("component image: %s: %w", m.Config, err)
		}
		if len(m.Layers) != 1 || len(cfg.RootFS.DiffIDs) != 1 {
			return nil, nil, fmt.Errorf("component image: has %d layers; one can be served", len(m.Layers))
		}
		isLayer[m.Layers[0]] = true
		if layers[cfg.RootFS.DiffIDs[0]], err = files(blobs[m.Layers[0]], cfg.RootFS.DiffIDs[0]); err != nil {
			return nil, nil, fmt.Errorf("component image: %s: %w", m.Layers[0], err)
		}
	}
	var out bytes.Buffer
	a := archiver{tw: tar.NewWriter(&out)}
	for _, name := range names {
		if !isLayer[name] {
			a.file(name, blobs[name])
		}
	}
	return out.Bytes(), layers, a.close()
}

// files reads a packed layer, which must be the one with the diff ID and hold nothing but files of root's.
func files(packed []byte, diffID string) (map[string]File, error) {
	z, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	if got := digest(plain); got != diffID {
		return nil, fmt.Errorf("is %s; its config says %s", got, diffID)
	}
	out := map[string]File{}
	tr := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || h.Uid != 0 || h.Gid != 0 || h.Mode&^0o777 != 0 || len(h.PAXRecords) > 0 || strings.HasPrefix(path.Base(name), ".wh.") || !fs.ValidPath(name) {
			return nil, fmt.Errorf("%s: is more than a plain file of root's", h.Name)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		out[name] = File{Mode: h.Mode, Data: data}
	}
}
