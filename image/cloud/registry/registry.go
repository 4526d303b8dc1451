// Package registry keeps signed releases in OCI registries, the ones that container images are kept in.
//
// A release is one artifact: its manifest is the config, and every file is a layer named by the annotation that other tools
// know too, so that `oras pull` gives the release's folder. The registry is trusted with nothing: what comes back is held
// against the release's signature, and each file against the digest in its manifest.
package registry

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	remoteref "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/release"
)

// Scheme is what an address of a release in a registry begins with.
const Scheme = "oci://"

// Media types of ours.
const (
	ArtifactType = "application/vnd.skerry.release.v1"
	manifestType = "application/vnd.skerry.release.manifest.v1+json"
	fileType     = "application/vnd.skerry.release.file.v1"
)

// maxIndex bounds what a registry says of an artifact.
const maxIndex = 4 << 20

// open gives the repository that a reference such as registry.example.org/skerry:1.2.3 names, and its tag or digest. Who may
// use it is said where docker and podman look.
func open(ref string) (*remote.Repository, string, error) {
	repo, err := remote.NewRepository(strings.TrimPrefix(ref, Scheme))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w; write oci://HOST/NAME:TAG", ref, err)
	}
	if repo.Reference.Reference == "" {
		return nil, "", fmt.Errorf("%s: has no tag; write oci://HOST/NAME:TAG", ref)
	}
	client := &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache()}
	if store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{}); err == nil {
		client.Credential = credentials.Credential(store)
	}
	repo.Client = client
	host, _, err := net.SplitHostPort(repo.Reference.Registry)
	if err != nil {
		host = repo.Reference.Registry
	}
	ip := net.ParseIP(host)
	repo.PlainHTTP = host == "localhost" || ip != nil && ip.IsLoopback()
	return repo, repo.Reference.Reference, nil
}

func describe(f release.File) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: fileType, Digest: digest.NewDigestFromEncoded(digest.SHA256, f.SHA256), Size: f.Size,
		Annotations: map[string]string{ocispec.AnnotationTitle: f.Path},
	}
}

// MayPush asks whether the registry takes something under this name, by an upload that is begun and given up.
func MayPush(ctx context.Context, ref string) error {
	repo, _, err := open(ref)
	if err != nil {
		return err
	}
	where := repo.Reference
	scheme := "https"
	if repo.PlainHTTP {
		scheme = "http"
	}
	ctx = auth.AppendRepositoryScope(ctx, where, auth.ActionPull, auth.ActionPush)
	ask := func(method, to string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, method, to, nil)
		if err != nil {
			return nil, err
		}
		resp, err := repo.Client.Do(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxIndex)) // what it says, the status says too
		return resp, resp.Body.Close()
	}
	resp, err := ask(http.MethodPost, scheme+"://"+where.Host()+"/v2/"+where.Repository+"/blobs/uploads/")
	var refused *errcode.ErrorResponse // by the service that gives tokens
	switch {
	case errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden):
		return missingRight(where, refused.StatusCode)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return missingRight(where, http.StatusUnauthorized)
	case err != nil:
		return fmt.Errorf("%s: %w", ref, err)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return missingRight(where, resp.StatusCode)
	case resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusCreated:
		return fmt.Errorf("%s: asked to take an upload, the registry answers %s", ref, resp.Status)
	}
	if to, err := resp.Location(); err == nil && to.Host == where.Host() {
		_, _ = ask(http.MethodDelete, to.String()) // registries drop what is left, sooner or later
	}
	return nil
}

// missingRight is said of a registry that takes nothing from these credentials.
func missingRight(at remoteref.Reference, status int) error {
	return fmt.Errorf("%s/%s: the credentials may not push there (HTTP status %d); they need the scope repository:%s:pull,push; log in by: docker login %s",
		at.Registry, at.Repository, status, at.Repository, at.Registry)
}

