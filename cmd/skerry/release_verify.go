package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/release"
)

func newReleaseVerifyCmd() *cobra.Command {
	var trust trustFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "verify DIR",
		Short:   "Check a release's signature and every byte of its files",
		Example: "  skerry release verify --trust-key release.pub out/release",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pubs, err := trust.load()
			if err != nil {
				return err
			}
			fsys := os.DirFS(args[0])
			r, err := release.Open(fsys, pubs)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := r.CheckFiles(fsys); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			m := r.Manifest()
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: Skerry %s for %s with Kubernetes %s, signed by %s; all %d files are whole\n",
				args[0], m.Version, m.Arch, m.Kubernetes, r.KeyID(), len(m.AllFiles()))
			return err
		},
	}
	trust.bind(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the manifest as JSON")
	return cmd
}
