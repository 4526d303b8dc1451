package enrol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/token"
)

// Joined says whether a server's data folder holds what the servers of a cluster share, because it joined or began it.
func Joined(dataDir string) bool {
	_, err := os.Stat(filepath.Join(dataDir, "server", "tls", "server-ca.pem"))
	return err == nil
}

// JoinServer brings what all servers of a cluster share into the data folder of one that joins: all of it with one rename, or
// nothing. It tries until it succeeds or is told something that waiting does not change. check looks at the cluster's settings
// before anything is kept.
func JoinServer(ctx context.Context, c Config, check func(shared map[string]any) error) error {
	t, err := token.Parse(c.Token)
	if err != nil {
		return err
	}
	addrs, err := Addresses(c.Server)
	if err != nil {
		return err
	}
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		a, err := c.askAsServer(ctx, addrs, t)
		if err == nil {
			if err := check(a.Settings); err != nil {
				return err
			}
			return keepShared(c.DataDir, a.Files, pki.Shared())
		}
		var no *join.Refusal
		if ctx.Err() != nil || errors.As(err, &no) && !no.Wait {
			return fmt.Errorf("joining %w", err)
		}
		if err.Error() != said {
			slog.Warn("joining is tried again until it works", "err", err)
			said = err.Error()
		}
		c.Tell("joining " + err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("joining %w", err)
		}
	}
}

// askAsServer asks one after the other, until one answers.
func (c Config) askAsServer(ctx context.Context, addrs []string, t token.Token) (a *join.Answer, err error) {
	ips, err := c.Addresses(nil)
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		once, cancel := context.WithTimeout(ctx, attempt)
		a, err = join.Join(once, addr, t, join.Request{Node: c.NodeName, Machine: c.Machine, Addresses: texts(ips), Time: time.Now(), Server: true})
		cancel()
		var no *join.Refusal
		if err == nil || errors.As(err, &no) && !no.Wait {
			break
		}
	}
	return a, err
}

// keepShared writes those of the files that are wanted into a new folder and renames it to server.
func keepShared(dataDir string, files map[string][]byte, wanted []string) error {
	final, fresh := filepath.Join(dataDir, "server"), filepath.Join(dataDir, "server.joining")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	for name, data := range files {
		rel, ok := strings.CutPrefix(name, "server/")
		if !ok || !filepath.IsLocal(rel) || !slices.Contains(wanted, name) {
			continue // of a newer server, which has more to share
		}
		path := filepath.Join(fresh, rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := atomicfile.Write(path, data, 0o600); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(fresh, "tls", "server-ca.pem")); err != nil {
		return errors.New("the cluster's CA is missing")
	}
	if err := os.Remove(final); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: holds another server's files; start without --server, or with an empty --data-dir: %w", final, err)
	}
	if err := os.Rename(fresh, final); err != nil {
		return err
	}
	return atomicfile.SyncDir(dataDir)
}
