package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/image/disk"
)

// Partition is a partition of a disk, as sysfs shows it.
type Partition struct {
	Name string // of the device, vda2
	Disk string // of the whole disk's device, vda
	Num  int
	// Label and UUID are the name and the GUID (small letters) in the GPT; empty where the table has none, or the kernel does
	// not say: see ReadUUIDs.
	Label, UUID string
	Size        int64 // bytes
}

// Dev is the device file.
func (p Partition) Dev() string { return "/dev/" + p.Name }

// DiskDev is the device file of the disk.
func (p Partition) DiskDev() string { return "/dev/" + p.Disk }

// Partitions lists the partitions of all disks. sys is sysfs.
func Partitions(sys fs.FS) ([]Partition, error) {
	disks, err := fs.ReadDir(sys, "block")
	if err != nil {
		return nil, err
	}
	var out []Partition
	for _, d := range disks {
		names, err := fs.ReadDir(sys, path.Join("block", d.Name()))
		if err != nil {
			continue // the disk went away
		}
		for _, n := range names {
			if !strings.HasPrefix(n.Name(), d.Name()) {
				continue
			}
			p, err := partition(sys, path.Join("block", d.Name(), n.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			p.Name, p.Disk = n.Name(), d.Name()
			out = append(out, p)
		}
	}
	return out, nil
}

// Volumes lists what a filesystem may be on that a person brings: the partitions of all disks, and the disks that have none, as many
// sticks are. Of the latter, Num is 0 and Name that of the disk.
func Volumes(sys fs.FS) ([]Partition, error) {
	out, err := Partitions(sys)
	if err != nil {
		return nil, err
	}
	disks, err := fs.ReadDir(sys, "block")
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if slices.ContainsFunc(out, func(p Partition) bool { return p.Disk == d.Name() }) {
			continue
		}
		if _, err := fs.Stat(sys, path.Join("block", d.Name(), "device")); err != nil {
			continue // made by the kernel out of others
		}
		sectors, err := number[int64](sys, path.Join("block", d.Name(), "size"))
		if errors.Is(err, fs.ErrNotExist) || sectors == 0 {
			continue // went away, or a reader without a card
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Partition{Name: d.Name(), Disk: d.Name(), Size: sectors * 512})
	}
	return out, nil
}

func partition(sys fs.FS, dir string) (p Partition, err error) {
	if p.Num, err = number[int](sys, path.Join(dir, "partition")); err != nil {
		return p, err
	}
	sectors, err := number[int64](sys, path.Join(dir, "size"))
	if err != nil {
		return p, err
	}
	p.Size = sectors * 512 // whatever the disk's own sectors are
	uevent, err := fs.ReadFile(sys, path.Join(dir, "uevent"))
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(uevent)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "PARTNAME":
			p.Label = v
		case "PARTUUID":
			p.UUID = strings.ToLower(v)
		}
	}
	return p, nil
}

// ReadUUIDs fills in the UUIDs that sysfs did not tell (kernels before 6.13 do not) from the disks' own tables. A disk that
// cannot be read, or has no GPT, is left as it is.
func ReadUUIDs(parts []Partition) {
	tables := map[string]*disk.Table{}
	for i, p := range parts {
		if p.UUID != "" {
			continue
		}
		t, seen := tables[p.Disk]
		if !seen {
			t = readTable(p.DiskDev())
			tables[p.Disk] = t
		}
		if t != nil && p.Num <= len(t.Partitions) {
			parts[i].UUID = strings.ToLower(t.Partitions[p.Num-1].GUID.String())
		}
	}
}

func readTable(dev string) *disk.Table {
	f, err := os.Open(dev)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, err := DeviceSize(f)
	if err != nil {
		return nil
	}
	t, _ := disk.Read(f, size-size%disk.Sector) // also a table whose second copy is not where a larger disk ends
	return t
}

func number[T int | int64](sys fs.FS, name string) (T, error) {
	data, err := fs.ReadFile(sys, name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return T(n), nil
}

// DeviceSize asks the size of a block device or file.
func DeviceSize(f *os.File) (int64, error) {
	n, err := f.Seek(0, 2)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	return n, nil
}

// blkpgPartition and blkpgArg are struct blkpg_partition and blkpg_ioctl_arg of linux/blkpg.h.
type blkpgPartition struct {
	start, length int64
	pno           int32
	names         [128]byte
	_             [4]byte
}

type blkpgArg struct {
	op, flags, datalen int32
	data               unsafe.Pointer
}

const (
	blkpg       = 0x1269
	blkpgResize = 3
)

// ResizePartition tells the kernel of a partition's new size while the disk is in use.
func ResizePartition(dev *os.File, num int, start, size int64) error {
	p := blkpgPartition{start: start, length: size, pno: int32(num)}
	arg := blkpgArg{op: blkpgResize, datalen: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), blkpg, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("%s: telling the kernel of partition %d's size: %w", dev.Name(), num, errno)
	}
	return nil
}
