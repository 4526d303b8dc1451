package enrol

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"os"

	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
)

// TakeSeed makes the cluster of a seed in the data folder a server's own, once: all of it with one rename, or nothing. Then the
// seed is erased. A server that has a cluster already keeps that.
func TakeSeed(dataDir string) error {
	s, err := seed.Load(dataDir)
	if s == nil || err != nil {
		return err
	}
	where := filepath.Join(dataDir, seed.Name)
	if Joined(dataDir) {
		ours, err := os.ReadFile(filepath.Join(dataDir, pki.ServerCAFile))
		if err != nil {
			return err
		}
		if string(ours) != string(s.Files[pki.ServerCAFile]) {
			slog.Warn("the seed is of another cluster than this server's, and was not taken; to begin the other, write the card anew", "fleet", s.Fleet)
		}
		return seed.Erase(where)
	}
	pending, err := seed.MarshalPending(s.Tokens)
	if err != nil {
		return err
	}
	files := map[string][]byte{seed.PendingName: pending}
	for name, data := range s.Files {
		files[name] = data
	}
	if err := keepShared(dataDir, files, append(pki.Shared(), seed.PendingName)); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	slog.Info("this server begins the cluster that its fleet was built for", "fleet", s.Fleet, "tokens", len(s.Tokens))
	return seed.Erase(where)
}
