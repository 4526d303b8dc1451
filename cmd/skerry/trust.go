package main

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/skerry-os/skerry/pkg/keys"
)

// defaultKeys is where the Makefile keeps its keys.
const defaultKeys = "out/keys"

// trustFlags say whose releases to believe. The key is never taken from beside the release: whoever can change one can change
// the other.
type trustFlags struct {
	files []string
	dir   string
}

func (t *trustFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&t.files, "trust-key", nil, "release.pub of whoever signed the release; may be given more than once")
	cmd.Flags().StringVar(&t.dir, "keys", "", "key folder to take release.pub from (default "+defaultKeys+")")
}

func (t *trustFlags) load() ([]ed25519.PublicKey, error) {
	var out []ed25519.PublicKey
	if t.dir != "" || len(t.files) == 0 {
		dir := cmp.Or(t.dir, defaultKeys)
		pubs, err := keys.TrustedIn(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("trusted key: %w; name the public key of the release's signer by --trust-key, or the key folder by --keys", err)
		}
		if err != nil {
			return nil, fmt.Errorf("trusted key: %w", err)
		}
		out = pubs
	}
	for _, name := range t.files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("trusted key: %w", err)
		}
		pub, err := keys.ParsePublic(data)
		if err != nil {
			return nil, fmt.Errorf("trusted key %s: %w", name, err)
		}
		out = append(out, pub)
	}
	return out, nil
}
