package main

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/machine"
)

func newConfigSignCmd() *cobra.Command {
	var key, dir, signWith string
	cmd := &cobra.Command{
		Use:   "sign FILE...",
		Short: "Sign node configs, for images that take no other",
		Long: "Sign node configs with the release key of a key folder, or with a key of their own (an ed25519 key as PKCS#8 in PEM form:\n" +
			"openssl genpkey -algorithm ed25519). The signature goes into FILE" + machine.SignatureSuffix + ", which belongs beside config.yaml on the config\n" +
			"partition as config.yaml" + machine.SignatureSuffix + "; `skerry image build` takes it along. A config that was changed after it was signed is refused\n" +
			"by every machine; whether an unsigned one is, `--config-policy` of `skerry image build` and `skerry release build` says.",
		Example: "  skerry config sign --keys keys north-1.yaml\n  skerry config sign --key config-key.pem north-*.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			by, err := signingKeys(key, dir, keys.ParseCommand(signWith))
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if err := signConfig(name, by); err != nil {
					errs = append(errs, err)
					continue
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: signed by key %s\n", name+machine.SignatureSuffix, keys.KeyID(by[len(by)-1].Public())); err != nil {
					return err
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "private key that signs configs and nothing else; with --sign-with its public half")
	signWithFlag(cmd, &signWith)
	cmd.Flags().StringVar(&dir, "keys", "", "key folder whose release key signs (default "+defaultKeys+")")
	return cmd
}

func signingKeys(file, dir string, with keys.Command) ([]crypto.Signer, error) {
	if file != "" && dir != "" {
		return nil, errors.New("config sign: --key and --keys name two keys; give one")
	}
	if file != "" {
		key, err := keys.LoadSigner(file, with)
		return []crypto.Signer{key}, err
	}
	set, err := keys.Load(cmp.Or(dir, defaultKeys), with)
	if err != nil {
		return nil, err
	}
	return set.ReleaseSigners(), set.CanSign()
}

func signConfig(name string, by []crypto.Signer) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if _, err := machine.Decode(name, data); err != nil {
		return err
	}
	sig, err := machine.SignConfig(data, by...)
	if err != nil {
		return err
	}
	return atomicfile.Write(name+machine.SignatureSuffix, sig, 0o644)
}

// configTrustFlags say which node configs machines take, and by whom they may be signed.
type configTrustFlags struct {
	policy string
	keys   []string
}

func (f *configTrustFlags) bind(cmd *cobra.Command, scope string) {
	cmd.Flags().StringVar(&f.policy, "config-policy", "", "node configs to take, signed (see skerry config sign) or any, for "+scope)
	cmd.Flags().StringSliceVar(&f.keys, "config-key", nil, "public key that may sign node configs besides the release's, as PEM; may be given more than once")
}

func (f *configTrustFlags) load() (machine.Policy, []ed25519.PublicKey, error) {
	policy := machine.Policy(f.policy)
	if err := policy.Check(); err != nil {
		return "", nil, fmt.Errorf("--config-policy: %w", err)
	}
	var out []ed25519.PublicKey
	for _, name := range f.keys {
		data, err := os.ReadFile(filepath.Clean(name))
		if err != nil {
			return "", nil, fmt.Errorf("--config-key: %w", err)
		}
		pub, err := keys.ParsePublic(data)
		if err != nil {
			return "", nil, fmt.Errorf("--config-key %s: %w", name, err)
		}
		out = append(out, pub)
	}
	return policy, out, nil
}
