// Package oci makes component images: one static program as a container image, in an archive that containerd imports. The
// same program gives the same bytes and so the same digest, whenever it is built.
package oci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is one component image.
type Image struct {
	Ref     string   // such as skerry.local/pause:1
	Arch    string   // one of release.Arches
	Program string   // path in the image; also the entrypoint
	Binary  []byte   // a static program
	Args    []string // after the program
	User    string   // uid:gid
	// BindLowPorts gives the program the one file capability it takes to listen below port 1024 without being root.
	BindLowPorts bool
}

// bindCapability is struct vfs_cap_data, revision 2: cap_net_bind_service permitted and effective.
var bindCapability = string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})

// Write writes the archive.
func (i Image) Write(w io.Writer) error {
	img, err := i.build()
	if err != nil {
		return fmt.Errorf("component image %s: %w", i.Ref, err)
	}
	tag, err := name.NewTag(i.Ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("component image: %w", err)
	}
	if err := tarball.Write(tag, img, w); err != nil {
		return fmt.Errorf("component image %s: %w", i.Ref, err)
	}
	return nil
}

func (i Image) build() (v1.Image, error) {
	data, err := i.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompressionLevel(1)) // the root filesystem compresses again, and a fast start counts for more
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", i.Arch
	if i.Arch == "arm" {
		cfg.Variant = "v7"
	}
	cfg.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	cfg.Config = v1.Config{Entrypoint: append([]string{"/" + i.Program}, i.Args...), User: i.User, WorkingDir: "/"}
	return mutate.ConfigFile(img, cfg)
}

func (i Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: i.Program, Mode: 0o755, Size: int64(len(i.Binary)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if i.BindLowPorts {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": bindCapability}
	}
	if err := tw.WriteHeader(h); err != nil {
		return nil, err
	}
	if _, err := tw.Write(i.Binary); err != nil {
		return nil, err
	}
	return buf.Bytes(), tw.Close()
}
