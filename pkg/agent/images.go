package agent

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pinned keeps kubelet's image collection away from what the release brought: there may be no network to pull it again.
const (
	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
)

// runImages gives containerd the images of the release, before the first pod asks for one, and then only waits.
func (l *layout) runImages(ctx context.Context, ready func()) error {
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	c, err := client.New(l.socket(), client.WithTimeout(10*time.Second))
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	defer func() { _ = c.Close() }()
	files, err := filepath.Glob(filepath.Join(l.Share, "images", "*.tar"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := importImages(ctx, c, l.snapshotter(), file); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	ready()
	<-ctx.Done()
	return nil
}

// importImages loads one archive, unless containerd has its images already. What it has is asked, not remembered: a file that
// says so could outlive an image.
func importImages(ctx context.Context, c *client.Client, snapshotter, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	wanted, err := archiveIndex(f)
	if err != nil {
		return err
	}
	if present, err := havePinned(ctx, c, snapshotter, wanted); err != nil || present {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	start := time.Now()
	got, err := c.Import(ctx, f, client.WithImageLabels(map[string]string{pinnedLabel: pinnedValue}))
	if err != nil {
		return err
	}
	if len(got) == 0 {
		return errors.New("no image in it has a name; build it with one")
	}
	for _, image := range got {
		if err := client.NewImage(c, image).Unpack(ctx, snapshotter); err != nil {
			return fmt.Errorf("%s: unpacking: %w", image.Name, err)
		}
		slog.Info("image imported", "image", image.Name, "took", time.Since(start).Round(time.Millisecond).String())
	}
	return nil
}

// havePinned says whether every image of the index is in containerd, is the same, is pinned and is unpacked.
func havePinned(ctx context.Context, c *client.Client, snapshotter string, wanted *ocispec.Index) (bool, error) {
	if wanted == nil || len(wanted.Manifests) == 0 {
		return false, nil
	}
	for _, m := range wanted.Manifests {
		name := m.Annotations[images.AnnotationImageName]
		if name == "" {
			name = m.Annotations[ocispec.AnnotationRefName]
		}
		image, err := c.GetImage(ctx, name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if image.Target().Digest != m.Digest || image.Labels()[pinnedLabel] != pinnedValue {
			return false, nil
		}
		if unpacked, err := image.IsUnpacked(ctx, snapshotter); err != nil || !unpacked {
			return false, nil //nolint:nilerr // content that is not whole is imported again
		}
	}
	return true, nil
}

// archiveIndex reads an archive's index.json, which names every image by digest; nil when it is of Docker's kind without one.
// The layers between are skipped, not read.
func archiveIndex(f io.ReadSeeker) (*ocispec.Index, error) {
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is not a tar archive: %w", err)
		}
		if filepath.Clean(header.Name) != ocispec.ImageIndexFile {
			continue
		}
		index := &ocispec.Index{}
		if err := json.NewDecoder(r).Decode(index); err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
		return index, nil
	}
}
