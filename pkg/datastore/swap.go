package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// A restore of SQLite is staged: the new file is made whole and durable as state.db.restored, and then takes the place of the
// old one in steps that can be done again. Whatever cuts it short, the next start finishes it before it opens anything.

func (c Config) staged() string { return c.File() + ".restored" }

// Restore makes a new database of the snapshot's rows and puts it in place.
func (s *sqliteStore) Restore(ctx context.Context, snapshot string) (aside string, err error) {
	if err := s.Stage(ctx, snapshot); err != nil {
		return "", err
	}
	return swap(s.Dir)
}

// Stager is a Store that can restore at its next start, while it runs on what it has until then.
type Stager interface {
	Stage(ctx context.Context, snapshot string) error
}

// Stage does all of a restore but taking the old file's place.
func (s *sqliteStore) Stage(ctx context.Context, snapshot string) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	from, err := openSnapshot(ctx, snapshot)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	partial := s.staged() + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	to, err := createFile(partial)
	if err != nil {
		return err
	}
	err = insertAll(ctx, to, "?,?,?,0,?,?,?,?", func(insert func(row) error) error { return restored(ctx, from, insert) })
	if err := errors.Join(err, to.Close()); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", snapshot, err), os.Remove(partial))
	}
	if err := syncFile(partial); err != nil {
		return err
	}
	if err := os.Rename(partial, s.staged()); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.Dir)
}

// finishSwap completes a restore that was staged or interrupted.
func finishSwap(dir string) error {
	if _, err := os.Stat((Config{Dir: dir}).staged()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := swap(dir)
	return err
}

// swap puts the staged file in place of the old one, which it keeps. The names depend on the staged file alone, so that a
// second run finds what the first one did.
func swap(dir string) (aside string, err error) {
	c := Config{Dir: dir}
	info, err := os.Stat(c.staged())
	if err != nil {
		return "", err
	}
	kept := c.File() + ".before-" + info.ModTime().UTC().Format("20060102T150405.000")
	// The log belongs to the old file: in front of the new one SQLite would play it back into it. So it goes first; the old file
	// alone is what it was at its last checkpoint.
	for _, suffix := range []string{"-wal", ""} {
		err := os.Link(c.File()+suffix, kept+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return "", err
	}
	for _, f := range []string{c.File() + "-wal", c.File() + "-shm", c.damagedMark()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return "", err
	}
	if err := os.Rename(c.staged(), c.File()); err != nil {
		return "", err
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return "", err
	}
	if _, err := os.Stat(kept); err != nil {
		return "", nil //nolint:nilerr // there was no old file
	}
	return kept, nil
}

// damagedMark is there when a running server found its file damaged, so that the next start need not find it again.
func (c Config) damagedMark() string { return filepath.Join(c.Dir, "state.db.damaged") }

func (c Config) markDamaged() error {
	return atomicfile.Write(c.damagedMark(), []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o600)
}

func (c Config) markedDamaged() bool {
	_, err := os.Stat(c.damagedMark())
	return err == nil
}
