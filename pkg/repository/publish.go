package repository

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/delta"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
)

// DefaultChannel is the channel of machines and releases that name none.
const DefaultChannel = "stable"

// CompressedName is the whole root for machines that have none of it.
const CompressedName = "root.img.zst"

// How a root and the kernel image of a board are called in a repository.
const (
	rootName     = "root.img"
	kernelSuffix = ".efi"
)

// Wave says when a share of the machines may have a release.
type Wave struct {
	After   time.Duration `json:"after"`   // since it was published
	Percent int           `json:"percent"` // of all machines, from then on
}

// Notice is what a publisher says of a release beyond its manifest; it stands at the manifest's entry in the targets metadata.
type Notice struct {
	Version   string    `json:"version"`
	Arch      string    `json:"arch"`
	Boards    []string  `json:"boards"`
	Channel   string    `json:"channel"`
	Published time.Time `json:"published"`
	Minimum   string    `json:"minimum,omitempty"` // the oldest version that can be updated to this one
	Stone     bool      `json:"stone,omitempty"`   // a machine that is older must run this one before any newer
	Waves     []Wave    `json:"waves,omitempty"`   // none: all at once
	// Kubernetes is its version, for those who bring a cluster to the release in an order.
	Kubernetes string `json:"kubernetes,omitempty"`
}

// PublishOptions are what a person decides.
type PublishOptions struct {
	Channel   string
	Minimum   string
	Stone     bool
	Waves     []Wave
	Patches   int                      // from how many of the releases before it machines get patches
	Say       func(string)             // progress, a line each; may be nil
	Lifetimes map[string]time.Duration // by role; the rest from Lifetimes
	Now       time.Time
}

// Publish puts a release into the repository at dir, which it makes if need be. A reader sees the repository of before or of
// after: names of files hold their digests or versions, and the timestamp comes last.
func Publish(dir string, r *Roles, rel *release.Release, files fs.FS, o PublishOptions) (*Notice, error) {
	m := rel.Manifest()
	n := &Notice{Version: m.Version, Arch: m.Arch, Boards: m.BoardIDs(), Channel: o.Channel, Published: o.Now.UTC().Truncate(time.Second), Minimum: o.Minimum, Stone: o.Stone, Waves: o.Waves, Kubernetes: m.Kubernetes}
	if n.Channel == "" {
		n.Channel = DefaultChannel
	}
	last := 0
	for _, w := range n.Waves {
		if w.Percent <= last || w.Percent > 100 || w.After < 0 {
			return nil, fmt.Errorf("waves: %d %% after %v: shares must rise, to 100 at most", w.Percent, w.After)
		}
		last = w.Percent
	}
	if err := r.canPublish(); err != nil {
		return nil, err
	}
	state, err := open(dir)
	if err != nil {
		return nil, err
	}
	base := path.Join(m.Arch, m.Version)
	put := func(name string, src io.Reader, custom *Notice) error {
		t, err := store(dir, path.Join(base, name), src)
		if err != nil {
			return err
		}
		if custom != nil {
			data, err := json.Marshal(custom)
			if err != nil {
				return err
			}
			raw := json.RawMessage(data)
			t.Custom = &raw
		}
		state.targets.Signed.Targets[t.Path] = t
		return nil
	}
	manifest, sig := rel.Bytes()
	if old := state.targets.Signed.Targets[path.Join(base, release.ManifestName)]; old != nil {
		sum := sha256.Sum256(manifest)
		if !bytes.Equal(old.Hashes["sha256"], sum[:]) {
			return nil, fmt.Errorf("release %s for %s: is in the repository already, with another content; give the new one a version of its own", m.Version, m.Arch)
		}
	}
	if err := errors.Join(put(release.ManifestName, bytes.NewReader(manifest), n), put(release.SignatureName, bytes.NewReader(sig), nil)); err != nil {
		return nil, err
	}
	for _, id := range n.Boards {
		if err := withFile(files, m.Boards[id].Boot, func(src io.Reader) error { return put(id+kernelSuffix, src, nil) }); err != nil {
			return nil, err
		}
	}
	if err := withFile(files, m.Root.File, func(src io.Reader) error { return put(rootName, src, nil) }); err != nil {
		return nil, err
	}
	if err := withFile(files, m.Root.File, func(src io.Reader) error {
		x, err := delta.Build(src, m.Root.Size)
		if err != nil {
			return err
		}
		return put(delta.IndexName, bytes.NewReader(x.Marshal()), nil)
	}); err != nil {
		return nil, err
	}
	if err := withFile(files, m.Root.File, func(src io.Reader) error {
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(compress(pw, src)) }()
		return put(CompressedName, pr, nil)
	}); err != nil {
		return nil, err
	}
	for _, old := range state.before(n, o.Patches) {
		if err := patches(state, old, m, put, o.Say); err != nil {
			return nil, fmt.Errorf("patches from release %s: %w", old, err)
		}
	}
	return n, state.sign(r, o)
}

