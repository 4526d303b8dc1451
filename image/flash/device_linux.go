package flash

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

type held struct{} //nolint:unused // there is nothing here

// List lists this computer's disks.
func List() ([]Disk, error) { return Disks(os.DirFS("/")) }

// OpenDevice opens a block device for this process alone: the kernel refuses one that is mounted. A file that exists already
// is taken as it is, with its size.
func OpenDevice(name string) (*File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	flags, block := os.O_RDWR, info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	switch {
	case block:
		flags |= os.O_EXCL
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is neither a disk nor a file", name)
	}
	f, err := os.OpenFile(name, flags, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s: is in use by the system; unmount it first", name)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run as root, or join the group that owns the device (often \"disk\")", err)
	case err != nil:
		return nil, err
	}
	d := &File{File: f, block: block}
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil { // of a block device too
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// Forget drops what the page cache has of the device. Without the right to do so for a whole device the advice for the file
// has the same effect on pages that are clean, as all are after Sync.
func (f *File) Forget() error {
	if f.block {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err == nil {
			return nil
		}
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// Eject makes a stick or card safe to take out: the kernel forgets its partitions. It reports whether the device could.
func (f *File) Eject() bool {
	const cdromEject = 0x5309 // CDROMEJECT, linux/cdrom.h: block drivers of removable media know it too
	return f.block && unix.IoctlSetInt(int(f.Fd()), cdromEject, 0) == nil
}

// Reread makes the kernel see the new partitions. It fails for a device that has none, which does no harm.
func (f *File) Reread() {
	if f.block {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0)
	}
}
