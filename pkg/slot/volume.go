package slot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/skerry-os/skerry/image/fat"
)

// Volume is the FAT volume that the firmware reads. Nothing else may have it mounted.
type Volume struct {
	Device fat.Device
	Size   int64
}

func (v Volume) edit() (*fat.Editor, error) {
	if v.Device == nil {
		return nil, errors.New("the partition that the firmware reads is not known")
	}
	e, err := fat.Edit(v.Device, v.Size, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the partition that the firmware reads: %w", err)
	}
	return e, nil
}

// Variables changes the firmware's variables: names as in efivarfs, data without the attributes in front.
type Variables interface {
	Write(name string, data []byte) error
	Remove(name string) error // one that is not there is none to remove
}

// maxText bounds the small files that selectors read.
const maxText = 64 << 10

// readText reads a small file of the volume; a missing one is fs.ErrNotExist.
func readText(e *fat.Editor, name string) (string, error) {
	data, ok, err := e.ReadFile(name, maxText)
	if err == nil && !ok {
		err = fmt.Errorf("/%s: %w", name, fs.ErrNotExist)
	}
	return string(data), err
}

// kernelIn gives the first of the files that is there.
func kernelIn(e *fat.Editor, id ID, names ...string) (io.ReaderAt, int64, error) {
	for _, name := range names {
		if f, ok := e.Find(name); ok {
			return f, f.Size, nil
		}
	}
	return nil, 0, fmt.Errorf("slot %s: %w", id, ErrEmpty)
}

// stage writes a slot's kernel under a name that the firmware does not look for.
func stage(e *fat.Editor, name string, kernel io.Reader, size int64) error {
	if room := e.Free(); e.Takes(size) > room {
		return fmt.Errorf("a kernel of %d bytes: %w: %d are free on the partition that the firmware reads", size, ErrNoRoom, room)
	}
	return e.Write(name, size, kernel)
}
