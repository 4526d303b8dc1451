package flash

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/skerry-os/skerry/pkg/size"
)

// Disk is a whole block device of this host.
type Disk struct {
	Name      string   `json:"name"` // as the kernel calls it: sdb, mmcblk0
	Path      string   `json:"path"` // /dev/sdb
	Size      int64    `json:"sizeBytes"`
	Model     string   `json:"model,omitempty"`
	Serial    string   `json:"serial,omitempty"`
	Transport string   `json:"transport,omitempty"` // usb, mmc, nvme, ata, virtio, …
	Removable bool     `json:"removable"`           // a card or stick: what the kernel calls removable, and what hangs on USB or in a card slot
	ReadOnly  bool     `json:"readOnly,omitempty"`
	InUse     []string `json:"inUse,omitempty"` // mount points, swap, or the device on top of it

	mounts []string // of InUse
}

// String is what a person recognises it by.
func (d Disk) String() string {
	parts := []string{d.Path, size.Bytes(d.Size).Rounded()}
	for _, p := range []string{d.Transport, d.Model} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ", ")
}

// Disks lists the host's disks by name, from its sysfs and procfs. Loop devices, RAM disks and what is stacked on others are
// left out; At knows them all.
func Disks(root fs.FS) ([]Disk, error) {
	entries, err := fs.ReadDir(root, "sys/block")
	if err != nil {
		return nil, err
	}
	used := inUse(root)
	var disks []Disk
	for _, e := range entries {
		if slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(e.Name(), p) }) {
			continue
		}
		d, ok := readDisk(root, e.Name(), used)
		if ok && d.Size > 0 {
			disks = append(disks, d)
		}
	}
	slices.SortFunc(disks, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

var virtual = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"}

// device gives any block device by its number, as 8:16: one that is listed, and one that is not. A partition is no disk.
func device(root fs.FS, number string) (Disk, error) {
	link, err := fs.ReadLink(root, "sys/dev/block/"+number)
	if err != nil {
		return Disk{}, err
	}
	name, dir := path.Base(link), path.Join("sys/dev/block", link)
	if _, err := fs.Stat(root, path.Join(dir, "partition")); err == nil {
		return Disk{}, fmt.Errorf("is a partition; an image is a whole disk and goes to /dev/%s", path.Base(path.Dir(link)))
	}
	d, ok := readDisk(root, name, inUse(root))
	if !ok {
		return Disk{}, errors.New("is a block device that the kernel says nothing of")
	}
	return d, nil
}

func readDisk(root fs.FS, name string, used map[string][]string) (Disk, bool) {
	dir := path.Join("sys/block", name)
	sectors, err := strconv.ParseInt(word(root, path.Join(dir, "size")), 10, 64)
	if err != nil {
		return Disk{}, false
	}
	d := Disk{
		Name: name, Path: "/dev/" + name, Size: sectors * 512,
		Removable: word(root, path.Join(dir, "removable")) == "1",
		ReadOnly:  word(root, path.Join(dir, "ro")) == "1",
	}
	d.Model = strings.Join(strings.Fields(word(root, path.Join(dir, "device/vendor"))+" "+word(root, path.Join(dir, "device/model"))+" "+word(root, path.Join(dir, "device/name"))), " ")
	for _, name := range []string{"serial", "device/serial", "device/vpd_pg80"} { // virtio; NVMe and cards; SCSI and ATA
		text := word(root, path.Join(dir, name))
		if strings.HasPrefix(text, "\x00\x80") && len(text) > 4 {
			text = text[4:] // the header of a page of vital product data
		}
		if d.Serial = printable(text); d.Serial != "" {
			break
		}
	}
	if link, err := fs.ReadLink(root, dir); err == nil {
		d.Transport = transport(link)
	}
	d.Removable = d.Removable || d.Transport == "usb" || d.Transport == "mmc"
	// The disk itself and its partitions, which are folders of its own.
	parts := []string{name}
	if entries, err := fs.ReadDir(root, dir); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), name) {
				parts = append(parts, e.Name())
			}
		}
	}
	for _, p := range parts {
		number := word(root, path.Join(dir, p, "dev"))
		holders := path.Join(dir, p, "holders")
		if p == name {
			number, holders = word(root, path.Join(dir, "dev")), path.Join(dir, "holders")
		}
		for _, by := range []string{number, "/dev/" + p} {
			for _, use := range used[by] {
				if slices.Contains(d.InUse, use) {
					continue
				}
				d.InUse = append(d.InUse, use)
				if strings.HasPrefix(use, "/") {
					d.mounts = append(d.mounts, use)
				}
			}
		}
		if entries, err := fs.ReadDir(root, holders); err == nil {
			for _, e := range entries {
				d.InUse = append(d.InUse, "/dev/"+e.Name())
			}
		}
	}
	return d, true
}

