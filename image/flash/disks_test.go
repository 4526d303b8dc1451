package flash

import (
	"strings"
	"testing"
	"testing/fstest"
)

// host is a PC with its system on NVMe, a USB stick, a mounted card, and things that are no disks.
func host() fstest.MapFS {
	fs := fstest.MapFS{
		"proc/self/mountinfo":  {Data: []byte("22 1 259:2 / / rw - ext4 /dev/root rw\n30 22 179:1 / /media/my\\040card rw - vfat /dev/mmcblk0p1 rw\n")},
		"proc/swaps":           {Data: []byte("Filename Type Size Used Priority\n/dev/sdb1 partition 100 0 -2\n")},
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
