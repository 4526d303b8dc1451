package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Module is the Go module that a source folder must hold.
const Module = "github.com/skerry-os/skerry"

// Source is a checkout of Skerry and what git says of it.
type Source struct {
	Dir     string
	Version string    // git describe, without the leading v
	Commit  string    // full, or "unknown" outside of git
	Time    time.Time // of the commit
}

// FindSource finds the checkout that dir lies in.
func FindSource(ctx context.Context, dir string) (*Source, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for top := abs; ; top = filepath.Dir(top) {
		mod, err := os.ReadFile(filepath.Join(top, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module "+Module+"\n")) {
			return readSource(ctx, top)
		}
		if top == filepath.Dir(top) {
			return nil, fmt.Errorf("%s: is not inside Skerry's source; name it with --source", abs)
		}
	}
}

func readSource(ctx context.Context, dir string) (*Source, error) {
	s := &Source{Dir: dir, Version: "0.0.0-dev", Commit: "unknown", Time: time.Unix(0, 0).UTC()}
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		return s, nil //nolint:nilerr // an unpacked archive: buildable, but nameless
	}
	head, err := output(ctx, dir, nil, "git", "log", "-1", "--format=%H %ct")
	if err != nil {
		return nil, err
	}
	commit, stamp, _ := strings.Cut(head, " ")
	sec, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("git log: time %q: %w", stamp, err)
	}
	s.Commit, s.Time = commit, time.Unix(sec, 0).UTC()
	if tag, err := output(ctx, dir, nil, "git", "describe", "--tags", "--match", "v[0-9]*", "--dirty"); err == nil {
		s.Version = strings.TrimPrefix(tag, "v")
		return s, nil
	}
	count, err := output(ctx, dir, nil, "git", "rev-list", "--count", "HEAD") // no release yet: still a number that rises
	if err != nil {
		return nil, err
	}
	s.Version = fmt.Sprintf("0.0.0-%s-g%.9s", count, commit)
	if changed, err := output(ctx, dir, nil, "git", "status", "--porcelain", "--untracked-files=no"); err != nil || changed != "" {
		s.Version += "-dirty"
	}
	return s, nil
}

// output runs a program and gives what it printed, without the last newline; its error carries the end of what it said.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	if env != nil {
		cmd.Env = append(os.Environ(), env...)
	}
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not installed", name)
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, said[max(0, len(said)-2000):])
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}