// Push brings a release to a registry and tags it. Files that are there already do not travel. It gives the artifact's digest.
func Push(ctx context.Context, ref string, rel *release.Release, files fs.FS, say func(format string, a ...any)) (string, error) {
	repo, tag, err := open(ref)
	if err != nil {
		return "", err
	}
	m := rel.Manifest()
	manifest, sig := rel.Bytes()
	config := content.NewDescriptorFromBytes(manifestType, manifest)
	sigFile, err := release.Describe(release.SignatureName, bytes.NewReader(sig))
	if err != nil {
		return "", err
	}
	manifestFile, err := release.Describe(release.ManifestName, bytes.NewReader(manifest))
	if err != nil {
		return "", err
	}
	layers := []ocispec.Descriptor{describe(manifestFile), describe(sigFile)}
	push := func(d ocispec.Descriptor, r io.Reader, name string) error {
		there, err := repo.Blobs().Exists(ctx, d)
		if err == nil && !there {
			say("%s: %s", ref, name)
			err = repo.Blobs().Push(ctx, d, r)
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", ref, name, err)
		}
		return nil
	}
	if err := push(config, bytes.NewReader(manifest), release.ManifestName); err != nil {
		return "", err
	}
	if err := push(layers[1], bytes.NewReader(sig), release.SignatureName); err != nil {
		return "", err
	}
	for _, f := range m.AllFiles() {
		d := describe(f)
		layers = append(layers, d)
		r, err := files.Open(f.Path)
		if err != nil {
			return "", fmt.Errorf("release: %w", err)
		}
		err = push(d, r, f.Path)
		_ = r.Close()
		if err != nil {
			return "", err
		}
	}
	index, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType, Config: config, Layers: layers,
		Annotations: map[string]string{
			ocispec.AnnotationCreated: m.BuildTime.Format(time.RFC3339), ocispec.AnnotationVersion: m.Version, ocispec.AnnotationRevision: m.Commit,
		},
	})
	if err != nil {
		return "", err
	}
	d := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, index)
	if err := repo.PushReference(ctx, d, bytes.NewReader(index), tag); err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	return d.Digest.String(), nil
}

// Pull gives the folder of a release from a registry, below cache: its signed manifest, the files that every board needs and
// those of the boards named, or all of them. What is there already and right does not travel.
func Pull(ctx context.Context, ref, cache string, trusted []ed25519.PublicKey, boards []string) (string, error) {
	repo, tag, err := open(ref)
	if err != nil {
		return "", err
	}
	layers, err := index(ctx, repo, tag)
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	manifest, err := small(ctx, repo, layers, release.ManifestName)
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	sig, err := small(ctx, repo, layers, release.SignatureName)
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	rel, err := release.Verify(manifest, sig, trusted)
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	dir := filepath.Join(cache, digest.FromBytes(manifest).Encoded())
	for _, f := range wanted(rel.Manifest(), boards) {
		if err := pullFile(ctx, repo, dir, f); err != nil {
			return "", fmt.Errorf("%s: %w", ref, err)
		}
	}
	for name, data := range map[string][]byte{release.ManifestName: manifest, release.SignatureName: sig} {
		if err := atomicfile.Write(filepath.Join(dir, name), data, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func wanted(m *release.Manifest, boards []string) []release.File {
	if len(boards) == 0 {
		return m.AllFiles()
	}
	out := append([]release.File{m.Root.File}, m.Files...)
	for _, id := range boards {
		if b, ok := m.Boards[id]; ok { // whoever asked for another says what there is
			out = append(out, b.Boot)
			for _, f := range b.Firmware {
				out = append(out, f.File)
			}
		}
	}
	return out
}

// index reads what the artifact consists of.
func index(ctx context.Context, repo *remote.Repository, tag string) (map[string]ocispec.Descriptor, error) {
	d, r, err := repo.FetchReference(ctx, tag)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if d.Size > maxIndex {
		return nil, fmt.Errorf("its manifest is %d bytes; no release has that", d.Size)
	}
	data, err := content.ReadAll(r, d)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if m.ArtifactType != ArtifactType {
		return nil, fmt.Errorf("is no release but %q", m.ArtifactType)
	}
	out := map[string]ocispec.Descriptor{}
	for _, l := range m.Layers {
		out[l.Annotations[ocispec.AnnotationTitle]] = l
	}
	return out, nil
}

func small(ctx context.Context, repo *remote.Repository, layers map[string]ocispec.Descriptor, name string) ([]byte, error) {
	d, ok := layers[name]
	if !ok || d.Size > release.MaxManifestBytes {
		return nil, fmt.Errorf("has no %s, or one that is too large", name)
	}
	return content.FetchAll(ctx, repo.Blobs(), d)
}

// pullFile fetches one file, unless it is there.
func pullFile(ctx context.Context, repo *remote.Repository, dir string, f release.File) error {
	name := filepath.Join(dir, filepath.FromSlash(f.Path))
	if have, err := os.Open(name); err == nil {
		err = f.Check(have)
		_ = have.Close()
		if err == nil {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	r, err := repo.Blobs().Fetch(ctx, describe(f))
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	defer func() { _ = r.Close() }()
	out, err := atomicfile.Create(name, 0o644)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := f.Check(io.TeeReader(r, out)); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return out.Commit()
}
