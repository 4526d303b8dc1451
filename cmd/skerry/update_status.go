package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/repository"
	"github.com/skerry-os/skerry/pkg/size"
)

func newUpdateStatusCmd() *cobra.Command {
	var repo, keyDir, root string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status --repo DIR",
		Short: "Say what a repository has, how far it is rolled out, when it expires, and what is wrong with it",
		Long: "Look at a repository as machines do: its metadata, and whether every file is there. It ends with an error if something is\n" +
			"wrong or expires within a week, so that whoever runs it each day need not read it. How far the machines of a cluster are,\n" +
			"kubectl says: kubectl get updateplans, and skerryd update status on a machine.",
		Example: "  skerry update status --repo /srv/updates\n  skerry update status --repo https://updates.example.org/skerry --root out/keys/repository/root.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			trusted, err := trustedRoot(root, keyDir)
			if err != nil {
				return err
			}
			s, err := examine(cmd.Context(), repo, trusted)
			if err != nil {
				return fmt.Errorf("%s: %w", repo, err)
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s, time.Now())
			}
			return errors.Join(err, amiss(s))
		},
	}
	cmd.Flags().StringVar(&repo, "repo", "", "folder or web address of the repository (required)")
	cmd.Flags().StringVar(&keyDir, "keys", "", "key folder whose root the repository must be signed for (default "+defaultKeys+", if it is there)")
	cmd.Flags().StringVar(&root, "root", "", "the root metadata itself: a root.json of the key folder")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("repo")
	return cmd
}

func printStatus(w io.Writer, s *repository.Status, now time.Time) error {
	lines := []string{s.Where}
	for _, r := range s.Roles {
		var ids []string
		for _, id := range r.KeyIDs {
			ids = append(ids, fmt.Sprintf("%.16s", id))
		}
		lines = append(lines, fmt.Sprintf("  %-9s version %d, key %s, until %s", r.Name, r.Version, strings.Join(ids, " "), r.Expires.UTC().Format(time.RFC3339)))
	}
	channel := ""
	for _, r := range s.Releases {
		if r.Channel != channel {
			channel = r.Channel
			lines = append(lines, "channel "+channel)
		}
		lines = append(lines, "  "+releaseLine(r, now))
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func releaseLine(r repository.ReleaseStatus, now time.Time) string {
	text := fmt.Sprintf("%s %s, %s: %v, published %s, for %d %% of the machines", r.Version, r.Arch, strings.Join(r.Boards, " "), size.Bytes(r.Bytes).Rounded(), r.Published.UTC().Format(time.RFC3339), r.Percent)
	if !r.Next.IsZero() {
		text += fmt.Sprintf(", for more in %v", r.Next.Sub(now).Round(time.Minute))
	}
	for _, wave := range r.Waves {
		text += fmt.Sprintf(", %v=%d%%", wave.After, wave.Percent)
	}
	if r.Minimum != "" {
		text += ", from " + r.Minimum + " on"
	}
	if r.Stone {
		text += ", stepping stone"
	}
	return text
}
