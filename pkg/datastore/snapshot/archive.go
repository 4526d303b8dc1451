package snapshot

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/datastore"
)

const (
	// format is raised when an older release could not read what a newer one writes.
	format = 1

	metaFile = "snapshot.json"
	dataFile = "data.zst"

	maxMeta = 1 << 20
)

// The contents that a snapshot may have. Every datastore of kine's can restore a snapshot of every other.
const (
	contentKine = "kine"
	contentEtcd = "etcd"
)

// Meta is what a snapshot says of itself.
type Meta struct {
	Format     int                `json:"format"`
	Name       string             `json:"name"`
	Node       string             `json:"node"`
	Datastore  string             `json:"datastore"` // its kind
	Content    string             `json:"content"`
	Created    time.Time          `json:"created"`
	Revision   datastore.Revision `json:"revision"`
	Skerry     string             `json:"skerry"`
	Kubernetes string             `json:"kubernetes"`
	SHA256     string             `json:"sha256"` // of data.zst
}

// ErrNewer is in the error about a snapshot of a version that this one does not know.
var ErrNewer = errors.New("is from a newer version")

func contentOf(kind string) string {
	if kind == datastore.Etcd {
		return contentEtcd
	}
	return contentKine
}

// pack makes a snapshot of what a store wrote. After it returns nil, the file is on the disk.
func pack(m Meta, data, file string) error {
	compressed := data + ".zst"
	defer os.Remove(compressed) //nolint:errcheck // it is in a temporary folder
	size, sum, err := compress(data, compressed)
	if err != nil {
		return err
	}
	m.SHA256 = sum
	meta, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	out, err := atomicfile.Create(file, 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	w := tar.NewWriter(out)
	in, err := os.Open(compressed)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	header := func(name string, size int64) error {
		return w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: m.Created, Format: tar.FormatUSTAR})
	}
	if err := header(metaFile, int64(len(meta))); err != nil {
		return err
	}
	if _, err := w.Write(meta); err != nil {
		return err
	}
	if err := header(dataFile, size); err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Commit()
}

func compress(from, to string) (size int64, sum string, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, "", err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, "", err
	}
	hash := sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(out, hash), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, "", errors.Join(err, out.Close())
	}
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close()); err != nil {
		return 0, "", errors.Join(err, out.Close())
	}
	size, err = out.Seek(0, io.SeekCurrent)
	return size, hex.EncodeToString(hash.Sum(nil)), errors.Join(err, out.Close())
}

// readMeta reads what a snapshot says of itself and leaves r before the data.
func readMeta(file string, r *tar.Reader) (m Meta, err error) {
	h, err := r.Next()
	if err != nil || h.Name != metaFile || h.Size > maxMeta {
		return m, fmt.Errorf("%s: is not a snapshot of Skerry", file)
	}
	data, err := io.ReadAll(r)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return m, fmt.Errorf("%s: is damaged: %s: %w", file, metaFile, err)
	}
	if m.Format > format {
		return m, fmt.Errorf("%s: %w (format %d, written by Skerry %s); update this machine first", file, ErrNewer, m.Format, m.Skerry)
	}
	if h, err = r.Next(); err != nil || h.Name != dataFile {
		return m, fmt.Errorf("%s: is damaged: it ends before %s", file, dataFile)
	}
	return m, nil
}

// ReadMeta reads what a snapshot file says of itself.
func ReadMeta(file string) (Meta, error) {
	f, err := os.Open(file)
	if err != nil {
		return Meta{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	return readMeta(file, tar.NewReader(f))
}

// unpack writes a snapshot's data to a new file, once its checksum is right.
func unpack(file, data string) (m Meta, err error) {
	f, err := os.Open(file)
	if err != nil {
		return Meta{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	r := tar.NewReader(f)
	if m, err = readMeta(file, r); err != nil {
		return m, err
	}
	hash := sha256.New()
	raw := io.TeeReader(r, hash)
	z, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return m, err
	}
	defer z.Close()
	out, err := os.OpenFile(data, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return m, err
	}
	_, err = io.Copy(out, z)
	if err == nil {
		_, err = io.Copy(io.Discard, raw) // what the decompressor did not ask for counts too
	}
	err = errors.Join(err, out.Close())
	if sum := hex.EncodeToString(hash.Sum(nil)); err != nil || sum != m.SHA256 {
		_ = os.Remove(data)
		return m, fmt.Errorf("%s: is damaged: the checksum of its data is %.12s, it should be %.12s; use another snapshot", file, sum, m.SHA256)
	}
	return m, nil
}

// fits says whether this version can use the data of a snapshot.
func (m Meta) fits(kubernetes, kind string) error {
	theirs, ours := minor(m.Kubernetes), minor(kubernetes)
	if theirs > ours && ours > 0 {
		return fmt.Errorf("%s: %w: it was written by Kubernetes %s, and this is %s; update this machine first", m.Name, ErrNewer, m.Kubernetes, kubernetes)
	}
	if m.Content != contentOf(kind) {
		return fmt.Errorf("%s: holds the data of %s, and this server uses %s; restore it on a server that uses %[2]s", m.Name, m.Datastore, kind)
	}
	return nil
}

// minor is the number of v1.NUMBER.x, or 0.
func minor(version string) int {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(parts[1])
	return n
}

// inFolder calls f with a folder beside dir's files that is gone afterwards.
func inFolder(dir string, f func(tmp string) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, partial+"*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // sweep finds what is left
	return f(tmp)
}

const partial = ".partial-"

// sweep removes what an earlier process left behind in the middle of its work.
func sweep(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, partial+"*"))
	for _, o := range old {
		if info, err := os.Stat(o); err == nil && time.Since(info.ModTime()) > time.Hour {
			_ = os.RemoveAll(o)
		}
	}
}

// verify reads a whole snapshot.
func verify(_ context.Context, file string) (m Meta, err error) {
	err = inFolder(filepath.Dir(file), func(tmp string) error {
		m, err = unpack(file, filepath.Join(tmp, "data"))
		return err
	})
	return m, err
}
