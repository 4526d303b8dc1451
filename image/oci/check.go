package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// CheckArchive says whether a node of an architecture can import the archive, which docker save or an OCI layout makes: every image in
// it has a name, is for that architecture, and is whole. A node would find out only when it starts.
func CheckArchive(archive io.Reader, arch string) error {
	_, err := readImages(archive, arch)
	return err
}

// readImages reads an archive's images for an architecture, which all must be whole.
func readImages(archive io.Reader, arch string) (*contents, error) {
	a, err := readArchive(archive)
	switch {
	case err != nil:
		return nil, err
	case a.isLayout():
		return a, a.checkLayout(arch)
	case a.there["manifest.json"]:
		return a, a.checkDocker(arch)
	}
	return nil, errors.New("holds no container images: neither index.json nor manifest.json is in it")
}

// contents are an archive's files; those that may be JSON with their bytes.
type contents struct {
	there  map[string]bool
	small  map[string][]byte
	images []parts // once they are checked
}

// parts are where an image is in its archive. Its layers begin with the lowest.
type parts struct {
	names  []string
	config string
	layers []string
}

// isLayout decides between the two forms as containerd does.
func (a *contents) isLayout() bool { return a.there["oci-layout"] && a.there["index.json"] }

func readArchive(archive io.Reader) (*contents, error) {
	const most = 4 << 20 // containerd refuses larger manifests
	a := &contents{there: map[string]bool{}, small: map[string][]byte{}}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is not a tar archive, or cut: %w", err)
		}
		name := path.Clean(h.Name)
		a.there[name] = true
		if h.Typeflag != tar.TypeReg || h.Size > most {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		if len(data) > 0 && (data[0] == '{' || data[0] == '[') {
			a.small[name] = data
		}
	}
}

func (a *contents) read(name string, v any) error {
	data := a.small[name]
	if data == nil {
		return fmt.Errorf("%s: is not in it, or not JSON; make it again", name)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

var errNameless = errors.New("an image in it has no name; save it by its name and tag, not by its id")

func (a *contents) checkLayout(arch string) error {
	var idx index
	if err := a.read("index.json", &idx); err != nil {
		return err
	}
	if len(idx.Manifests) == 0 {
		return errors.New("holds no container images: its index.json is empty")
	}
	for _, d := range idx.Manifests {
		name := d.Annotations["io.containerd.image.name"]
		if name == "" {
			name = d.Annotations["org.opencontainers.image.ref.name"]
		}
		if name == "" {
			return errNameless
		}
		if err := a.checkImage(name, d, arch); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// checkImage looks at a manifest, or at the one for the architecture in a list of them.
func (a *contents) checkImage(image string, d descriptor, arch string) error {
	name, err := blobName(d.Digest)
	if err != nil {
		return err
	}
	var m struct {
		Config    descriptor
		Layers    []descriptor
		Manifests []descriptor
	}
	if err := a.read(name, &m); err != nil {
		return err
	}
	if len(m.Manifests) > 0 {
		var have []string
		for _, d := range m.Manifests {
			if p := d.Platform; p == nil || p.fits(arch) == nil {
				return a.checkImage(image, d, arch)
			} else if p.OS != "unknown" { // what is not an image
				have = append(have, p.OS+"/"+p.Architecture)
			}
		}
		return fmt.Errorf("is for %s; the release is for linux/%s", strings.Join(have, ", "), arch)
	}
	config, err := blobName(m.Config.Digest)
	if err != nil {
		return err
	}
	var layers []string
	for _, l := range m.Layers {
		layer, err := blobName(l.Digest)
		if err != nil {
			return err
		}
		layers = append(layers, layer)
	}
	return a.checkParts(parts{[]string{image}, config, layers}, arch)
}

func (a *contents) checkDocker(arch string) error {
	var list []dockerManifest
	if err := a.read("manifest.json", &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("holds no container images: its manifest.json is empty")
	}
	for _, m := range list {
		if len(m.RepoTags) == 0 {
			return errNameless
		}
		if err := a.checkParts(parts{m.RepoTags, path.Clean(m.Config), m.Layers}, arch); err != nil {
			return fmt.Errorf("%s: %w", m.RepoTags[0], err)
		}
	}
	return nil
}

func (a *contents) checkParts(i parts, arch string) error {
	var p platform
	if err := a.read(i.config, &p); err != nil {
		return err
	}
	if err := p.fits(arch); err != nil {
		return err
	}
	for n, l := range i.layers {
		if i.layers[n] = path.Clean(l); !a.there[i.layers[n]] {
			return fmt.Errorf("%s: a layer that is not in it; save the whole image", l)
		}
	}
	a.images = append(a.images, i)
	return nil
}

func (p platform) fits(arch string) error {
	if p.OS != "linux" || p.Architecture != arch || arch == "arm" && p.Variant > "v7" {
		return fmt.Errorf("is for %s/%s%s; the release is for linux/%s", p.OS, p.Architecture, p.Variant, arch)
	}
	return nil
}

func blobName(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(sum) != 64 {
		return "", fmt.Errorf("%.80q: is not a digest", digest)
	}
	return "blobs/sha256/" + sum, nil
}
