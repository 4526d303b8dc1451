// Package atomicfile writes files that must survive a power cut. A reader, also after a crash at any instant, finds the
// old content or the new, never a part. Every write of that kind in Skerry goes through here.
//
// The order is the one ext4, btrfs, XFS and FAT all honour: write a temporary file in the same folder, fsync it, rename it
// over the name, fsync the folder.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Write stores data under name with exactly the permissions perm (the umask does not apply). After it returns nil, the
// data is on the disk. After an error, the old content is in place.
func Write(name string, data []byte, perm fs.FileMode) error {
	f, err := Create(name, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// File is a file that gets its name only by Commit.
type File struct {
	*os.File
	name string
	done bool
}

// Create opens a temporary file beside name. The caller writes it and then calls Commit; a deferred Abort cleans up on
// every other way out.
func Create(name string, perm fs.FileMode) (*File, error) {
	dir, base := filepath.Split(name)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+base+".tmp-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := f.Chmod(perm); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &File{File: f, name: name}, nil
}

// Commit makes the written bytes durable under the final name.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("%s: %w", f.name, fs.ErrClosed)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%s: making it durable: %w", f.name, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if err := os.Rename(f.Name(), f.name); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	f.done = true
	return SyncDir(filepath.Dir(f.name))
}

// Abort drops the temporary file. After Commit it does nothing.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// SyncDir makes names that were created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // which writes names before it returns, and opens no folder for it
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("%s: making its names durable: %w", dir, err)
	}
	return nil
}
