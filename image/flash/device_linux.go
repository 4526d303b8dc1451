package flash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

type held struct{} //nolint:unused // there is nothing here

// List lists this computer's disks.
func List() ([]Disk, error) { return Disks(os.DirFS("/")) }

// At says of a device what List says of disks, whether it is listed or not; nil for a file that stands for one.
func At(name string) (*Disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, nil //nolint:nilnil // documented above
	}
	d, err := device(os.DirFS("/"), fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))) //nolint:unconvert // 32 bits on some
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &d, nil
}

// Unmount takes what is mounted from a disk away, as umount does.
func Unmount(d *Disk) error {
	for _, m := range d.Mounts() {
		if out, err := exec.Command("umount", "--", m).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: unmounting %s: %w: %s", d.Path, m, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

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
