package repository

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/delta"
	"github.com/skerry-os/skerry/pkg/release"
)

// Why a client refuses; other errors are the network's or the disk's.
var (
	// ErrUntrusted means that the repository's metadata is expired, older than what was seen before, put together from
	// different days, larger than allowed, or not signed by whom it must be.
	ErrUntrusted = errors.New("the update source cannot be trusted")
	// ErrUnreachable means that nothing is known of the source: it did not answer.
	ErrUnreachable = errors.New("the update source does not answer")
)

// Client reads a repository on behalf of one machine. It is used for one look.
type Client struct {
	Source Source
	Root   []byte    // the trusted root metadata to begin with
	Dir    string    // what was seen of the metadata, which protects from being shown older
	Now    time.Time // zero: now
}

// Catalog is what a repository offered at one look, all of it checked.
type Catalog struct {
	client  *Client
	up      *updater.Updater
	Offers  []Offer
	Expires time.Time // of the timestamp
}

// Offer is a release in a repository.
type Offer struct {
	Notice
	base string
}

// Look fetches and checks the metadata.
func (c *Client) Look(ctx context.Context) (*Catalog, error) {
	if len(c.Root) == 0 {
		return nil, errors.New("this image was built without a repository's root key, so that no update can be trusted; build releases with a key folder that has roles (skerry keys roles)")
	}
	cfg, err := config.New("metadata", c.Root)
	if err != nil {
		return nil, fmt.Errorf("update source: %w", err)
	}
	f := &fetcher{ctx: ctx, src: c.Source}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.Fetcher = c.Dir, c.Dir, f
	cfg.MaxDelegations = 0
	up, err := updater.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("update source: %w", err)
	}
	if !c.Now.IsZero() {
		up.UnsafeSetRefTime(c.Now)
	}
	if err := sound(up.Refresh); err != nil {
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case f.failed != nil:
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, f.failed)
		}
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := settle(c.Dir); err != nil {
		return nil, err
	}
	k := &Catalog{client: c, up: up, Expires: up.GetTrustedMetadataSet().Timestamp.Signed.Expires}
	for name, t := range up.GetTopLevelTargets() {
		if t == nil {
			return nil, fmt.Errorf("%w: %s: nothing is said of it", ErrUntrusted, name)
		}
		if path.Base(name) != release.ManifestName || t.Custom == nil {
			continue
		}
		o := Offer{base: path.Dir(name)}
		if err := json.Unmarshal(*t.Custom, &o.Notice); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUntrusted, name, err)
		}
		if o.base != path.Join(o.Arch, o.Version) {
			return nil, fmt.Errorf("%w: %s: says that it is %s for %s", ErrUntrusted, name, o.Version, o.Arch)
		}
		k.Offers = append(k.Offers, o)
	}
	return k, nil
}

// sound turns a panic into an error: go-tuf falls over metadata that says null where an entry must be (theupdateframework/go-tuf v2.4.2,
// updater.loadTargets), and whoever has the key of timestamp or snapshot could end every node by it.
func sound(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the metadata is not in the expected form: %v", r)
		}
	}()
	return do()
}

// settle makes what was seen of the metadata durable.
func settle(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(dir)
}

// file gives a target of the offer, and where the source has it.
func (k *Catalog) file(o Offer, name string) (release.File, string, error) {
	t, err := k.up.GetTargetInfo(path.Join(o.base, name))
	if err != nil {
		return release.File{}, "", fmt.Errorf("release %s: the repository has no %s: %w", o.Version, name, err)
	}
	sum := hex.EncodeToString(t.Hashes["sha256"])
	if len(sum) != 2*sha256.Size {
		return release.File{}, "", fmt.Errorf("%w: %s: has no sha256", ErrUntrusted, name)
	}
	return release.File{Path: name, Size: t.Length, SHA256: sum}, path.Join("targets", o.base, sum+"."+name), nil
}

