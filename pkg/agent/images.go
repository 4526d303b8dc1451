package agent

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
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
	var work errgroup.Group
	for _, file := range files {
		work.Go(func() error {
			if err := importImages(ctx, c, l.snapshotter(), file, nil, l.served); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	failed := l.importAdded(ctx, c)
	lists, more := l.importPersons(ctx, c)
	failed = append(failed, more...)
	ready()
	var behind sync.WaitGroup
	defer behind.Wait()
	behind.Go(func() { l.tellOfArchives(ctx, failed) })
	l.pullLists(ctx, c, lists)
	<-ctx.Done()
	return nil
}

// importAdded loads the archives that a person added to the release. One that fails keeps nothing else back: a node without an
// image is better than none. It is in the list that is returned, with why.
func (l *layout) importAdded(ctx context.Context, c *client.Client) (failed []string) {
	failed = l.mountAdded()
	files, _ := filepath.Glob(filepath.Join(l.addedDir(), "*.tar")) // the pattern is a good one
	if err := l.forgetAdded(ctx, c, files); err != nil && ctx.Err() == nil {
		slog.Error("images: those that another release held are not removed", "err", err)
	}
	for _, file := range files {
		failed = append(failed, l.importOne(ctx, c, file, map[string]string{archiveLabel: filepath.Base(file)}, l.served)...)
	}
	return failed
}

// archiveLabel names the archive of the release that an image is from.
const archiveLabel = "skerry.io/archive"

// forgetAdded removes the images that were in an archive of another release: what they are made of went with that.
func (l *layout) forgetAdded(ctx context.Context, c *client.Client, files []string) error {
	all, err := c.ImageService().List(ctx, fmt.Sprintf("labels.%q", archiveLabel))
	if err != nil {
		return err
	}
	for _, image := range all {
		if slices.Contains(files, filepath.Join(l.addedDir(), image.Labels[archiveLabel])) {
			continue
		}
		if err := c.ImageService().Delete(ctx, image.Name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		slog.Info("image removed, because this release does not hold it", "image", image.Name, "archive", image.Labels[archiveLabel])
	}
	return nil
}

func (l *layout) importOne(ctx context.Context, c *client.Client, file string, labels map[string]string, find served) (failed []string) {
	err := importImages(ctx, c, l.snapshotter(), file, labels, find)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	slog.Error("images: an archive was not imported; the others are", "file", file, "err", err)
	return []string{fmt.Sprintf("%s: %v", filepath.Base(file), err)}
}

const tellAgain = 10 * time.Second

// tellOfArchives makes events of those that were not imported, once there is somebody to take them.
func (l *layout) tellOfArchives(ctx context.Context, failed []string) {
	for _, why := range failed {
		for l.recordEvent(ctx, nodeNews{"ImageArchiveFailed", "an archive of images was not imported; the node goes on without: " + why[:min(len(why), 800)]}) != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(tellAgain):
			}
		}
	}
}

// importImages loads one archive, unless containerd has its images already. What it has is asked, not remembered: a file that
// says so could outlive an image. The archive may be compressed by gzip or zstd. Once a layer is unpacked its packed form is not
// kept: that would be the same bytes twice on the data partition. What find finds needs no unpacking.
func importImages(ctx context.Context, c *client.Client, snapshotter, file string, labels map[string]string, find served) error {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[pinnedLabel] = pinnedValue
	wanted, err := archiveFile(file, archiveImages)
	if err != nil {
		return err
	}
	if present, err := haveImages(ctx, c, snapshotter, wanted); err != nil || present {
		return err
	}
	start := time.Now()
	ctx, done, err := c.WithLease(ctx) // nothing goes before it is unpacked
	if err != nil {
		return err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	got, err := archiveFile(file, func(r io.Reader) ([]images.Image, error) {
		return c.Import(ctx, r, client.WithImageLabels(labels), client.WithDiscardUnpackedLayers())
	})
	if err != nil {
		return err
	}
	if len(got) == 0 {
		return errors.New("no image in it has a name; build it with one")
	}
	for _, image := range got {
		if err := unpack(ctx, c, client.NewImage(c, image), snapshotter, find); err != nil {
			return fmt.Errorf("%s: unpacking: %w", image.Name, err)
		}
		slog.Info("image imported", "image", image.Name, "took", time.Since(start).Round(time.Millisecond).String())
	}
	return nil
}

// archiveFile has an archive read, unpacked if it is compressed.
func archiveFile[T any](file string, read func(io.Reader) (T, error)) (out T, err error) {
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return out, err
	}
	defer func() { _ = f.Close() }()
	plain, err := compression.DecompressStream(f)
	if err != nil {
		return out, err
	}
	defer func() { _ = plain.Close() }()
	return read(plain)
}

// haveImages says whether containerd has all the images, the same ones, pinned and unpacked.
func haveImages(ctx context.Context, c *client.Client, snapshotter string, wanted []archived) (bool, error) {
	for _, w := range wanted {
		for _, name := range w.RepoTags {
			image, err := c.GetImage(ctx, name)
			if errdefs.IsNotFound(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if image.Labels()[pinnedLabel] != pinnedValue || !isWhole(ctx, image, snapshotter, w.configDigest()) {
				return false, nil
			}
		}
	}
	return len(wanted) > 0, nil
}

// isWhole says whether the image is the one with that configuration and ready to start from. Whatever is wrong with its
// content, the answer is no, and importing it again mends it.
func isWhole(ctx context.Context, image client.Image, snapshotter, configDigest string) bool {
	config, err := image.Config(ctx)
	if err != nil || config.Digest.Encoded() != configDigest {
		return false
	}
	unpacked, err := image.IsUnpacked(ctx, snapshotter)
	return err == nil && unpacked
}

// archived is an image as an archive's manifest.json lists it. The configuration holds the layers' digests, so its own names
// the whole image.
type archived struct {
	Config   string
	RepoTags []string
}

// configDigest reads "sha256:<hex>", "<hex>.json" and "blobs/sha256/<hex>", which different tools write.
func (a archived) configDigest() string {
	return strings.TrimSuffix(strings.TrimPrefix(path.Base(a.Config), "sha256:"), ".json")
}

// archiveImages lists an archive's images; none when it has no manifest.json. Layers are skipped, not read.
func archiveImages(f io.Reader) ([]archived, error) {
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is not a tar archive: %w", err)
		}
		if path.Clean(header.Name) != "manifest.json" {
			continue
		}
		var list []archived
		if err := json.NewDecoder(r).Decode(&list); err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
		return list, nil
	}
}
