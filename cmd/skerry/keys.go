package main

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/repository"
)

func newKeysCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make, show and change the keys that releases are signed with"}
	cmd.AddCommand(newKeysNewCmd(), newKeysRolesCmd(), newKeysRotateCmd(), newKeysRetireCmd(), newKeysShowCmd())
	return cmd
}

// signWithFlag names who signs with private keys that are not in the key folder.
func signWithFlag(cmd *cobra.Command, command *string) {
	cmd.Flags().StringVar(command, "sign-with", "", "command that signs for private keys that are not in the key folder, as skerry-pkcs11 does: it gets a key's name and ID\nand the algorithm (EDDSA, SHA256-RSA-PKCS) as arguments and the message as input, and prints the signature: raw, hexadecimal or base64")
}

// sourceFlags say where the private halves of new keys are.
type sourceFlags struct{ public, signWith string }

func (f *sourceFlags) bind(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&f.public, "public", "", what)
	signWithFlag(cmd, &f.signWith)
}

// folder reads public keys from a folder of NAME.pub.
func (f *sourceFlags) folder() (keys.Source, error) {
	src := keys.Source{Sign: keys.ParseCommand(f.signWith)}
	if f.public == "" {
		return src, nil
	}
	var err error
	if src.Public, err = keys.LoadPublicDir(f.public); err != nil {
		return src, fmt.Errorf("--public: %w", err)
	}
	known := slices.Concat(keys.Rotated, repository.RoleNames)
	for name := range src.Public {
		if !slices.Contains(known, name) {
			return src, fmt.Errorf("--public: %s: %s.pub is no key of a key folder; they are %s", f.public, name, strings.Join(known, ", "))
		}
	}
	return src, nil
}

// file reads the public half of one key. The signing command calls it by the file's name.
func (f *sourceFlags) file(name string) (keys.Source, error) {
	src := keys.Source{Sign: keys.ParseCommand(f.signWith)}
	if f.public == "" {
		return src, nil
	}
	pub, err := keys.LoadPublicFile(f.public)
	if err != nil {
		return src, fmt.Errorf("--public: %w", err)
	}
	base := filepath.Base(f.public)
	src.Public, src.Label = map[string]crypto.PublicKey{name: pub}, strings.TrimSuffix(base, filepath.Ext(base))
	return src, nil
}

func newKeysNewCmd() *cobra.Command {
	var name string
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "new DIR",
		Short: "Make release and Secure Boot keys in a new folder",
		Long: "Make an ed25519 key that signs releases, RSA keys and certificates for UEFI Secure Boot (PK, KEK, db), and the keys of\n" +
			"the four roles that sign a repository of updates (root, targets, snapshot, timestamp).\n" +
			"Whoever has this folder can make software that your machines trust: keep it offline, and keep a copy.\n\n" +
			"Keys may be on a token (PKCS#11) or in a service instead: give their public halves in a folder by --public, named\n" +
			"release.pub, PK.pub, db.pub, root.pub and so on, and by --sign-with a command that signs. What is not in there is made here.",
		Example: "  skerry keys new out/keys\n  skerry keys new out/keys --public token --sign-with 'skerry-pkcs11 /usr/lib/softhsm/libsofthsm2.so'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := from.folder()
			if err != nil {
				return err
			}
			k, err := keys.New(args[0], name, src)
			if err != nil {
				return err
			}
			if _, err := repository.NewRolesFrom(filepath.Join(args[0], keys.RepositoryDir), src, time.Now()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "made %s: release key %s, Secure Boot owner %s\n", args[0], k.ReleaseID(), k.GUID)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "Skerry", "the name that the certificates carry")
	from.bind(cmd, "folder of public keys whose private halves are elsewhere")
	return cmd
}

func newKeysShowCmd() *cobra.Command {
	var repo string
	cmd := &cobra.Command{
		Use:     "show DIR",
		Short:   "Check a key folder, and say which keys it holds and when they and what they signed expire",
		Example: "  skerry keys show out/keys --repo https://updates.example.org/skerry",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := keys.Load(args[0], nil)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if err := printKeys(out, k); err != nil {
				return err
			}
			if k.Root == nil {
				_, err := fmt.Fprintf(out, "no keys of a repository of updates; make them with: skerry keys roles %s\n", args[0])
				return err
			}
			r, err := repository.LoadRoles(filepath.Join(args[0], keys.RepositoryDir), nil)
			if err != nil {
				return err
			}
			var s *repository.Status
			if repo != "" {
				if s, err = examine(cmd.Context(), repo, k.Root); err != nil {
					return err
				}
			}
			return printRoles(out, r, s)
		},
	}
	cmd.Flags().StringVar(&repo, "repo", "", "folder or web address of the repository, to show when targets, snapshot and timestamp expire")
	return cmd
}

