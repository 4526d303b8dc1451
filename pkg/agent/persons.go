package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// imagesDir is where a person puts archives of images for a node without a registry (.tar, or compressed as .tar.gz, .tgz or
// .tar.zst), and lists of images to pull (.txt, one a line). It is K3s's folder.
func (l *layout) imagesDir() string { return filepath.Join(l.data, "images") }

// importPersons loads a person's archives and gives their lists. A broken file is told about and keeps nothing else back.
func (l *layout) importPersons(ctx context.Context, c *client.Client) (lists, failed []string) {
	entries, err := os.ReadDir(l.imagesDir())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			slog.Error("images: the folder of archives cannot be read", "err", err)
		}
		return nil, nil
	}
	for _, e := range entries { // one after the other: big archives and small memories
		file := filepath.Join(l.imagesDir(), e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case strings.HasSuffix(e.Name(), ".txt"):
			lists = append(lists, file)
		case isArchive(e.Name()):
			failed = append(failed, l.importOne(ctx, c, file, nil, nil)...)
		}
	}
	return lists, failed
}

func isArchive(name string) bool {
	return slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"}, func(end string) bool { return strings.HasSuffix(name, end) })
}

const (
	firstPull = 5 * time.Second
	lastPull  = 10 * time.Minute
)

// pullLists pulls what the lists name until all is there: the network may come late.
func (l *layout) pullLists(ctx context.Context, c *client.Client, lists []string) {
	var wanted []string
	for _, file := range lists {
		names, err := readList(file)
		if err != nil {
			slog.Error("images: a list is not read as a whole", "err", err)
		}
		wanted = append(wanted, names...)
	}
	for pause := firstPull; len(wanted) > 0; pause = min(2*pause, lastPull) {
		wanted = slices.DeleteFunc(wanted, func(name string) bool {
			err := l.pull(ctx, c, name)
			if err != nil && ctx.Err() == nil {
				slog.Warn("images: not pulled; trying again", "image", name, "in", pause.String(), "err", err)
			}
			return err == nil
		})
		if len(wanted) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// readList gives a file's lines as whole references; empty lines and those that begin with # are left out.
func readList(file string) ([]string, error) {
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var names []string
	var faults []error
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		named, err := reference.ParseDockerRef(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: %q is not an image: %w", file, n, text, err))
			continue
		}
		names = append(names, named.String())
	}
	return names, errors.Join(append(faults, lines.Err())...)
}

// pull gets one image, through registries.yaml like any other, and pins it.
func (l *layout) pull(ctx context.Context, c *client.Client, name string) error {
	if image, err := c.GetImage(ctx, name); err == nil {
		if image.Labels()[pinnedLabel] == pinnedValue {
			return nil
		}
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(l.certsDir())})})
	start := time.Now()
	_, err := c.Pull(ctx, name, client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter(l.snapshotter()),
		client.WithPullLabel(pinnedLabel, pinnedValue))
	if err != nil {
		return err
	}
	slog.Info("image pulled", "image", name, "took", time.Since(start).Round(time.Millisecond).String())
	return nil
}
