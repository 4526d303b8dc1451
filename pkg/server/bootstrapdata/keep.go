package bootstrapdata

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/server/secrets"
)

// every is how often a server looks whether its files have changed: by rotations of the authorities, of the key of secrets, and of
// the token. A snapshot of right after one should have it.
const every = 5 * time.Second

// Keep stores what a server shares whenever that has changed, until ctx ends.
func Keep(ctx context.Context, endpoint, dataDir string, settings map[string]any) {
	seen, said := "", ""
	for {
		if now := stamp(dataDir); now != seen {
			if err := store(ctx, endpoint, dataDir, settings); err == nil {
				seen, said = now, ""
			} else if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				slog.Warn("the cluster's keys are not stored in the datastore; trying again", "err", err)
			}
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
	}
}

// stamp changes when a file does.
func stamp(dataDir string) (all string) {
	for _, name := range pki.Shared() {
		if info, err := os.Stat(filepath.Join(dataDir, name)); err == nil {
			all += name + info.ModTime().Format(time.RFC3339Nano) + "\n"
		}
	}
	return all
}

// store writes what the data folder has, unless the datastore has newer: this server was off while another rotated.
func store(ctx context.Context, endpoint, dataDir string, settings map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	files, secret, err := load(dataDir)
	if err != nil {
		return err
	}
	ours := Data{Files: files, Settings: settings}
	c, err := client(endpoint)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // answered
	for {
		keep, rev, err := better(ctx, c, secret, ours)
		if err != nil || keep {
			return err
		}
		value, err := seal(secret, ours)
		if err != nil {
			return err
		}
		if done, err := write(ctx, c, value, rev); done || err != nil {
			return err
		}
	}
}

// better says whether what is stored stays: it is the same, or newer. What cannot be opened was sealed with the token of before.
func better(ctx context.Context, c *clientv3.Client, secret string, ours Data) (keep bool, rev int64, err error) {
	value, rev, err := read(ctx, c)
	if err != nil || value == nil {
		return false, rev, err
	}
	s, err := parse(value)
	if err != nil {
		return true, rev, err
	}
	theirs, err := s.open(secret)
	if err != nil {
		return false, rev, nil //nolint:nilerr // see above
	}
	if newer(ours.Files, theirs.Files) {
		return true, rev, nil
	}
	same := reflect.DeepEqual(plain(ours), plain(theirs))
	return same, rev, nil
}

func newer(ours, theirs map[string][]byte) bool {
	trusted := func(files map[string][]byte) []byte {
		return append(append([]byte(nil), files[pki.ServerCAFile]...), files[pki.ServerCABeforeFile]...)
	}
	return pki.Newer(trusted(ours), trusted(theirs)) || secrets.Newer(ours[secrets.EncryptionName], theirs[secrets.EncryptionName])
}

// plain is d as it comes out of JSON.
func plain(d Data) (out any) {
	text, err := json.Marshal(d)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return err
	}
	return out
}
