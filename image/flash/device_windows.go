package flash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/windows"
)

// winioctl.h, ntddstor.h
const (
	diskGetLengthInfo    = 0x0007405c
	diskUpdateProperties = 0x00070140
	storageQueryProperty = 0x002d1400
	storageEjectMedia    = 0x002d4808
	volumeGetDiskExtents = 0x00560000
	fsctlLockVolume      = 0x00090018
	fsctlDismountVolume  = 0x00090020
	physicalDrive        = `\\.\PhysicalDrive`
	mostDrives           = 64
)

type held struct{ locks []*os.File } // the volumes that nobody else may use meanwhile

// List lists this computer's disks.
func List() ([]Disk, error) {
	volumes := volumesByDisk()
	system := strings.TrimSuffix(strings.ToUpper(os.Getenv("SystemDrive")), `\`)
	var out []Disk
	for i := range mostDrives {
		name := fmt.Sprintf("%s%d", physicalDrive, i)
		f, err := openHandle(name, 0) // the right to ask needs no administrator
		if err != nil {
			continue
		}
		answer := make([]byte, 4096)
		d := Disk{Name: fmt.Sprintf("PhysicalDrive%d", i), Path: name}
		if n, err := control(f, storageQueryProperty, make([]byte, 12), answer); err == nil {
			d.Model, d.Transport, d.Removable = storageDescriptor(answer[:n])
		}
		if d.Size, err = length(f); err != nil {
			if g, err := openHandle(name, windows.GENERIC_READ); err == nil {
				d.Size, _ = length(g)
				_ = g.Close()
			}
		}
		_ = f.Close()
		for _, v := range volumes[i] {
			// A card's volumes are locked and dismounted when it is opened. The system's own is what counts.
			if v == system {
				d.InUse = append(d.InUse, "/")
			} else if !d.Removable {
				d.InUse = append(d.InUse, v)
			}
		}
		if d.Size > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}

// OpenDevice opens a disk (\\.\PhysicalDriveN) and locks its volumes, so that Windows takes its hands off. A file that exists
// already is taken as it is, with its size.
func OpenDevice(name string) (*File, error) {
	if number, ok := driveNumber(name); ok {
		return openDrive(name, number)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is neither a disk nor a file", name)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	d := &File{File: f}
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func openDrive(name string, number int) (*File, error) {
	d := &File{block: true}
	for _, v := range volumesByDisk()[number] {
		f, err := openHandle(`\\.\`+v, windows.GENERIC_READ|windows.GENERIC_WRITE)
		if err == nil {
			d.locks = append(d.locks, f)
			if _, err = control(f, fsctlLockVolume, nil, nil); err == nil {
				_, err = control(f, fsctlDismountVolume, nil, nil)
			}
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: volume %s is in use: %w; close what has files of it open", name, v, err), d.unlock())
		}
	}
	f, err := openHandle(name, windows.GENERIC_READ|windows.GENERIC_WRITE)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		err = fmt.Errorf("%w; run it as administrator", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), d.unlock())
	}
	d.File = f
	if d.size, err = length(f); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func openHandle(name string, access uint32) (*os.File, error) {
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	h, err := windows.CreateFile(p, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), name), nil
}

func control(f *os.File, code uint32, in, out []byte) (int, error) {
	var n uint32
	err := windows.DeviceIoControl(windows.Handle(f.Fd()), code, first(in), uint32(len(in)), first(out), uint32(len(out)), &n, nil)
	return int(n), err
}

func first(b []byte) *byte {
	if len(b) == 0 {
		return nil
	}
	return &b[0]
}

func length(f *os.File) (int64, error) {
	out := make([]byte, 8)
	if _, err := control(f, diskGetLengthInfo, nil, out); err != nil {
		return 0, fmt.Errorf("%s: its size: %w", f.Name(), err)
	}
	return int64(binary.LittleEndian.Uint64(out)), nil
}

// volumesByDisk gives the drive letters (C:) on each disk.
func volumesByDisk() map[int][]string {
	out := map[int][]string{}
	letters, err := windows.GetLogicalDrives()
	if err != nil {
		return out
	}
	for i := range 26 {
		if letters&(1<<i) == 0 {
			continue
		}
		v := string(rune('A'+i)) + ":"
		f, err := openHandle(`\\.\`+v, 0)
		if err != nil {
			continue
		}
		answer := make([]byte, 1024)
		if n, err := control(f, volumeGetDiskExtents, nil, answer); err == nil {
			for _, disk := range diskExtents(answer[:n]) {
				out[disk] = append(out[disk], v)
			}
		}
		_ = f.Close()
	}
	return out
}

// Forget needs to do nothing: a disk is written past the cache of files, which its volumes were dismounted from.
func (f *File) Forget() error { return nil }

// Eject makes a stick or card safe to take out. It reports whether the device could.
func (f *File) Eject() bool {
	if !f.block {
		return false
	}
	_, err := control(f.File, storageEjectMedia, nil, nil)
	return err == nil
}

// Reread makes Windows see the new partitions.
func (f *File) Reread() {
	if f.block {
		_, _ = control(f.File, diskUpdateProperties, nil, nil)
	}
}

// Close gives the volumes back.
func (f *File) Close() error { return errors.Join(f.File.Close(), f.unlock()) }

func (f *File) unlock() error {
	var errs []error
	for _, l := range f.locks {
		errs = append(errs, l.Close())
	}
	f.locks = nil
	return errors.Join(errs...)
}
