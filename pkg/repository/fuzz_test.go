package repository_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"testing"

	"github.com/skerry-os/skerry/pkg/repository"
)

// answers gives the same bytes for every file.
type answers struct{ data []byte }

func (a answers) String() string { return "answers" }

func (a answers) Open(_ context.Context, name string, at, size int64) (io.ReadCloser, error) {
	if len(a.data) == 0 {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(io.LimitReader(bytes.NewReader(a.data[min(at, int64(len(a.data))):]), size)), nil
}

// Whatever a server answers, a look at it ends in an error and nothing is offered.
func FuzzMetadata(f *testing.F) {
	roles, err := repository.NewRoles(f.TempDir(), now)
	if err != nil {
		f.Fatal(err)
	}
	root, err := roles.Root()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(root)
	f.Add([]byte(`{"signed":{"_type":"timestamp","version":1,"spec_version":"1.0.31","expires":"2030-01-01T00:00:00Z","meta":{"snapshot.json":{"version":1}}},"signatures":[]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := (&repository.Client{Source: answers{data}, Root: root, Dir: t.TempDir(), Now: now}).Look(t.Context())
		if err == nil {
			t.Errorf("believed, and offered %v", k.Offers)
		}
	})
}
