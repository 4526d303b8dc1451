// Package oci makes component images: one static program as a container image, in an archive that containerd imports. The
// same program gives the same bytes and so the same digest, whenever it is built.
//
// The archive is an OCI image layout, with zstd where Docker's own form allows no more than gzip (a third smaller), and it has
// Docker's manifest.json too, which names images and configs at a glance.
package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Image is one component image.
type Image struct {
	Ref     string   // such as skerry.local/pause:1
	Arch    string   // one of release.Arches
	Program string   // path in the image; also the entrypoint, unless there is another
	Binary  []byte   // a static program
	Args    []string // after the program
	Enter   []string // an entrypoint that is not in the image but comes by a mount
	User    string   // uid:gid
}

// Format rises when the same Image gives other bytes than before: archives made by older code are then made again.
const Format = 4

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+zstd"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type config struct {
	platform
	Created string `json:"created"`
	Config  struct {
		User       string   `json:"User,omitempty"`
		Entrypoint []string `json:"Entrypoint"`
		WorkingDir string   `json:"WorkingDir"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// dockerManifest is an entry of Docker's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

var refForm = regexp.MustCompile(`^[a-z0-9.-]+\.[a-z]+(/[a-z0-9._-]+)+:([A-Za-z0-9_][A-Za-z0-9._-]{0,127})$`)

// Write writes the archive.
func (i Image) Write(w io.Writer) error {
	m := refForm.FindStringSubmatch(i.Ref)
	if m == nil {
		return fmt.Errorf("component image %q: is not a name of the form host.name/path:tag", i.Ref)
	}
	a := archiver{tw: tar.NewWriter(w)}
	if err := i.write(&a, m[2]); err != nil {
		return fmt.Errorf("component image %s: %w", i.Ref, err)
	}
	return nil
}

func (i Image) write(a *archiver, tag string) error {
	plain, err := i.layer()
	if err != nil {
		return err
	}
	p := platform{Architecture: i.Arch, OS: "linux"}
	if i.Arch == "arm" {
		p.Variant = "v7"
	}
	var cfg config
	cfg.platform, cfg.Created = p, time.Unix(0, 0).UTC().Format(time.RFC3339)
	cfg.Config.User, cfg.Config.WorkingDir = i.User, "/"
	cfg.Config.Entrypoint = append([]string{"/" + i.Program}, i.Args...)
	if len(i.Enter) > 0 {
		cfg.Config.Entrypoint = i.Enter
	}
	cfg.RootFS.Type, cfg.RootFS.DiffIDs = "layers", []string{digest(plain)}
	packed, err := compress(plain)
	if err != nil {
		return err
	}
	layer := a.blob(typeLayer, packed)
	conf := a.blobJSON(typeConfig, cfg)
	man := a.blobJSON(typeManifest, manifest{2, typeManifest, conf, []descriptor{layer}})
	man.Platform = &p
	man.Annotations = map[string]string{"io.containerd.image.name": i.Ref, "org.opencontainers.image.ref.name": tag}
	a.json("index.json", index{2, typeIndex, []descriptor{man}})
	a.json("manifest.json", []dockerManifest{{blobPath(conf), []string{i.Ref}, []string{blobPath(layer)}}})
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return a.close()
}

func (i Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: i.Program, Mode: 0o755, Size: int64(len(i.Binary)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}); err != nil {
		return nil, err
	}
	if _, err := tw.Write(i.Binary); err != nil {
		return nil, err
	}
	return buf.Bytes(), tw.Close()
}

// compress gives the same frame for the same bytes: one encoder thread. The best level takes three times as long for 6 % less.
func compress(data []byte) ([]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.EncodeAll(data, nil), z.Close()
}

// archiver writes a tar; it keeps the first error for close.
type archiver struct {
	tw  *tar.Writer
	err error
}

func (a *archiver) file(name string, data []byte) {
	if a.err != nil {
		return
	}
	if a.err = a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}); a.err == nil {
		_, a.err = a.tw.Write(data)
	}
}

func (a *archiver) marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return data
}

func (a *archiver) json(name string, v any) { a.file(name, a.marshal(v)) }

func (a *archiver) blob(kind string, data []byte) descriptor {
	d := descriptor{MediaType: kind, Digest: digest(data), Size: len(data)}
	a.file(blobPath(d), data)
	return d
}

func (a *archiver) blobJSON(kind string, v any) descriptor { return a.blob(kind, a.marshal(v)) }

func (a *archiver) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tw.Close()
}

func blobPath(d descriptor) string { return "blobs/sha256/" + d.Digest[len("sha256:"):] }

// Digest names content: sha256:<hex>.
func Digest(data []byte) string { return digest(data) }

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
