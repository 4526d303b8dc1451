package flash

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/unix"
)

type held struct{ name string } // as diskutil knows it

// List lists this computer's disks.
func List() ([]Disk, error) {
	out, err := exec.Command("diskutil", "info", "-plist", "-all").Output()
	if err != nil {
		return nil, fmt.Errorf("diskutil: %w", err)
	}
	return diskutil(out)
}

// sys/disk.h
const (
	dkiocGetBlockSize  = 0x40046418
	dkiocGetBlockCount = 0x40086419
)

// OpenDevice opens a disk past the buffer cache (/dev/rdiskN), after it was unmounted: macOS mounts a card as soon as it is there.
// A file that exists already is taken as it is, with its size.
func OpenDevice(name string) (*File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	d := &File{held: held{name}, block: info.Mode()&fs.ModeDevice != 0}
	switch {
	case d.block && !isDarwinDisk(name):
		return nil, fmt.Errorf("%s: is neither a disk nor a file", name)
	case d.block:
		if out, err := exec.Command("diskutil", "unmountDisk", name).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: unmounting it: %w: %s", name, err, out)
		}
		name = rawDarwin(name)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is neither a disk nor a file", name)
	}
	d.File, err = os.OpenFile(name, os.O_RDWR, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s: is in use by the system; unmount it first", name)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run it with sudo", err)
	case err != nil:
		return nil, err
	}
	if !d.block {
		d.size, err = d.Seek(0, io.SeekEnd)
	} else {
		err = d.measure()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (f *File) measure() error {
	var size uint32
	var count uint64
	if err := ioctl(f.Fd(), dkiocGetBlockSize, unsafe.Pointer(&size)); err != nil {
		return fmt.Errorf("%s: its block size: %w", f.name, err)
	}
	if err := ioctl(f.Fd(), dkiocGetBlockCount, unsafe.Pointer(&count)); err != nil {
		return fmt.Errorf("%s: its size: %w", f.name, err)
	}
	f.size = int64(size) * int64(count) //nolint:gosec // a disk's size
	return nil
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Forget needs to do nothing for a raw device; a file is read past the cache from now on.
func (f *File) Forget() error {
	if f.block {
		return nil
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_NOCACHE, 1)
	return err
}

// Sync makes the device write what it holds.
func (f *File) Sync() error {
	if !f.block {
		return f.File.Sync()
	}
	const dkiocSynchronizeCache = 0x20006416
	return ioctl(f.Fd(), dkiocSynchronizeCache, nil)
}

// Eject makes a stick or card safe to take out. It reports whether the device could.
func (f *File) Eject() bool {
	return f.block && f.Close() == nil && exec.Command("diskutil", "eject", f.name).Run() == nil
}

// Reread is macOS's own business.
func (f *File) Reread() {}
