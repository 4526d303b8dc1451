package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/repository"
)

func newUpdateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Publish releases for machines to update themselves to",
		Long: "A repository is a folder for any web server or USB stick. Its metadata is signed by four roles (TUF), so that whoever\n" +
			"holds the server, and not the keys, can neither change, nor mix, nor hold back what machines get without their noticing.",
	}
	cmd.AddCommand(newUpdatePublishCmd(), newUpdateRefreshCmd(), newUpdateStatusCmd())
	return cmd
}

// signFlags say where the repository is and who signs.
type signFlags struct {
	keys, repo, signWith string
	expires              time.Duration
}

func (f *signFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.keys, "keys", defaultKeys, "key folder with the roles' keys")
	cmd.Flags().StringVar(&f.repo, "repo", "", "folder of the repository (required)")
	signWithFlag(cmd, &f.signWith)
	cmd.Flags().DurationVar(&f.expires, "expires", repository.Lifetimes["timestamp"], "how long machines believe that this is the newest; publish or refresh before")
	_ = cmd.MarkFlagRequired("repo")
}

func (f *signFlags) load() (*repository.Roles, repository.PublishOptions, error) {
	o := repository.PublishOptions{Now: time.Now(), Lifetimes: map[string]time.Duration{"timestamp": f.expires}}
	r, err := repository.LoadRoles(filepath.Join(f.keys, keys.RepositoryDir), keys.ParseCommand(f.signWith))
	return r, o, err
}

func newUpdatePublishCmd() *cobra.Command {
	var f signFlags
	var dir, waves string
	var o repository.PublishOptions
	cmd := &cobra.Command{
		Use:   "publish --release DIR --repo DIR",
		Short: "Put a release into a repository",
		Example: "  skerry update publish --release out/release --repo /srv/updates\n" +
			"  skerry update publish --release out/release --repo /srv/updates --waves 5%,24h=30%,72h=100% --minimum 1.4.0",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, common, err := f.load()
			if err != nil {
				return err
			}
			o.Now, o.Lifetimes = common.Now, common.Lifetimes
			if o.Waves, err = parseWaves(waves); err != nil {
				return fmt.Errorf("--waves: %w", err)
			}
			trust := trustFlags{dir: f.keys}
			pubs, err := trust.load()
			if err != nil {
				return err
			}
			if dir, err = releaseFolder(cmd.Context(), dir, pubs); err != nil {
				return err
			}
			files := os.DirFS(dir)
			rel, err := release.Open(files, pubs)
			if err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
			o.Say = func(line string) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), line) }
			n, err := repository.Publish(f.repo, roles, rel, files, o)
			if err != nil {
				return err
			}
			if rel.Manifest().Debug {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s; machines that run none take it only with update: {debug: true}\n", machine.DebugNotice); err != nil {
					return err
				}
			}
			return printPublished(cmd.OutOrStdout(), f, n)
		},
	}
	f.bind(cmd)
	cmd.Flags().StringVar(&dir, "release", "", "folder of the signed release, or oci://HOST/NAME:TAG (required)")
	cmd.Flags().StringVar(&o.Channel, "channel", repository.DefaultChannel, "the machines it is for: those whose config names the channel")
	cmd.Flags().StringVar(&o.Minimum, "minimum", "", "the oldest version that can be updated to this one at once")
	cmd.Flags().BoolVar(&o.Stone, "stepping-stone", false, "older machines must run this one before any newer")
	cmd.Flags().StringVar(&waves, "waves", "", "shares of the machines and when they may have it, as 5%,24h=30%,72h=100% (default: all at once)")
	cmd.Flags().IntVar(&o.Patches, "patches", 3, "from how many of the releases before it machines get patches: a tenth of what travels else; each takes half a minute here")
	_ = cmd.MarkFlagRequired("release")
	return cmd
}

func printPublished(w io.Writer, f signFlags, n *repository.Notice) error {
	_, err := fmt.Fprintf(w, "published %s for %s in channel %s of %s; publish or refresh again within %v\n", n.Version, n.Arch, n.Channel, f.repo, f.expires)
	return err
}

func newUpdateRefreshCmd() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:     "refresh --repo DIR",
		Short:   "Sign a repository again as it is, so that it does not expire",
		Example: "  skerry update refresh --keys out/keys --repo /srv/updates",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, o, err := f.load()
			if err != nil {
				return err
			}
			if err := repository.Refresh(f.repo, roles, o); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: signed again, until %s\n", f.repo, o.Now.Add(f.expires).UTC().Format(time.RFC3339))
			return err
		},
	}
	f.bind(cmd)
	return cmd
}

// parseWaves reads 5%,24h=30%,72h=100%.
func parseWaves(text string) ([]repository.Wave, error) {
	if text == "" {
		return nil, nil
	}
	var out []repository.Wave
	for part := range strings.SplitSeq(text, ",") {
		var w repository.Wave
		after, percent, ok := strings.Cut(part, "=")
		if !ok {
			after, percent = "0s", part
		}
		var err error
		if w.After, err = time.ParseDuration(after); err != nil {
			return nil, err
		}
		number, ok := strings.CutSuffix(percent, "%")
		if !ok {
			return nil, fmt.Errorf("%q is not a share, as in 24h=30%%", part)
		}
		if w.Percent, err = strconv.Atoi(number); err != nil {
			return nil, errors.Unwrap(err)
		}
		out = append(out, w)
	}
	return out, nil
}
