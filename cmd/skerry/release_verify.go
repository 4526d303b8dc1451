package main

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
)

func newReleaseVerifyCmd() *cobra.Command {
	var trust []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR --trust-key FILE",
		Short: "Check a release's signature and every byte of its files",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(trust) == 0 {
				return errors.New("release verify: name the release.pub of whoever you trust with --trust-key")
			}
			var pubs []ed25519.PublicKey
			for _, file := range trust {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				pub, err := keys.ParsePublic(data)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				pubs = append(pubs, pub)
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
	cmd.Flags().StringArrayVar(&trust, "trust-key", nil, "release.pub of a trusted signer; may be given more than once")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the manifest as JSON")
	return cmd
}