// read fetches a small target whole.
func (k *Catalog) read(ctx context.Context, o Offer, name string, limit int64) ([]byte, error) {
	f, at, err := k.file(o, name)
	if err != nil {
		return nil, err
	}
	if f.Size > limit {
		return nil, fmt.Errorf("%w: %s: is %d bytes; at most %d are read", ErrUntrusted, name, f.Size, limit)
	}
	r, err := k.client.Source.Open(ctx, at, 0, f.Size)
	if err != nil {
		return nil, fmt.Errorf("release %s: %s: %w", o.Version, name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, f.Size+1))
	if err != nil {
		return nil, fmt.Errorf("release %s: %s: %w", o.Version, name, err)
	}
	if err := f.Check(strings.NewReader(string(data))); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return data, nil
}

// Package is a release that a machine may fetch: signed by whom it trusts, and what the repository said it is.
type Package struct {
	Offer   Offer
	Release *release.Release
	Index   *delta.Index
	catalog *Catalog
}

// Package fetches an offer's manifest and block index, and checks the one against the trusted keys and the other against it.
func (k *Catalog) Package(ctx context.Context, o Offer, verify func(manifest, sig []byte) (*release.Release, error)) (*Package, error) {
	manifest, err := k.read(ctx, o, release.ManifestName, release.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	sig, err := k.read(ctx, o, release.SignatureName, release.MaxSignatureBytes)
	if err != nil {
		return nil, err
	}
	rel, err := verify(manifest, sig)
	if err != nil {
		return nil, err
	}
	m := rel.Manifest()
	if m.Version != o.Version || m.Arch != o.Arch {
		return nil, fmt.Errorf("%w: the manifest of %s for %s is that of %s for %s", ErrUntrusted, o.Version, o.Arch, m.Version, m.Arch)
	}
	data, err := k.read(ctx, o, delta.IndexName, delta.MaxIndexBytes)
	if err != nil {
		return nil, err
	}
	x, err := delta.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", o.Version, err)
	}
	if x.Size != m.Root.Size {
		return nil, fmt.Errorf("%w: release %s: the block index is of %d bytes; the root has %d", ErrUntrusted, o.Version, x.Size, m.Root.Size)
	}
	return &Package{Offer: o, Release: rel, Index: x, catalog: k}, nil
}

// Root reads size bytes of the root at an offset. What comes is not checked yet.
func (p *Package) Root(ctx context.Context, at, size int64) (io.ReadCloser, error) {
	f, name, err := p.catalog.file(p.Offer, rootName)
	if err != nil {
		return nil, err
	}
	if at < 0 || size < 0 || at+size > f.Size || f.Size != p.Release.Manifest().Root.Size {
		return nil, fmt.Errorf("%w: root.img is %d bytes", ErrUntrusted, f.Size)
	}
	return p.catalog.client.Source.Open(ctx, name, at, size)
}

// Compressed reads the whole root, compressed with zstd, and says how long it is. What comes is not checked yet.
func (p *Package) Compressed(ctx context.Context) (io.ReadCloser, int64, error) {
	f, name, err := p.catalog.file(p.Offer, CompressedName)
	if err != nil {
		return nil, 0, err
	}
	r, err := p.catalog.client.Source.Open(ctx, name, 0, f.Size)
	return r, f.Size, err
}

// Kernel reads the kernel image of a board and says what it must be, by the manifest.
func (p *Package) Kernel(ctx context.Context, board string) (io.ReadCloser, release.File, error) {
	b, ok := p.Release.Manifest().Boards[board]
	if !ok {
		return nil, release.File{}, fmt.Errorf("release %s: has nothing for board %s", p.Offer.Version, board)
	}
	f, name, err := p.catalog.file(p.Offer, board+kernelSuffix)
	if err != nil {
		return nil, release.File{}, err
	}
	if f.SHA256 != b.Boot.SHA256 || f.Size != b.Boot.Size {
		return nil, release.File{}, fmt.Errorf("%w: %s.efi is not the one that the manifest names", ErrUntrusted, board)
	}
	r, err := p.catalog.client.Source.Open(ctx, name, 0, f.Size)
	return r, b.Boot, err
}

// Patch makes a file of the release out of one that a machine has. What comes is not checked yet.
type Patch struct {
	*delta.Patch
	open func(ctx context.Context, at, size int64) (io.ReadCloser, error)
}

// RootPatch finds the patch from a root of an older release, by its digest. That there is none is fs.ErrNotExist.
func (p *Package) RootPatch(ctx context.Context, from string) (*Patch, error) {
	return p.patch(ctx, rootName, from, p.Release.Manifest().Root.Size)
}

