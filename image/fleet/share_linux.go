package fleet

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// reflink makes to share all blocks of from (ioctl_ficlone(2): btrfs, XFS, bcachefs).
func reflink(to, from *os.File) error {
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
}

// canReflink tries it with the file, in the folder.
func canReflink(name, dir string) bool {
	from, err := os.Open(name)
	if err != nil {
		return false
	}
	defer from.Close() //nolint:errcheck // read only
	to, err := os.CreateTemp(dir, ".reflink-")
	if err != nil {
		return false
	}
	defer os.Remove(to.Name()) //nolint:errcheck // a leftover does no harm
	defer to.Close()           //nolint:errcheck // it goes
	return reflink(to, from) == nil
}

// copySparse copies what is not a hole.
func copySparse(to, from *os.File) (n int64, err error) {
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if err := to.Truncate(size); err != nil {
		return 0, err
	}
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return n, nil // holes to the end
		}
		if err != nil {
			return n, err
		}
		end, err := unix.Seek(int(from.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return n, err
		}
		got, err := io.Copy(io.NewOffsetWriter(to, begin), io.NewSectionReader(from, begin, end-begin))
		if n += got; err != nil {
			return n, err
		}
		at = end
	}
	return n, nil
}

// syncFolder makes the folder's file system durable at once.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return unix.Syncfs(int(d.Fd()))
}