// transport reads it off the device's place in the tree of devices.
func transport(link string) string {
	for _, t := range []struct{ part, name string }{{"/usb", "usb"}, {"/mmc_host/", "mmc"}, {"/nvme", "nvme"}, {"/ata", "ata"}, {"/virtio", "virtio"}, {"/xen", "xen"}, {"/host", "scsi"}} {
		if strings.Contains(link, t.part) {
			return t.name
		}
	}
	return ""
}

// printable leaves out what no terminal should get.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s))
}

func word(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// inUse maps device numbers (8:1) and device files to mount points, and to "swap". Filesystems on several devices, as btrfs, are mounted
// under a number of their own: the source says one of their devices, and sysfs the others.
func inUse(root fs.FS) map[string][]string {
	used := map[string][]string{}
	lines(root, "proc/self/mountinfo", func(f []string) {
		if len(f) < 5 {
			return
		}
		used[f[2]] = append(used[f[2]], unescape(f[4]))
		if dash := slices.Index(f, "-"); dash > 0 && len(f) > dash+2 && strings.HasPrefix(f[dash+2], "/dev/") {
			name := file(root, unescape(f[dash+2]))
			used[name] = append(used[name], unescape(f[4]))
		}
	})
	if members, err := fs.Glob(root, "sys/fs/btrfs/*/devices/*"); err == nil {
		for _, m := range members {
			if name := "/dev/" + path.Base(m); len(used[name]) == 0 {
				used[name] = []string{"btrfs"}
			}
		}
	}
	lines(root, "proc/swaps", func(f []string) {
		if len(f) > 0 && strings.HasPrefix(f[0], "/dev/") {
			name := file(root, unescape(f[0]))
			used[name] = append(used[name], "swap")
		}
	})
	return used
}

// file follows a link in /dev, such as /dev/mapper/vg-data, to the device's own name.
func file(root fs.FS, name string) string {
	if link, err := fs.ReadLink(root, strings.TrimPrefix(name, "/")); err == nil && !path.IsAbs(link) {
		return path.Join(path.Dir(name), link)
	}
	return name
}

func lines(root fs.FS, name string, each func(fields []string)) {
	f, err := root.Open(name)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(f); s.Scan(); {
		each(strings.Fields(s.Text()))
	}
}

// unescape reads the kernel's octal escapes of blanks (proc_pid_mountinfo(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Mounts are where filesystems of the disk are mounted, the deepest first; none if the system runs from it, or if it is in use in
// other ways that unmounting does not end.
func (d Disk) Mounts() []string {
	if slices.Contains(d.InUse, "/") || len(d.mounts) < len(d.InUse) {
		return nil
	}
	out := slices.Clone(d.mounts)
	slices.SortFunc(out, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return out
}

// HasPartition says whether a device file's name is that of a partition of this disk: /dev/sda1, but not /dev/sdaa; /dev/mmcblk0p1, but
// not /dev/mmcblk01; on macOS /dev/disk2s1, but not /dev/disk21.
func (d Disk) HasPartition(name string) bool {
	rest, ok := strings.CutPrefix(name, d.Path)
	if !ok || rest == "" || !strings.HasPrefix(d.Path, "/dev/") {
		return false
	}
	if last := d.Path[len(d.Path)-1]; last >= '0' && last <= '9' {
		if rest[0] != 'p' && rest[0] != 's' {
			return false
		}
		rest = rest[1:]
	}
	return rest != "" && strings.Trim(rest, "0123456789") == ""
}

// Refuse says why the image must not go there, or nothing. fixed allows disks that are not removable.
func (d Disk) Refuse(fixed bool) error {
	switch {
	case slices.Contains(d.InUse, "/"):
		return fmt.Errorf("%s: this system runs from it", d)
	case len(d.InUse) > 0:
		if len(d.mounts) == len(d.InUse) {
			return fmt.Errorf("%s: is in use (%s); unmount it first, or add --unmount", d, strings.Join(d.InUse, ", "))
		}
		return fmt.Errorf("%s: is in use (%s); take it out of use first", d, strings.Join(d.InUse, ", "))
	case d.ReadOnly:
		return fmt.Errorf("%s: is read-only; a card may have a switch", d)
	case !d.Removable && !fixed:
		return fmt.Errorf("%s: is not a stick or a card; add --any-disk if you mean it", d)
	}
	return nil
}
