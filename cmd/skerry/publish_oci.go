package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/image/cloud/registry"
	"github.com/skerry-os/skerry/pkg/release"
)

func newPublishOCICmd() *cobra.Command {
	var trust trustFlags
	var dir string
	var asJSON, dryRun bool
	cmd := &cobra.Command{
		Use:   "oci --release DIR HOST/NAME:TAG",
		Short: "Push a signed release to an OCI registry",
		Long: "Push a signed release to an OCI registry, the kind that container images are kept in. Images and repositories are made\n" +
			"from there with --release oci://HOST/NAME:TAG. Who may use the registry is said where docker and podman look.",
		Example: "  skerry publish oci --release out/release registry.example.org/skerry:1.2.3-amd64\n" +
			"  skerry image build --board aws --release oci://registry.example.org/skerry:1.2.3-amd64 -o aws.img",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := trust.load()
			if err != nil {
				return err
			}
			files := os.DirFS(dir)
			rel, err := release.Open(files, keys)
			if err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
			ref := registry.Scheme + strings.TrimPrefix(args[0], registry.Scheme)
			if err := registry.MayPush(cmd.Context(), ref); err != nil {
				return err
			}
			report := map[string]any{"reference": ref, "version": rel.Manifest().Version, "dryRun": dryRun}
			if dryRun {
				if err := rel.CheckFiles(files); err != nil {
					return fmt.Errorf("%s: %w", dir, err)
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), report)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "would push release %s for %s: %s; the right is there, nothing was pushed\n", rel.Manifest().Version, rel.Manifest().Arch, ref)
				return err
			}
			digest, err := registry.Push(cmd.Context(), ref, rel, files, teller(cmd))
			if err != nil {
				return err
			}
			if asJSON {
				report["digest"] = digest
				return printJSON(cmd.OutOrStdout(), report)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "pushed release %s for %s: %s\n%s\n", rel.Manifest().Version, rel.Manifest().Arch, ref, digest)
			return err
		},
	}
	trust.bind(cmd)
	cmd.Flags().StringVar(&dir, "release", "", "folder of the signed release (required)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check release and rights, and push nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print reference and digest as JSON")
	_ = cmd.MarkFlagRequired("release")
	return cmd
}

// releaseFolder gives the folder of a release: the one named, or what a registry has at oci://HOST/NAME:TAG, kept in the cache.
func releaseFolder(ctx context.Context, name string, keys []ed25519.PublicKey, boards ...string) (string, error) {
	if !strings.HasPrefix(name, registry.Scheme) {
		return name, nil
	}
	cache := os.Getenv("SKERRY_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(base, "skerry")
	}
	return registry.Pull(ctx, name, filepath.Join(cache, "releases"), keys, boards)
}

// releaseFolders is releaseFolder for several.
func releaseFolders(ctx context.Context, names []string, keys []ed25519.PublicKey) (dirs []string, err error) {
	for _, name := range names {
		dir, err := releaseFolder(ctx, name, keys)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}
