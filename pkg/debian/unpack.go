package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Unpacked says whether Unpack has nothing to do.
func (s *Store) Unpacked(p Package) bool {
	_, err := os.Stat(s.unpacked(p))
	return err == nil
}

func (s *Store) unpacked(p Package) string { return filepath.Join(s.Dir, "unpacked", p.SHA256) }

// Unpack gives a folder that holds the package's files, below the cache. Owners and set-id bits are dropped; links stay as
// they are. The folder is shared: nobody writes into it.
func (s *Store) Unpack(ctx context.Context, p Package) (string, error) {
	dir := s.unpacked(p)
	if s.Unpacked(p) {
		return dir, nil
	}
	deb, err := s.Fetch(ctx, p)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".tmp-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := Extract(ctx, deb, tmp); err != nil {
		return "", fmt.Errorf("%s %s: %w", p.Name, p.Version, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, e := os.Stat(dir); e == nil { // another build was faster
			return dir, nil
		}
		return "", err
	}
	return dir, nil
}

// UnpackAll gives one folder that holds the files of several packages, such as a kernel that Debian has cut into image,
// modules and device trees. Of one package it is that package's.
func (s *Store) UnpackAll(ctx context.Context, pkgs ...Package) (string, error) {
	dirs := make([]string, len(pkgs))
	key := sha256.New()
	for i, p := range pkgs {
		var err error
		if dirs[i], err = s.Unpack(ctx, p); err != nil {
			return "", err
		}
		key.Write([]byte(p.SHA256 + "\n"))
	}
	if len(dirs) == 1 {
		return dirs[0], nil
	}
	to := filepath.Join(s.Dir, "unpacked", "all-"+hex.EncodeToString(key.Sum(nil)))
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".tmp-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, dir := range dirs {
		if err := linkTree(dir, tmp); err != nil {
			return "", err
		}
	}
	if err := os.Rename(tmp, to); err != nil {
		if _, e := os.Stat(to); e == nil { // another build was faster
			return to, nil
		}
		return "", err
	}
	return to, nil
}

// linkTree lays the files of one folder into another, as second names of the same files. What is there already stays: the
// packages of one source share only their documentation.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if _, err := os.Lstat(target); err == nil {
			return nil
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(name)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		}
		return os.Link(name, target)
	})
}

// Extract lays the files of a .deb out in dir.
func Extract(ctx context.Context, deb, dir string) error {
	if tool, err := exec.LookPath("dpkg-deb"); err == nil {
		return extractWith(ctx, tool, deb, dir) // its xz runs on all cores: 2 s for a kernel where Go's takes 20
	}
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	data, err := dataMember(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", deb, err)
	}
	return extractTar(data, dir)
}

func extractWith(ctx context.Context, tool, deb, dir string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, "--fsys-tarfile", deb)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	terr := extractTar(bufio.NewReaderSize(out, 1<<20), dir)
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("dpkg-deb: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return terr
}

// dataMember finds data.tar.* in the ar archive that a .deb is.
func dataMember(r *bufio.Reader) (io.Reader, error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return nil, errors.New("is not a Debian package")
	}
	for {
		head := make([]byte, 60)
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, fmt.Errorf("has no data member: %w", err)
		}
		name := strings.TrimRight(string(head[:16]), " /")
		size, err := strconv.ParseInt(strings.TrimSpace(string(head[48:58])), 10, 64)
		if err != nil || size < 0 || string(head[58:]) != "`\n" {
			return nil, errors.New("has a damaged member header")
		}
		body := io.LimitReader(r, size)
		switch name {
		case "data.tar":
			return body, nil
		case "data.tar.xz":
			return xz.NewReader(body)
		case "data.tar.zst":
			d, err := zstd.NewReader(body)
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		}
		if strings.HasPrefix(name, "data.tar") {
			return nil, fmt.Errorf("packs its data as %s; xz and zst are read", name)
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, err
		}
	}
}

// extractTar writes below dir and nowhere else: os.Root refuses every way out.
func extractTar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)[1:]
		if name == "" {
			continue
		}
		if err := extractEntry(root, name, h, tr); err != nil {
			return err
		}
	}
}

func extractEntry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	perm := h.FileInfo().Mode().Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, perm|0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm|0o400)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			_ = f.Close()
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := f.Chmod(perm | 0o400); err != nil {
			_ = f.Close()
			return err
		}
		return f.Close()
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean("/" + h.Linkname)[1:], name)
	}
	return fmt.Errorf("%s: is of type %q, which no package here has", name, h.Typeflag)
}
