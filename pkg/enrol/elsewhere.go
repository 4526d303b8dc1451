package enrol

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/join"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/token"
)

// throughName is the file, in the data folder, with the URL of the server that a first server has found the cluster at.
const throughName = "joined-through"

// Elsewhere keeps a fleet's first server from beginning a cluster that there is already: its card was written anew, or it took the
// place of another first server. It asks the fleet's other servers for as long as patience lasts; in a new fleet none answers. The URL
// of one that belongs to the cluster, and the token to join with, or "".
func Elsewhere(ctx context.Context, dataDir string, patience time.Duration, tell func(status string)) (server, text string, err error) {
	file := filepath.Join(dataDir, throughName)
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	found := err == nil
	if Joined(dataDir) {
		return strings.TrimSpace(string(before)), "", nil
	}
	s, err := seed.Load(dataDir)
	if err != nil || s == nil || len(s.Servers) == 0 {
		return "", "", err
	}
	ca, err := pki.Certificate(s.Files[pki.ServerCAFile])
	if err != nil {
		return "", "", err
	}
	pin := token.Pin(ca)
	tell("asking the fleet's other servers whether the cluster runs already")
	for end := time.Now().Add(patience); ; {
		for _, server := range s.Servers {
			addr, err := Address(server)
			if err != nil {
				return "", "", err
			}
			err = join.Serves(ctx, addr, pin)
			var no *join.Refusal
			switch {
			case err == nil:
				slog.Info("the cluster of this fleet runs already; joining it", "fleet", s.Fleet, "server", server)
				secret := strings.TrimSpace(string(s.Files["server/token"]))
				return server, token.Token{Pin: pin, User: "server", Secret: secret}.String(), atomicfile.Write(file, []byte(server+"\n"), 0o600)
			case errors.As(err, &no):
				// Somebody serves there: a cluster of these machines whose authorities were replaced, or another. Not a second one.
				slog.Warn("not beginning the fleet's cluster: one of its servers answers, and not as this seed's cluster does", "server", server, "err", err)
				tell(server + ": " + err.Error())
				found = true
			}
		}
		if ctx.Err() != nil {
			return "", "", context.Cause(ctx) // nobody was asked, which is no answer
		}
		if !found && time.Now().After(end) {
			return "", "", nil
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return "", "", context.Cause(ctx)
		}
	}
}
