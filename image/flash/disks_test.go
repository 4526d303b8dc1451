package flash

import (
	"strings"
	"testing"
	"testing/fstest"
)

// host is a PC with its system on NVMe, a USB stick, a mounted card, and things that are no disks.
func host() fstest.MapFS {
	fs := fstest.MapFS{
		"proc/self/mountinfo": {Data: []byte("22 1 259:2 / / rw - ext4 /dev/root rw\n30 22 179:1 / /media/my\\040card rw - vfat /dev/mmcblk0p1 rw\n" +
			"31 22 0:45 /@ /media/pool rw shared:1 - btrfs /dev/sdf1 rw,space_cache\n32 22 0:45 /@home /media/pool/home rw - btrfs /dev/sdf1 rw\n" +
			"33 22 0:46 / /srv rw - btrfs /dev/mapper/vg-data rw\n")},
		"dev/mapper/vg-data":                  {Data: []byte("../dm-3"), Mode: 0o777 | 1<<27},
		"dev/mapper/vg-swap":                  {Data: []byte("../dm-4"), Mode: 0o777 | 1<<27},
		"sys/fs/btrfs/1234-5678/devices/sdf1": {Data: []byte("")},
		"sys/fs/btrfs/1234-5678/devices/sdg":  {Data: []byte("")},

		"proc/swaps":           {Data: []byte("Filename Type Size Used Priority\n/dev/sdb1 partition 100 0 -2\n/dev/mapper/vg-swap partition 100 0 -2\n")},
		"sys/block/loop0/size": {Data: []byte("100\n")},
		"sys/block/sr0/size":   {Data: []byte("100\n")},
	}
	disk := func(name, place string, attributes map[string]string) {
		fs["sys/block/"+name] = &fstest.MapFile{Data: []byte("../devices/" + place + "/block/" + name), Mode: 0o777 | 1<<27}
		for k, v := range attributes {
			fs["sys/devices/"+place+"/block/"+name+"/"+k] = &fstest.MapFile{Data: []byte(v + "\n")}
		}
	}
	disk("nvme0n1", "pci0/nvme/nvme0", map[string]string{"size": "2000000", "dev": "259:0", "device/model": "Fast One", "nvme0n1p2/dev": "259:2"})
	disk("sda", "pci0/usb1/1-1/host0", map[string]string{"size": "62500000", "dev": "8:0", "removable": "1", "device/vendor": "SanDisk ", "device/model": "Ultra   Fit", "sda1/dev": "8:1"})
	disk("sdb", "pci0/ata1/host1", map[string]string{"size": "100", "dev": "8:16", "sdb1/dev": "8:17"})
	disk("sdc", "pci0/ata2/host2", map[string]string{"size": "100", "dev": "8:32", "ro": "0", "sdc1/dev": "8:33", "sdc1/holders/dm-0/x": ""})
	disk("mmcblk0", "platform/mmc_host/mmc0/mmc0:1", map[string]string{"size": "100", "dev": "179:0", "device/name": "SD32G", "mmcblk0p1/dev": "179:1"})
	disk("mmcblk1", "platform/mmc_host/mmc1/mmc1:1", map[string]string{"size": "100", "dev": "179:8", "ro": "1"})
	disk("sdd", "pci0/ata3/host3", map[string]string{"size": "100", "dev": "8:48"})
	disk("sdf", "pci0/usb1/1-3/host5", map[string]string{"size": "100", "dev": "8:80", "removable": "1", "sdf1/dev": "8:81", "sdf1/partition": "1"})
	disk("sdg", "pci0/usb1/1-4/host6", map[string]string{"size": "100", "dev": "8:96", "removable": "1"})
	for name, dev := range map[string]string{"loop3": "7:3", "dm-3": "253:3", "dm-4": "253:4", "dm-5": "253:5", "md0": "9:0", "nbd0": "43:0", "ram1": "1:1"} {
		disk(name, "virtual", map[string]string{"size": "100", "dev": dev})
		fs["sys/dev/block/"+dev] = &fstest.MapFile{Data: []byte("../../devices/virtual/block/" + name), Mode: 0o777 | 1<<27}
	}
	fs["sys/dev/block/8:80"] = &fstest.MapFile{Data: []byte("../../devices/pci0/usb1/1-3/host5/block/sdf"), Mode: 0o777 | 1<<27}
	fs["sys/dev/block/8:81"] = &fstest.MapFile{Data: []byte("../../devices/pci0/usb1/1-3/host5/block/sdf/sdf1"), Mode: 0o777 | 1<<27}
	disk("sde", "pci0/usb1/1-2/host4", map[string]string{"size": "0", "dev": "8:64", "removable": "1"})
	return fs
}

