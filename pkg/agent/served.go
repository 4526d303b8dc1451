package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
)

// unpack makes an image ready to start from. On Skerry's image the root holds the component images' layers as files (see
// image/compose); containers run from those: they are verified as they are read, and take no second copy, nor the time to make one.
func unpack(ctx context.Context, c *client.Client, image client.Image, snapshotter, layers string) error {
	diffs, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	if layers == "" || len(diffs) != 1 {
		return image.Unpack(ctx, snapshotter)
	}
	dir := filepath.Join(layers, diffs[0].Encoded())
	if _, err := os.Stat(dir); err != nil {
		return image.Unpack(ctx, snapshotter)
	}
	chain := identity.ChainID(diffs).String()
	if err := serve(ctx, c, snapshotter, chain, dir); err != nil {
		return err
	}
	// As upstream's Unpack does: or the collection of garbage would take it.
	config, err := image.Config(ctx)
	if err != nil {
		return err
	}
	label := "containerd.io/gc.ref.snapshot." + snapshotter
	_, err = c.ContentStore().Update(ctx, content.Info{Digest: config.Digest, Labels: map[string]string{label: chain}}, "labels."+label)
	return err
}

// serve makes a snapshot of the folder, with nothing below it. For overlayfs it is a link to the folder; others keep their own form
// of it, and copy.
func serve(ctx context.Context, c *client.Client, snapshotter, chain, dir string) error {
	s := c.SnapshotService(snapshotter)
	if _, err := s.Stat(ctx, chain); !errdefs.IsNotFound(err) {
		return err
	}
	key := "serve " + chain
	if err := s.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) { // of a start that was cut short
		return err
	}
	mounts, err := s.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	if len(mounts) == 1 && mounts[0].Type == "bind" && snapshotter == "overlayfs" {
		if err := os.Remove(mounts[0].Source); err != nil { // empty
			return err
		}
		err = os.Symlink(dir, mounts[0].Source)
	} else {
		err = mount.WithTempMount(ctx, mounts, func(root string) error { return fs.CopyDir(root, dir) })
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return s.Commit(ctx, chain, key)
}