func printKeys(w io.Writer, k *keys.Set) error {
	lines := []string{"release  " + k.ReleaseID() + place(k.Release)}
	if k.Before != nil {
		lines = append(lines, "before   "+k.Before.ID()+place(k.Before)+", signs beside it until: skerry keys retire DIR release")
	}
	lines = append(lines, "guid     "+k.GUID)
	for _, p := range k.Pairs() {
		lines = append(lines, certificate(p.Name, p))
		if p.Before != nil {
			lines = append(lines, certificate("before", *p.Before)+", until: skerry keys retire DIR "+p.Name)
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func certificate(name string, p keys.Pair) string {
	return fmt.Sprintf("%-8s %s, valid until %s%s", name, p.Cert.Subject.CommonName, p.Cert.NotAfter.Format(time.DateOnly), place(p.Key))
}

func place(k *keys.Signer) string {
	if k.Here() {
		return ""
	}
	return ", the private key is not here"
}

func newKeysRolesCmd() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "roles DIR",
		Short: "Add the keys of a repository of updates to a key folder that has none",
		Long: "Add the keys of the four roles that sign a repository of updates. Releases that are built from then on trust it;\n" +
			"machines that run an older one have to be written anew once.",
		Example: "  skerry keys roles out/keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := keys.Load(args[0], nil); err != nil {
				return err
			}
			src, err := from.folder()
			if err != nil {
				return err
			}
			r, err := repository.NewRolesFrom(filepath.Join(args[0], keys.RepositoryDir), src, time.Now())
			if err != nil {
				return err
			}
			return printRoles(cmd.OutOrStdout(), r, nil)
		},
	}
	from.bind(cmd, "folder of the roles' public keys whose private halves are elsewhere")
	return cmd
}

func newKeysRotateCmd() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "rotate DIR KEY",
		Short: "Give a key a successor",
		Long: "Give root, targets, snapshot or timestamp a new key, signed for by the root key. Machines follow when the repository\n" +
			"is published or refreshed next; what the old key signs from then on is refused.\n\n" +
			"Give release, PK, KEK or db a new key. Old and new are both in force then: build and publish a release, and when all machines\n" +
			"run it, end the old one with `skerry keys retire`. Releases of that time are signed by both release keys and both db keys,\n" +
			"and bring the firmware of machines with Secure Boot the new certificate of PK, KEK or db, signed for by the key above it.",
		Example: "  skerry keys rotate out/keys timestamp && skerry update refresh --keys out/keys --repo /srv/updates\n" +
			"  skerry keys rotate out/keys release",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := from.file(args[1])
			if err != nil {
				return err
			}
			if slices.Contains(keys.Rotated, args[1]) {
				k, err := keys.Load(args[0], src.Sign)
				if err != nil {
					return err
				}
				if err := k.Rotate(args[1], src, time.Now()); err != nil {
					return err
				}
				return printKeys(cmd.OutOrStdout(), k)
			}
			if !slices.Contains(repository.RoleNames, args[1]) {
				return fmt.Errorf("key %q: is not one of %s", args[1], strings.Join(slices.Concat(keys.Rotated, repository.RoleNames), ", "))
			}
			r, err := repository.LoadRoles(filepath.Join(args[0], keys.RepositoryDir), src.Sign)
			if err != nil {
				return err
			}
			if err := r.Rotate(args[1], src, time.Now()); err != nil {
				return err
			}
			return printRoles(cmd.OutOrStdout(), r, nil)
		},
	}
	from.bind(cmd, "the new key's public half, if the private one is elsewhere; the signing command calls it by the file's name")
	return cmd
}

func newKeysRetireCmd() *cobra.Command {
	var signWith string
	cmd := &cobra.Command{
		Use:   "retire DIR KEY",
		Short: "End what rotate began for release, PK, KEK or db: forget the key before",
		Long: "Forget the key before, its private half too. Releases that are built from then on are signed by the new key alone. A machine\n" +
			"that has run no release of the time of both keys takes none of them: publish the last one that both have signed with\n" +
			"--stepping-stone, and such machines come by way of it. Firmware goes on to know the old certificate of KEK or db.",
		Example: "  skerry keys retire out/keys release",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := keys.Load(args[0], keys.ParseCommand(signWith))
			if err != nil {
				return err
			}
			if err := k.Retire(args[1], time.Now()); err != nil {
				return err
			}
			return printKeys(cmd.OutOrStdout(), k)
		},
	}
	signWithFlag(cmd, &signWith)
	return cmd
}

// printRoles shows the roles of a key folder, and of the repository's metadata what s says.
func printRoles(w io.Writer, r *repository.Roles, s *repository.Status) error {
	for _, role := range r.Show() {
		text := fmt.Sprintf("%-9s %.16s", role.Name, role.KeyID)
		if !role.Here {
			text += ", the private key is not here"
		}
		if !role.Expires.IsZero() {
			text += ", valid until " + role.Expires.Format(time.DateOnly)
		}
		if s != nil {
			for _, m := range s.Roles {
				if m.Name == role.Name {
					text += fmt.Sprintf(", in the repository until %s", m.Expires.UTC().Format(time.RFC3339))
				}
			}
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return amiss(s)
}

// examine looks at a repository, a folder or a web address.
func examine(ctx context.Context, where string, root []byte) (*repository.Status, error) {
	name := where
	if !strings.Contains(where, "://") {
		abs, err := filepath.Abs(where)
		if err != nil {
			return nil, err
		}
		name = abs
	}
	src, err := repository.NewSource(name, &http.Client{Timeout: 5 * time.Minute})
	if err != nil {
		return nil, err
	}
	s, err := repository.Examine(ctx, src, root, time.Now())
	s.Where = where
	return s, err
}

// amiss makes an error of what is wrong with a repository.
func amiss(s *repository.Status) error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, f := range s.Faults {
		errs = append(errs, errors.New(f.String()))
	}
	return errors.Join(errs...)
}

// trustedRoot is the root metadata that machines begin with.
func trustedRoot(file, keyDir string) ([]byte, error) {
	if file != "" {
		return os.ReadFile(file)
	}
	data, err := os.ReadFile(filepath.Join(cmp.Or(keyDir, defaultKeys), keys.RepositoryDir, repository.RootFile))
	if errors.Is(err, fs.ErrNotExist) && keyDir == "" {
		return nil, nil
	}
	return data, err
}