func TestDisksSayWhatTheyAreAndWhetherTheyMayBeWritten(t *testing.T) {
	disks, err := Disks(host())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		says, refusal string
		fixed         bool
	}{
		"nvme0n1": {"/dev/nvme0n1, 977MiB, nvme, Fast One", "this system runs from it", true},
		"sda":     {"/dev/sda, 30GiB, usb, SanDisk Ultra Fit", "", false},
		"sdb":     {"/dev/sdb, 50KiB, ata", "in use (swap)", true},
		"sdc":     {"/dev/sdc, 50KiB, ata", "in use (/dev/dm-0)", true},
		"mmcblk0": {"/dev/mmcblk0, 50KiB, mmc, SD32G", "in use (/media/my card)", false},
		"mmcblk1": {"/dev/mmcblk1, 50KiB, mmc", "read-only", false},
		"sdd":     {"/dev/sdd, 50KiB, ata", "--any-disk", false},
		"sdf":     {"/dev/sdf, 50KiB, usb", "in use (/media/pool, /media/pool/home)", true},
		"sdg":     {"/dev/sdg, 50KiB, usb", "in use (btrfs)", true},
	}
	for _, d := range disks {
		w, ok := want[d.Name]
		if !ok {
			t.Errorf("%s should not be offered", d)
			continue
		}
		delete(want, d.Name)
		if d.String() != w.says {
			t.Errorf("got %q, want %q", d, w.says)
		}
		err := d.Refuse(w.fixed)
		if (err == nil) != (w.refusal == "") || err != nil && !strings.Contains(err.Error(), w.refusal) {
			t.Errorf("%s: got %v, want %q", d.Name, err, w.refusal)
		}
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
}

// A device that is not listed passes the same guard as one that is.
func TestDevicesThatAreNotListed(t *testing.T) {
	for number, want := range map[string]struct{ path, says string }{
		"7:3":   {"/dev/loop3", "--any-disk"},
		"253:3": {"/dev/dm-3", "in use (/srv)"},
		"253:4": {"/dev/dm-4", "in use (swap)"},
		"253:5": {"/dev/dm-5", "--any-disk"},
		"9:0":   {"/dev/md0", "--any-disk"},
		"43:0":  {"/dev/nbd0", "--any-disk"},
		"1:1":   {"/dev/ram1", "--any-disk"},
		"8:80":  {"/dev/sdf", "in use"},
	} {
		d, err := device(host(), number)
		if err != nil {
			t.Errorf("%s: %v", number, err)
			continue
		}
		if err := d.Refuse(false); d.Path != want.path || err == nil || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %s, %v; want %q", number, d.Path, err, want.says)
		}
	}
	if _, err := device(host(), "8:81"); err == nil || !strings.Contains(err.Error(), "is a partition; an image is a whole disk and goes to /dev/sdf") {
		t.Errorf("a partition: %v", err)
	}
	if _, err := device(host(), "9:9"); err == nil {
		t.Error("a device that the kernel does not know")
	}
}

// What is mounted may be unmounted, the deepest first; what holds a disk otherwise, and the system's own disk, may not.
func TestMounts(t *testing.T) {
	disks, err := Disks(host())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		want := map[string]string{"mmcblk0": "/media/my card", "sdf": "/media/pool/home /media/pool"}[d.Name]
		if got := strings.Join(d.Mounts(), " "); got != want {
			t.Errorf("%s: %q; want %q", d.Name, got, want)
		}
		if err := d.Refuse(true); err != nil && strings.Contains(err.Error(), "--unmount") != (want != "") {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
	d := Disk{InUse: []string{"/mnt", "/mnt/a"}, mounts: []string{"/mnt", "/mnt/a"}}
	if got := strings.Join(d.Mounts(), " "); got != "/mnt/a /mnt" {
		t.Errorf("unmounts %s", got)
	}
}

func TestHasPartition(t *testing.T) {
	for _, c := range []struct {
		disk, name string
		is         bool
	}{
		{"/dev/sda", "/dev/sda1", true},
		{"/dev/sda", "/dev/sda12", true},
		{"/dev/sda", "/dev/sda", false},
		{"/dev/sda", "/dev/sdaa", false},
		{"/dev/sda", "/dev/sdaa1", false},
		{"/dev/mmcblk0", "/dev/mmcblk0p1", true},
		{"/dev/mmcblk1", "/dev/mmcblk10", false},
		{"/dev/mmcblk1", "/dev/mmcblk10p1", false},
		{"/dev/mmcblk0", "/dev/mmcblk0boot0", false},
		{"/dev/nvme0n1", "/dev/nvme0n10", false},
		{"/dev/nvme0n1", "/dev/nvme0n1p3", true},
		{"/dev/nvme0n1", "/dev/nvme0n1p", false},
		{"/dev/disk2", "/dev/disk2s1", true},
		{"/dev/disk2", "/dev/disk21", false},
		{"/dev/disk2", "/dev/disk21s1", false},
		{`\\.\PhysicalDrive1`, `\\.\PhysicalDrive10`, false},
	} {
		if (Disk{Path: c.disk}).HasPartition(c.name) != c.is {
			t.Errorf("%s is a partition of %s: %v", c.name, c.disk, !c.is)
		}
	}
}