// before lists the versions of the newest releases that machines may run who are offered n.
func (s *state) before(n *Notice, most int) []string {
	var out []string
	for name, t := range s.targets.Signed.Targets {
		var old Notice
		if path.Base(name) != release.ManifestName || t.Custom == nil || json.Unmarshal(*t.Custom, &old) != nil {
			continue
		}
		if old.Arch == n.Arch && old.Channel == n.Channel && release.CompareVersions(old.Version, n.Version) < 0 &&
			(n.Minimum == "" || release.CompareVersions(old.Version, n.Minimum) >= 0) {
			out = append(out, old.Version)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return release.CompareVersions(b, a) })
	return out[:min(most, len(out))]
}

// patches makes those from an older release in the repository to the root and the kernel images of a new one. What is not there
// any more has none; one that saves little is not kept.
func patches(s *state, version string, m *release.Manifest, put func(string, io.Reader, *Notice) error, say func(string)) error {
	names := []string{rootName}
	for _, id := range m.BoardIDs() {
		names = append(names, id+kernelSuffix)
	}
	total := 0
	for _, name := range names {
		before, sum, err := s.content(path.Join(m.Arch, version, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		after, _, err := s.content(path.Join(m.Arch, m.Version, name))
		if err != nil {
			return err
		}
		if len(before) == 0 || int64(len(before)) > delta.MaxPatched || int64(len(after)) > delta.MaxPatched {
			continue
		}
		var b bytes.Buffer
		if err := delta.Diff(&b, before, after); err != nil {
			return err
		}
		if b.Len() > len(after)/2 {
			continue
		}
		total += b.Len()
		if err := put(delta.PatchName(name, sum), &b, nil); err != nil {
			return err
		}
	}
	if say != nil {
		say(fmt.Sprintf("patches from release %s: %v", version, size.Bytes(total).Rounded()))
	}
	return nil
}

// content reads a target that the repository has, and gives its digest.
func (s *state) content(name string) ([]byte, string, error) {
	t, ok := s.targets.Signed.Targets[name]
	if !ok {
		return nil, "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	sum := hex.EncodeToString(t.Hashes["sha256"])
	data, err := os.ReadFile(filepath.Join(s.dir, "targets", filepath.FromSlash(path.Dir(name)), sum+"."+path.Base(name)))
	if err != nil {
		return nil, "", err
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
		return nil, "", fmt.Errorf("%s: is damaged: its sha256 is not %.8s", name, sum)
	}
	return data, sum, nil
}

func compress(w io.Writer, src io.Reader) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, src); err != nil {
		return err
	}
	return z.Close()
}

// withFile reads a file of the release and holds it against the manifest.
func withFile(files fs.FS, f release.File, do func(io.Reader) error) error {
	src, err := files.Open(f.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	h := sha256.New()
	if err := do(io.TeeReader(src, h)); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("%s: sha256 is %.8s; the release says %.8s; build the release again", f.Path, got, f.SHA256)
	}
	return nil
}

// store copies a target to its name with the digest in it.
func store(dir, name string, src io.Reader) (*metadata.TargetFiles, error) {
	to := filepath.Join(dir, "targets", filepath.FromSlash(path.Dir(name)))
	if err := os.MkdirAll(to, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(to, ".new-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = tmp.Close(); _ = os.Remove(tmp.Name()) }()
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(tmp, h), src)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	sum := h.Sum(nil)
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(to, hex.EncodeToString(sum)+"."+path.Base(name))); err != nil {
		return nil, err
	}
	t := metadata.TargetFile()
	t.Path, t.Length, t.Hashes = name, size, metadata.Hashes{"sha256": sum}
	return t, atomicfile.SyncDir(to)
}

// state is the metadata of a repository.
type state struct {
	dir       string
	targets   *metadata.Metadata[metadata.TargetsType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	timestamp *metadata.Metadata[metadata.TimestampType]
}

func open(dir string) (*state, error) {
	s := &state{dir: dir, targets: metadata.Targets(), snapshot: metadata.Snapshot(), timestamp: metadata.Timestamp()}
	s.targets.Signed.Version, s.snapshot.Signed.Version, s.timestamp.Signed.Version = 0, 0, 0
	data, err := os.ReadFile(s.file("timestamp.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if s.timestamp, err = metadata.Timestamp().FromBytes(data); err != nil {
		return nil, fmt.Errorf("%s: %w", s.file("timestamp.json"), err)
	}
	next := s.timestamp.Signed.Meta["snapshot.json"]
	if next == nil {
		return nil, fmt.Errorf("%s: names no snapshot.json", s.file("timestamp.json"))
	}
	name := fmt.Sprintf("%d.snapshot.json", next.Version)
	if s.snapshot, err = metadata.Snapshot().FromFile(s.file(name)); err != nil {
		return nil, fmt.Errorf("%s: %w", s.file(name), err)
	}
	if next = s.snapshot.Signed.Meta["targets.json"]; next == nil {
		return nil, fmt.Errorf("%s: names no targets.json", s.file(name))
	}
	name = fmt.Sprintf("%d.targets.json", next.Version)
	if s.targets, err = metadata.Targets().FromFile(s.file(name)); err != nil {
		return nil, fmt.Errorf("%s: %w", s.file(name), err)
	}
	return s, nil
}

func (s *state) file(name string) string { return filepath.Join(s.dir, "metadata", name) }

// sign gives everything a new version and a new life.
func (s *state) sign(r *Roles, o PublishOptions) error {
	if err := os.MkdirAll(filepath.Join(s.dir, "metadata"), 0o755); err != nil {
		return err
	}
	history, err := r.rootHistory()
	if err != nil {
		return err
	}
	for n, data := range history {
		if err := atomicfile.Write(s.file(fmt.Sprintf("%d.root.json", n)), data, 0o644); err != nil {
			return err
		}
	}
	expires := func(role string) time.Time {
		life, ok := o.Lifetimes[role]
		if !ok {
			life = Lifetimes[role]
		}
		return o.Now.Add(life).UTC().Truncate(time.Second)
	}
	s.targets.ClearSignatures()
	s.targets.Signed.Version++
	s.targets.Signed.Expires = expires(metadata.TARGETS)
	if _, err := s.targets.Sign(signer{r.keys[metadata.TARGETS]}); err != nil {
		return err
	}
	data, err := s.targets.ToBytes(false)
	if err != nil {
		return err
	}
	s.snapshot.Signed.Meta["targets.json"] = describe(s.targets.Signed.Version, data)
	if err := atomicfile.Write(s.file(fmt.Sprintf("%d.targets.json", s.targets.Signed.Version)), data, 0o644); err != nil {
		return err
	}
	s.snapshot.ClearSignatures()
	s.snapshot.Signed.Version++
	s.snapshot.Signed.Expires = expires(metadata.SNAPSHOT)
	if _, err := s.snapshot.Sign(signer{r.keys[metadata.SNAPSHOT]}); err != nil {
		return err
	}
	if data, err = s.snapshot.ToBytes(false); err != nil {
		return err
	}
	s.timestamp.Signed.Meta["snapshot.json"] = describe(s.snapshot.Signed.Version, data)
	if err := atomicfile.Write(s.file(fmt.Sprintf("%d.snapshot.json", s.snapshot.Signed.Version)), data, 0o644); err != nil {
		return err
	}
	s.timestamp.ClearSignatures()
	s.timestamp.Signed.Version++
	s.timestamp.Signed.Expires = expires(metadata.TIMESTAMP)
	if _, err := s.timestamp.Sign(signer{r.keys[metadata.TIMESTAMP]}); err != nil {
		return err
	}
	if data, err = s.timestamp.ToBytes(false); err != nil {
		return err
	}
	return atomicfile.Write(s.file("timestamp.json"), data, 0o644)
}

func describe(version int64, data []byte) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	return &metadata.MetaFiles{Version: version, Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
}

// Refresh signs the repository again as it is, so that it does not expire.
func Refresh(dir string, r *Roles, o PublishOptions) error {
	if err := r.canPublish(); err != nil {
		return err
	}
	s, err := open(dir)
	if err != nil {
		return err
	}
	if s.targets.Signed.Version == 0 {
		return fmt.Errorf("%s: holds no repository", dir)
	}
	return s.sign(r, o)
}
