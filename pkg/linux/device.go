package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Device is a partition that is written past what the kernel remembers of it: after Sync the medium has what was written, and
// is what ReadAt reads.
type Device struct {
	*os.File
	size int64
}

// OpenDevice opens a device file for reading and writing.
func OpenDevice(name string) (*Device, error) { return openDevice(name, os.O_RDWR) }

// OpenDeviceReadOnly opens a device file that must not be written.
func OpenDeviceReadOnly(name string) (*Device, error) { return openDevice(name, os.O_RDONLY) }

func openDevice(name string, mode int) (*Device, error) {
	f, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return nil, err
	}
	size, err := DeviceSize(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Device{f, size}, nil
}

// Size is the device's.
func (d *Device) Size() int64 { return d.size }

// Sync makes what was written durable and drops it from memory.
func (d *Device) Sync() error {
	if err := d.File.Sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("%s: dropping what is remembered: %w", d.Name(), err)
	}
	return nil
}

// EFIVariables changes the firmware's variables. Dir is where efivarfs is mounted.
type EFIVariables struct{ Dir string }

// efiAttributes: kept over power off, for boot loaders and for the running system.
const efiAttributes = 7

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// Write makes or replaces a variable.
func (v EFIVariables) Write(name string, data []byte) error {
	return v.WriteAs(name, efiAttributes, data)
}

// WriteAs does so with other attributes: those of a signed variable say what the data that follows is signed for.
func (v EFIVariables) WriteAs(name string, attributes uint32, data []byte) error {
	file := filepath.Join(v.Dir, name)
	if err := mutable(file); err != nil {
		return err
	}
	// One write of everything, or the firmware takes a part for the whole.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), data...))
	return errors.Join(err, f.Close())
}

// Remove takes a variable away.
func (v EFIVariables) Remove(name string) error {
	file := filepath.Join(v.Dir, name)
	if err := mutable(file); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mutable takes the flag away with which the kernel guards variables from rm -rf.
func mutable(file string) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil //nolint:nilerr // a filesystem without flags guards nothing
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