// KernelPatch finds the patch from a kernel image of an older release, by its digest. That there is none is fs.ErrNotExist.
func (p *Package) KernelPatch(ctx context.Context, board, from string) (*Patch, error) {
	return p.patch(ctx, board+kernelSuffix, from, p.Release.Manifest().Boards[board].Boot.Size)
}

func (p *Package) patch(ctx context.Context, name, from string, size int64) (*Patch, error) {
	name = delta.PatchName(name, from)
	f, at, err := p.catalog.file(p.Offer, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	x := &Patch{open: func(ctx context.Context, from, size int64) (io.ReadCloser, error) {
		return p.catalog.client.Source.Open(ctx, at, from, size)
	}}
	head, err := x.read(ctx, delta.Span{Size: delta.PatchHead(size)})
	if err != nil {
		return nil, err
	}
	if x.Patch, err = delta.ParsePatch(head, size); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if end := x.Frame(x.Frames() - 1); end.At+end.Size != f.Size {
		return nil, fmt.Errorf("%s: ends at %d; is %d bytes", name, end.At+end.Size, f.Size)
	}
	return x, nil
}

// Read fetches a frame.
func (x *Patch) Read(ctx context.Context, n int) ([]byte, error) { return x.read(ctx, x.Frame(n)) }

func (x *Patch) read(ctx context.Context, s delta.Span) ([]byte, error) {
	r, err := x.open(ctx, s.At, s.Size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, s.Size)
	_, err = io.ReadFull(r, b)
	return b, err
}

// Source is where a repository's files are.
type Source interface {
	// Open reads size bytes at an offset; a file that is not there is fs.ErrNotExist. The reader may end early.
	Open(ctx context.Context, name string, at, size int64) (io.ReadCloser, error)
	String() string
}

// NewSource takes an http or https address or an absolute path.
func NewSource(where string, client *http.Client) (Source, error) {
	switch {
	case strings.HasPrefix(where, "http://"), strings.HasPrefix(where, "https://"):
		return &web{strings.TrimSuffix(where, "/"), client}, nil
	case filepath.IsAbs(where):
		return folder(where), nil
	}
	return nil, fmt.Errorf("update source %q: is neither an http(s) address nor an absolute path", where)
}

// folder is a repository on a filesystem, such as a USB stick's.
type folder string

func (d folder) String() string { return string(d) }

func (d folder) Open(_ context.Context, name string, at, size int64) (io.ReadCloser, error) {
	f, err := os.OpenInRoot(string(d), filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(f, at, size), f}, nil
}

type section struct {
	io.Reader
	io.Closer
}

// web is a repository on any web server that knows ranges; from one that does not, what stands before is read over.
type web struct {
	base   string
	client *http.Client
}

func (w *web) String() string { return w.base }

func (w *web) Open(ctx context.Context, name string, at, size int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	ranged := at > 0 || size > 0 && strings.HasPrefix(name, "targets/")
	if ranged {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+size-1))
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case res.StatusCode == http.StatusOK && at > 0:
		if _, err := io.CopyN(io.Discard, res.Body, at); err != nil {
			_ = res.Body.Close()
			return nil, fmt.Errorf("%s: %w", req.URL, err)
		}
	case res.StatusCode == http.StatusOK, res.StatusCode == http.StatusPartialContent && ranged:
	case res.StatusCode == http.StatusNotFound:
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s: %w", req.URL, fs.ErrNotExist)
	default:
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s: the server says %s", req.URL, res.Status)
	}
	if size > 0 {
		return section{io.LimitReader(res.Body, size), res.Body}, nil
	}
	return res.Body, nil
}

// fetcher gives go-tuf the metadata files. It remembers what was the source's fault and not the metadata's.
type fetcher struct {
	ctx    context.Context
	src    Source
	failed error
}

func (f *fetcher) DownloadFile(name string, limit int64, _ time.Duration) ([]byte, error) {
	r, err := f.src.Open(f.ctx, name, 0, limit+1)
	if errors.Is(err, fs.ErrNotExist) {
		if path.Base(name) == "timestamp.json" {
			f.failed = err
		}
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: name}
	}
	if err != nil {
		f.failed = err
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		f.failed = err
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("%s: is larger than %d bytes", name, limit)}
	}
	return data, nil
}
