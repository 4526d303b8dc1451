package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/repository"
)

func newKeysCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make and show the keys that releases are signed with"}
	cmd.AddCommand(newKeysNewCmd(), newKeysRolesCmd(), newKeysRotateCmd(), newKeysShowCmd())
	return cmd
}

func newKeysNewCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "new DIR",
		Short: "Make release and Secure Boot keys in a new folder",
		Long: "Make an ed25519 key that signs releases, RSA keys and certificates for UEFI Secure Boot (PK, KEK, db), and the keys of\n" +
			"the four roles that sign a repository of updates (root, targets, snapshot, timestamp).\n" +
			"Whoever has this folder can make software that your machines trust: keep it offline, and keep a copy.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := keys.New(args[0], name)
			if err != nil {
				return err
			}
			if _, err := repository.NewRoles(filepath.Join(args[0], keys.RepositoryDir), time.Now()); err != nil {
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
			if k.Root == nil {
				_, err := fmt.Fprintf(out, "no keys of a repository of updates; make them with: skerry keys roles %s\n", args[0])
				return err
			}
			r, err := repository.LoadRoles(filepath.Join(args[0], keys.RepositoryDir), nil)
			if err != nil {
				return err
			}
			return printRoles(out, r)
		},
	}
}

func newKeysRolesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "roles DIR",
		Short: "Add the keys of a repository of updates to a key folder that has none",
		Long: "Add the keys of the four roles that sign a repository of updates. Releases that are built from then on trust it;\n" +
			"machines that run an older one have to be written anew once.",
		Example: "  skerry keys roles out/keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := keys.Load(args[0]); err != nil {
				return err
			}
			r, err := repository.NewRoles(filepath.Join(args[0], keys.RepositoryDir), time.Now())
			if err != nil {
				return err
			}
			return printRoles(cmd.OutOrStdout(), r)
		},
	}
}

func newKeysRotateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate DIR ROLE",
		Short: "Give a role of the repository of updates a new key",
		Long: "Give root, targets, snapshot or timestamp a new key, signed for by the root key. Machines follow when the repository\n" +
			"is published or refreshed next; what the old key signs from then on is refused.",
		Example: "  skerry keys rotate out/keys timestamp && skerry update refresh --keys out/keys --repo /srv/updates",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := repository.LoadRoles(filepath.Join(args[0], keys.RepositoryDir), nil)
			if err != nil {
				return err
			}
			if err := r.Rotate(args[1], time.Now()); err != nil {
				return err
			}
			return printRoles(cmd.OutOrStdout(), r)
		},
	}
}

func printRoles(w io.Writer, r *repository.Roles) error {
	for _, role := range r.Show() {
		text := fmt.Sprintf("%-9s %.16s", role.Name, role.KeyID)
		if !role.Here {
			text += ", the private key is not here"
		}
		if !role.Expires.IsZero() {
			text += ", valid until " + role.Expires.Format("2006-01-02")
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}
