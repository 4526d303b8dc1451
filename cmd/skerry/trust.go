package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
	files := t.files
	switch {
	case t.dir != "":
		files = append(files, filepath.Join(t.dir, "release.pub"))
	case len(files) == 0:
		files = []string{filepath.Join(defaultKeys, "release.pub")}
	}
	var out []ed25519.PublicKey
	for _, name := range files {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("trusted key: %w; name the public key of the release's signer by --trust-key, or the key folder by --keys", err)
		}
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
