package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Layered is an image of more than one program: what a Dockerfile would say, as data.
type Layered struct {
	Refs       []string // its names; containerd makes one image of each
	Arch       string
	Layers     [][]byte // tar archives, not compressed, the lowest first
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
}

// WriteLayered writes all images into one archive. A layer that several have stands in it once.
func WriteLayered(w io.Writer, images []Layered) error {
	a := archiver{tw: tar.NewWriter(w)}
	packed := map[string]descriptor{} // of a plain layer's digest
	written := map[string]bool{}
	idx := index{SchemaVersion: 2, MediaType: typeIndex}
	var list []dockerManifest
	once := func(kind string, data []byte) descriptor {
		d := descriptor{MediaType: kind, Digest: digest(data), Size: len(data)}
		if !written[d.Digest] {
			written[d.Digest] = true
			a.file(blobPath(d), data)
		}
		return d
	}
	for _, i := range images {
		if len(i.Refs) == 0 {
			return errors.New("image without a name")
		}
		p := platform{Architecture: i.Arch, OS: "linux"}
		if i.Arch == "arm" {
			p.Variant = "v7"
		}
		cfg := layeredConfig{platform: p, Created: time.Unix(0, 0).UTC().Format(time.RFC3339)}
		cfg.Config.User, cfg.Config.WorkingDir = i.User, i.WorkingDir
		cfg.Config.Entrypoint, cfg.Config.Cmd, cfg.Config.Env = i.Entrypoint, i.Cmd, i.Env
		cfg.RootFS.Type = "layers"
		var layers []descriptor
		var paths []string
		for _, plain := range i.Layers {
			sum := digest(plain)
			d, ok := packed[sum]
			if !ok {
				data, err := compress(plain)
				if err != nil {
					return fmt.Errorf("image %s: %w", i.Refs[0], err)
				}
				d = once(typeLayer, data)
				packed[sum] = d
			}
			cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, sum)
			layers, paths = append(layers, d), append(paths, blobPath(d))
		}
		conf := once(typeConfig, a.marshal(cfg))
		man := once(typeManifest, a.marshal(manifest{2, typeManifest, conf, layers}))
		man.Platform = &p
		for _, ref := range i.Refs {
			m := refForm.FindStringSubmatch(ref)
			if m == nil {
				return fmt.Errorf("image %q: is not a name of the form host.name/path:tag", ref)
			}
			named := man
			named.Annotations = map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": m[2]}
			idx.Manifests = append(idx.Manifests, named)
		}
		list = append(list, dockerManifest{blobPath(conf), i.Refs, paths})
	}
	a.json("index.json", idx)
	a.json("manifest.json", list)
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return a.close()
}

type layeredConfig struct {
	platform
	Created string `json:"created"`
	Config  struct {
		User       string   `json:"User,omitempty"`
		Env        []string `json:"Env,omitempty"`
		Entrypoint []string `json:"Entrypoint,omitempty"`
		Cmd        []string `json:"Cmd,omitempty"`
		WorkingDir string   `json:"WorkingDir,omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// File is one entry of a layer.
type File struct {
	Mode int64 // permissions, with set-id and sticky bits as in tar
	Data []byte
	Link string // a symbolic link to there, instead of a file
	Dir  bool
	UID  int
	GID  int
}

// Tar makes a layer of files by their paths.
func Tar(files map[string]File) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.Mode, Size: int64(len(f.Data)), Uid: f.UID, Gid: f.GID, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		case f.Dir:
			h.Typeflag, h.Name, h.Size = tar.TypeDir, name+"/", 0
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if h.Size > 0 {
			if _, err := tw.Write(f.Data); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return buf.Bytes(), tw.Close()
}
