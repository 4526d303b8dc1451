package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Entry is a snapshot in one of its places.
type Entry struct {
	Name    string    `json:"name"`
	Place   string    `json:"place"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	Problem string    `json:"problem,omitempty"` // why it cannot be restored here, as far as it shows
}

// place is where snapshots are kept.
type place interface {
	String() string
	list(ctx context.Context) ([]Entry, error)
	put(ctx context.Context, name, file string) error
	get(ctx context.Context, name, file string) error
	remove(ctx context.Context, name string) error
}

// suffix ends the names of snapshots. They are tar files that hold a description and the data.
const suffix = ".snapshot"

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$`)

func newName(prefix, node string, at time.Time) string {
	return prefix + "-" + node + "-" + strconv.FormatInt(at.Unix(), 10) + suffix
}

// createdAt reads the time from a name, or gives another.
func createdAt(name string, other time.Time) time.Time {
	stem := strings.TrimSuffix(name, suffix)
	if i := strings.LastIndexByte(stem, '-'); i >= 0 {
		if n, err := strconv.ParseInt(stem[i+1:], 10, 64); err == nil {
			return time.Unix(n, 0)
		}
	}
	return other
}

// folder is a directory.
type folder string

func (d folder) String() string { return string(d) }

func (d folder) list(context.Context) ([]Entry, error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) || !f.Type().IsRegular() {
			continue
		}
		info, err := f.Info()
		if err != nil {
			continue // removed meanwhile
		}
		e := Entry{Name: f.Name(), Place: string(d), Size: info.Size(), Created: createdAt(f.Name(), info.ModTime())}
		if m, err := ReadMeta(filepath.Join(string(d), f.Name())); err != nil {
			e.Problem = err.Error()
		} else {
			e.Created = m.Created
		}
		out = append(out, e)
	}
	return out, nil
}

func (d folder) put(_ context.Context, name, file string) error {
	if err := os.Rename(file, filepath.Join(string(d), name)); err != nil {
		return err
	}
	return atomicfile.SyncDir(string(d))
}

func (d folder) get(_ context.Context, name, file string) error {
	in, err := os.Open(filepath.Join(string(d), name))
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (d folder) remove(_ context.Context, name string) error {
	if err := os.Remove(filepath.Join(string(d), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
