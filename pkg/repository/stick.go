package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/skerry-os/skerry/image/fat"
)

// StickFolder is where a repository lies on a USB stick: in a folder of this name, or at the top.
const StickFolder = "skerry"

// stick is a repository on a FAT volume, read without being mounted: nothing but this program trusts what is on it.
type stick struct {
	name  string
	files map[string]fat.Found
}

// NewStick looks for a repository on the FAT volume r. A volume that holds none is fs.ErrNotExist.
func NewStick(name string, r io.ReaderAt, size int64) (Source, error) {
	v, err := fat.Read(r, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(fs.ErrNotExist, err))
	}
	for _, folder := range []string{StickFolder + "/", ""} {
		s := &stick{name: name, files: map[string]fat.Found{}}
		for _, f := range v.Files {
			if len(f.Path) > len(folder) && strings.EqualFold(f.Path[:len(folder)], folder) {
				s.files[strings.ToLower(f.Path[len(folder):])] = f
			}
		}
		if _, ok := s.files["metadata/timestamp.json"]; ok {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s: holds no repository: %w", name, fs.ErrNotExist)
}

func (s *stick) String() string { return s.name }

func (s *stick) Open(_ context.Context, name string, at, size int64) (io.ReadCloser, error) {
	f, ok := s.files[strings.ToLower(name)]
	if !ok {
		return nil, fmt.Errorf("%s: %s: %w", s.name, name, fs.ErrNotExist)
	}
	return io.NopCloser(io.LimitReader(f.OpenAt(at), size)), nil
}
