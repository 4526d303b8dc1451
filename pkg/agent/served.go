package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
)

// served finds the folder that holds what is in an image, all its layers; "" if there is none.
type served func(layers []digest.Digest) (dir string)

// served looks into the root of Skerry's image, which has the component images' layers as files and those of a person's images as
// filesystems (see image/compose). Containers run from those: they are verified as they are read, and take no second copy, nor the
// time to make one.
func (l *layout) served(layers []digest.Digest) string {
	var dirs []string
	if len(layers) == 1 {
		dirs = append(dirs, filepath.Join(l.Share, "images", "layers", layers[0].Encoded()))
	}
	if len(layers) > 0 {
		dirs = append(dirs, l.mountedAt(identity.ChainID(layers).Encoded()))
	}
	for _, dir := range dirs {
		if isDir(dir) {
			return dir
		}
	}
	return ""
}

// addedDir has the archives that a person added to the release.
func (l *layout) addedDir() string { return filepath.Join(l.Share, "images", "added") }

// servedExt ends the name of a filesystem of an image in addedDir; before it stands the chain ID of its layers.
const servedExt = ".squashfs"

func (l *layout) mountedAt(chain string) string { return filepath.Join(l.run, "images", chain) }

// mountAdded mounts the filesystems of a person's images. It says which could not be.
func (l *layout) mountAdded() (failed []string) {
	files, _ := filepath.Glob(filepath.Join(l.addedDir(), "*"+servedExt)) // the pattern is a good one
	for _, file := range files {
		if err := mountOne(file, l.mountedAt(strings.TrimSuffix(filepath.Base(file), servedExt))); err != nil {
			slog.Error("images: one that the release holds cannot be read", "file", file, "err", err)
			failed = append(failed, fmt.Sprintf("%s: %v", filepath.Base(file), err))
		}
	}
	return failed
}

func mountOne(file, dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.SQUASHFS_MAGIC {
		return nil // since an earlier start
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	m := mount.Mount{Type: "squashfs", Source: file, Options: []string{"ro", "loop"}}
	if err := m.Mount(dir); err != nil {
		return errors.Join(err, os.Remove(dir)) // an empty folder is no image
	}
	return nil
}

// unpack makes an image ready to start from.
func unpack(ctx context.Context, c *client.Client, image client.Image, snapshotter string, find served) error {
	diffs, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	dir := ""
	if find != nil {
		dir = find(diffs)
	}
	if dir == "" {
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
