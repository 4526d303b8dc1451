package images

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Registry serves an archive that Archive wrote as a registry to read from: some tests insist on pulling. An image is found
// whatever registry its name begins with.
type Registry struct {
	file      *os.File
	blobs     map[string]*io.SectionReader // by digest
	manifests map[string]described         // by name:tag without the registry, and by digest
}

type described struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// OpenRegistry reads the archive's table of contents.
func OpenRegistry(name string) (*Registry, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	r := &Registry{file: file, blobs: map[string]*io.SectionReader{}, manifests: map[string]described{}}
	if err := r.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), file.Close())
	}
	return r, nil
}

func (r *Registry) scan() error {
	for t := tar.NewReader(r.file); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Name == "index.json" {
			if err := r.index(t); err != nil {
				return fmt.Errorf("index.json: %w", err)
			}
			continue
		}
		if sum, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			at, err := r.file.Seek(0, io.SeekCurrent) // a tar.Reader reads no further than the header
			if err != nil {
				return err
			}
			r.blobs["sha256:"+sum] = io.NewSectionReader(r.file, at, h.Size)
		}
	}
}

func (r *Registry) index(in io.Reader) error {
	var index struct{ Manifests []described }
	if err := json.NewDecoder(in).Decode(&index); err != nil {
		return err
	}
	for _, m := range index.Manifests {
		_, name, ok := strings.Cut(m.Annotations["io.containerd.image.name"], "/")
		if !ok {
			return fmt.Errorf("%s has no name", m.Digest)
		}
		r.manifests[name], r.manifests[m.Digest] = m, m
	}
	return nil
}

// Close ends what is being served.
func (r *Registry) Close() error { return r.file.Close() }

// ServeHTTP answers as the distribution specification says: /v2/, /v2/NAME/manifests/TAG or DIGEST, /v2/NAME/blobs/DIGEST.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if ok && path == "" {
		return
	}
	if name, which, ok := strings.Cut(path, "/manifests/"); ok {
		m, ok := r.manifests[which]
		if !ok {
			m, ok = r.manifests[name+":"+which]
		}
		if ok {
			r.content(w, req, m.Digest, m.MediaType)
			return
		}
	}
	if _, sum, ok := strings.Cut(path, "/blobs/"); ok && r.blobs[sum] != nil {
		r.content(w, req, sum, "application/octet-stream")
		return
	}
	http.NotFound(w, req)
}

func (r *Registry) content(w http.ResponseWriter, req *http.Request, sum, kind string) {
	blob := r.blobs[sum]
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", sum)
	http.ServeContent(w, req, "", time.Time{}, io.NewSectionReader(blob, 0, blob.Size()))
}
