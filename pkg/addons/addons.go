// Package addons applies Kubernetes manifests and keeps them applied: the components of the release, and what a person puts
// into the server's manifests folder. It uses server-side apply under its own field manager, so that what people and
// controllers set on other fields stays theirs.
package addons

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/skerry-os/skerry/pkg/supervise"
)

// Config says what to apply and as whom.
type Config struct {
	Kubeconfig string   // file: the administrator's
	Components string   // folder with a folder of manifests per component
	Disable    []string // components to leave out
	Manifests  string   // a person's folder; made if missing, watched

	ClusterDNS    []netip.Addr
	ClusterDomain string
}

// Service applies once the API answers, and stays to apply what changes.
func Service(cfg Config) supervise.Service {
	return supervise.Service{Name: "addons", Needs: []string{"kube-apiserver"}, Run: func(ctx context.Context, ready func()) error {
		return run(ctx, cfg, ready)
	}}
}

// Retries start soon, because right after the start an API or a namespace may be missing for a moment.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = time.Minute
	settle     = 200 * time.Millisecond // a file is often written in several steps
)

// run is ready when the components have been applied. A person's broken file must not keep a node from Ready: it is told about
// and tried again.
func run(ctx context.Context, cfg Config, ready func()) error {
	client, err := newApplier(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Manifests, 0o700); err != nil {
		return err
	}
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("%s: watching: %w", cfg.Manifests, err)
	}
	defer func() { _ = watch.Close() }()
	if err := watch.Add(cfg.Manifests); err != nil {
		return fmt.Errorf("%s: watching: %w", cfg.Manifests, err)
	}

	k := &keeper{cfg: cfg, apply: client.apply, applied: map[string]string{}}
	next := time.NewTimer(0)
	defer next.Stop()
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watch.Events:
			if !ok {
				return nil
			}
			retry = firstRetry
			next.Reset(settle)
		case err := <-watch.Errors:
			slog.Warn("manifests: some changes may have been missed; reading all files again", "folder", cfg.Manifests, "err", err)
			next.Reset(0)
		case <-next.C:
			components, persons := k.pass(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if components == nil {
				ready()
			}
			if err := errors.Join(components, persons); err != nil {
				slog.Warn("manifests: not all applied; trying again", "in", retry.String(), "err", err)
				next.Reset(retry)
				retry = min(2*retry, lastRetry)
			}
		}
	}
}

// keeper remembers what it applied, so that a pass costs nothing where nothing changed.
type keeper struct {
	cfg     Config
	apply   func(context.Context, object) error
	applied map[string]string // file -> its content when it was applied as a whole
}

// pass applies every file that is new or changed. The two errors are those of the components and of a person's files.
func (k *keeper) pass(ctx context.Context) (components, persons error) {
	files, err := componentFiles(k.cfg.Components, k.cfg.Disable)
	components = errors.Join(err, k.files(ctx, files, render(k.cfg)))
	files, err = manifestFiles(k.cfg.Manifests)
	persons = errors.Join(err, k.files(ctx, files, nil))
	return components, persons
}

func (k *keeper) files(ctx context.Context, names []string, render func(string, []byte) ([]byte, error)) error {
	var faults []error
	for _, name := range names {
		if err := k.file(ctx, name, render); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// file applies one file's objects in their order. One that fails does not keep the others back.
func (k *keeper) file(ctx context.Context, name string, render func(string, []byte) ([]byte, error)) error {
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // removed since the folder was read
	}
	if err != nil {
		return err
	}
	if render != nil {
		if data, err = render(name, data); err != nil {
			return err
		}
	}
	if k.applied[name] == string(data) {
		return nil
	}
	objects, err := decode(name, data)
	if err != nil {
		return err
	}
	var faults []error
	for _, o := range objects {
		if err := k.apply(ctx, o); err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: %s: %w", name, o.line, o, err))
		}
	}
	if len(faults) == 0 {
		k.applied[name] = string(data)
		slog.Info("manifest applied", "file", name, "objects", len(objects))
	}
	return errors.Join(faults...)
}

// componentFiles lists the manifests of the components that are not disabled.
func componentFiles(dir string, disable []string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() || slices.Contains(disable, e.Name()) {
			continue
		}
		of, err := manifestFiles(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		files = append(files, of...)
	}
	return files, nil
}

// manifestFiles lists a folder's manifests by name, which is the order they are applied in. Editors' and half-written files,
// which begin with a dot, are left out.
func manifestFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		switch ext := filepath.Ext(e.Name()); {
		case e.IsDir(), strings.HasPrefix(e.Name(), "."), ext != ".yaml" && ext != ".yml" && ext != ".json":
		default:
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}
