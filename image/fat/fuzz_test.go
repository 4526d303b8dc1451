package fat_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/powercut"
)

// Whatever the first sectors of a volume say, reading it ends, and changing it does not make it worse than an error.
func FuzzVolume(f *testing.F) {
	whole := volume(f, map[string]string{"l/os-a.efi": "kernel", "loader.conf": "default a\n"}).Bytes()
	// The parts that say anything: boot sectors, the head of both tables, the folders.
	f.Add(whole[:sample], uint32(0))
	f.Add(whole[:sample], uint32(1))
	f.Fuzz(func(t *testing.T, head []byte, at uint32) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b)/powercut.Sector*powercut.Sector:], head)
		d := powercut.New(b)
		if v, err := fat.Read(d, int64(len(b))); err == nil {
			for _, file := range v.Files {
				if n, err := io.Copy(io.Discard, file.Open()); err == nil && n != file.Size {
					t.Errorf("%s: %d bytes of %d", file.Path, n, file.Size)
				}
			}
		}
		if e, err := fat.Edit(d, int64(len(b)), noon); err == nil {
			if err := e.Write("l/new", 5, bytes.NewReader([]byte("hello"))); err == nil {
				if got, ok, err := e.ReadFile("l/new", 5); err != nil || !ok || string(got) != "hello" {
					t.Errorf("reads %q, %v, %v", got, ok, err)
				}
			}
		}
	})
}

const sample = 4096
