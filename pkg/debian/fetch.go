package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// ErrGone means no mirror has the locked file any more.
var ErrGone = errors.New("is no longer on any mirror: Debian has replaced it; run `make lock` and commit the new lock file")

// Store is a cache of packages. It holds what Fetch downloaded by sha256 and what Unpack laid out.
type Store struct {
	Dir     string       // made when needed; may be deleted at any time between builds
	Mirrors []string     // base addresses, tried in order
	Client  *http.Client // nil means http.DefaultClient, which heeds the proxy variables
	Retry   time.Duration
}

// file is where a package lies in the cache.
func (s *Store) file(p Package) string {
	return filepath.Join(s.Dir, "debian", p.SHA256[:2], p.SHA256+".deb")
}

// Fetch gives the path of the package's file, downloading it if the cache lacks it. What it returns has the locked sha256.
func (s *Store) Fetch(ctx context.Context, p Package) (string, error) {
	name := s.file(p)
	if err := check(name, p); err == nil {
		return name, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(name) // damaged in the cache: fetch it again
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	if len(s.Mirrors) == 0 {
		return "", fmt.Errorf("%s %s: %w", p.Name, p.Version, ErrNoMirror)
	}
	var errs []error
	for try := range 3 {
		if try > 0 {
			if err := wait(ctx, s.Retry*time.Duration(try)); err != nil {
				return "", err
			}
		}
		errs = errs[:0]
		gone := 0
		for _, base := range s.Mirrors {
			err := s.download(ctx, base+p.File, name, p)
			if err == nil {
				return name, nil
			}
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			if errors.Is(err, fs.ErrNotExist) {
				gone++
			}
			errs = append(errs, err)
		}
		if gone == len(s.Mirrors) {
			return "", fmt.Errorf("%s %s (%s): %w", p.Name, p.Version, path.Base(p.File), ErrGone)
		}
	}
	return "", fmt.Errorf("%s %s: %w", p.Name, p.Version, errors.Join(errs...))
}

func (s *Store) download(ctx context.Context, url, name string, p Package) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return fmt.Errorf("%s: %w", url, fs.ErrNotExist)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: the mirror answers %s", url, resp.Status)
	}
	f, err := atomicfile.Create(name, 0o644)
	if err != nil {
		return err
	}
	defer f.Abort()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(resp.Body, p.Size+1))
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != p.Size || got != p.SHA256 {
		return fmt.Errorf("%s: is %d bytes with sha256 %.8s; the lock file says %d and %.8s", url, n, got, p.Size, p.SHA256)
	}
	return f.Commit()
}

// check reads the whole file: a cache is no place of trust.
func check(name string, p Package) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 {
		return fmt.Errorf("%s: sha256 is %.8s", name, got)
	}
	return nil
}
