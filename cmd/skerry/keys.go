package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
)

func newKeysCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make and show the keys that releases are signed with"}
	cmd.AddCommand(newKeysNewCmd(), newKeysShowCmd())
	return cmd
}

func newKeysNewCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "new DIR",
		Short: "Make release and Secure Boot keys in a new folder",
		Long: "Make an ed25519 key that signs releases, and RSA keys and certificates for UEFI Secure Boot (PK, KEK, db).\n" +
			"Whoever has this folder can make software that your machines trust: keep it offline, and keep a copy.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := keys.New(args[0], name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "made %s: release key %s, Secure Boot owner %s\n", args[0], k.ReleaseID(), k.GUID)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "Skerry", "the name that the certificates carry")
	return cmd
}

func newKeysShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show DIR",
		Short: "Check a key folder and say which keys it holds",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := keys.Load(args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if _, err := fmt.Fprintf(out, "release  %s\nguid     %s\n", k.ReleaseID(), k.GUID); err != nil {
				return err
			}
			for _, p := range k.Pairs() {
				if _, err := fmt.Fprintf(out, "%-8s %s, valid until %s\n", p.Name, p.Cert.Subject.CommonName, p.Cert.NotAfter.Format("2006-01-02")); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
