//go:build !linux

package fleet

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

func reflink(_, _ *os.File) error { return errors.ErrUnsupported }

func canReflink(_, _ string) bool { return false }

func copySparse(to, from *os.File) (int64, error) { return io.Copy(to, from) }

// syncFolder makes each file of the folder durable.
func syncFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	var errs []error
	for _, e := range entries {
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, err)...)
}
