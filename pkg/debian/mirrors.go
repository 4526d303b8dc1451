package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Mirrors are base addresses of Debian archives: what stands before dists/ and pool/.
type Mirrors struct {
	Main     []string
	Security []string
}

// All lists every address once, main archives first.
func (m Mirrors) All() []string { return append(append([]string(nil), m.Main...), m.Security...) }

// ErrNoMirror means the host's apt configuration names no Debian archive.
var ErrNoMirror = errors.New("the host's apt configuration names no Debian archive; name one with --mirror")

// HostMirrors reads the archives that the host itself installs from. It asks apt, so that every kind of sources file counts.
func HostMirrors(ctx context.Context) (Mirrors, error) {
	out, err := run(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CREATED_BY)")
	if errors.Is(err, exec.ErrNotFound) {
		return Mirrors{}, ErrNoMirror
	}
	if err != nil {
		return Mirrors{}, err
	}
	var m Mirrors
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 3 || f[2] != "Packages" || seen[f[0]] || !strings.HasPrefix(f[0], "http") {
			continue
		}
		seen[f[0]] = true
		uri := strings.TrimRight(f[0], "/") + "/"
		// Third-party archives carry other names; Debian's are debian and debian-security wherever they are mirrored.
		switch {
		case strings.HasSuffix(f[1], "-security"):
			m.Security = append(m.Security, uri)
		case strings.HasSuffix(strings.TrimRight(uri, "/"), "debian"):
			m.Main = append(m.Main, uri)
		}
	}
	if len(m.Main) == 0 {
		return Mirrors{}, ErrNoMirror
	}
	return m, nil
}

// run gives a command's output; its error carries what the command said.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	said := summary(stderr.String())
	if said == "" {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return nil, fmt.Errorf("%s: %w: %s", name, err, said)
}

// NewMirrors sorts archives that a person named: one whose last folder is debian-security holds security updates.
func NewMirrors(uris []string) Mirrors {
	var m Mirrors
	for _, u := range uris {
		u = strings.TrimRight(u, "/") + "/"
		if strings.HasSuffix(u, "-security/") {
			m.Security = append(m.Security, u)
		} else {
			m.Main = append(m.Main, u)
		}
	}
	return m
}

// summary picks apt's errors out of what it said, or else the end of it.
func summary(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	var errs []string
	for _, l := range lines {
		if e, ok := strings.CutPrefix(l, "E: "); ok {
			errs = append(errs, e)
		}
	}
	if len(errs) > 0 {
		lines = errs
	}
	return strings.Join(lines[max(0, len(lines)-4):], "; ")
}
