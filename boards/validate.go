package boards

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// The partitions' names are their roles.
const (
	ESP     = "esp"    // what the firmware reads: boot loader and both slots' kernels
	Select  = "select" // Raspberry Pi: says which of boot-a and boot-b counts
	Kernels = "boot"   // Raspberry Pi: what the firmware starts, once per slot
	Root    = "root"   // the verified root, once per slot
	Config  = "config" // the node config
	Data    = "data"   // all that changes
)

// The selectors by their names in boards.
const (
	UEFI  = slot.KindUEFI  // systemd-boot counts the tries of an entry
	UBoot = slot.KindUBoot // Skerry's boot script for U-Boot does
	GRUB  = slot.KindGRUB  // Skerry's script for GRUB does, on PCs with a BIOS; the kernel image is that of the base, a board with UEFI
	Pi    = slot.KindPi    // the firmware of newer Raspberry Pis tries a partition once
)

// The tables beside gpt.
const (
	Hybrid = "hybrid" // a GPT whose first partition stands in the MBR too, for boot ROMs that know no GPT
	BIOS   = "bios"   // a GPT with a boot sector for BIOSes in front, and an MBR whose entry is marked active, as some ask for
)

// Platforms are the clouds and hypervisors that tell a machine its node config; pkg/platform asks them.
var Platforms = []string{"aws", "azure", "gcp", "openstack", "proxmox"}

// Selectors, QEMUFirmwares and the tables of kinds list what this program can do; a board outside them is refused.
var (
	selectors     = []string{UEFI, UBoot, GRUB, Pi}
	tables        = []string{"gpt", Hybrid, BIOS}
	qemuFirmwares = []string{"ovmf-secboot", "aavmf", "card", "u-boot", "bios"}                                              // card: the machine starts from the card's first bytes as its boot ROM does
	roles         = map[string]string{ESP: "fat", Select: "fat", Kernels: "fat", Root: "erofs", Config: "fat", Data: "ext4"} // name -> kind
	// bootRoles are the partitions for the firmware, by selector.
	bootRoles = map[string][]string{UEFI: {ESP}, UBoot: {ESP}, GRUB: {ESP}, Pi: {Select, Kernels}}

	idForm     = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	moduleForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)
)

// Sizes that FAT32 can have here: below the first a reader takes it for FAT16; exactly 64 MiB trips a bug of the library
// that writes it.
const (
	minFAT = 34 * size.MiB
	maxFAT = 32 * size.GiB
	badFAT = 64 * size.MiB
)

type checker struct {
	doc    *strictyaml.Doc
	faults []error
}

func (c *checker) bad(at []any, format string, a ...any) {
	where := make([]string, len(at))
	for i, p := range at {
		where[i] = fmt.Sprint(p)
	}
	c.faults = append(c.faults, c.doc.At(strings.Join(where, ".")+": "+fmt.Sprintf(format, a...), at...))
}

func (c *checker) oneOf(value string, allowed []string, at ...any) {
	if !slices.Contains(allowed, value) {
		c.bad(at, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (c *checker) set(value string, at ...any) {
	if value == "" {
		c.bad(at, "is missing")
	}
}

func (b *Board) validate(file string, doc *strictyaml.Doc) error {
	c := &checker{doc: doc}
	if !idForm.MatchString(b.ID) || len(b.ID) > 40 {
		c.bad([]any{"id"}, "%q is not lower-case words joined by dashes", b.ID)
	} else if b.ID != file {
		c.bad([]any{"id"}, "is %q in a file named %s.yaml; the two must agree", b.ID, file)
	}
	c.set(b.Name, "name")
	c.oneOf(b.Arch, release.Arches, "arch")
	c.oneOf(b.Slots, selectors, "slots")
	if b.Platform != "" {
		c.oneOf(b.Platform, Platforms, "platform")
	}
	c.set(b.Kernel.Package, "kernel", "package")
	c.set(b.Kernel.Suite, "kernel", "suite")
	for i, a := range b.Kernel.Args {
		if a == "" || strings.ContainsAny(a, " \t\n\"") {
			c.bad([]any{"kernel", "args", i}, "%q must be one kernel argument, without spaces and quotes", a)
		}
	}
	c.modules(b.Modules)
	for i, f := range b.Firmware {
		c.set(f.Package, "firmware", i, "package")
		c.set(f.Suite, "firmware", i, "suite")
		c.oneOf(f.Area, []string{"main", "contrib", "non-free-firmware"}, "firmware", i, "area")
		for j, p := range f.Files {
			if _, err := path.Match(p, ""); err != nil || path.IsAbs(p) || path.Clean(p) != p || strings.HasPrefix(p, "..") {
				c.bad([]any{"firmware", i, "files", j}, "%q is not a pattern below lib/firmware", p)
			}
		}
	}
	c.boot(b)
	c.bios(b)
	c.disk(b)
	if q := b.QEMU; q != nil {
		c.set(q.System, "qemu", "system")
		c.set(q.Machine, "qemu", "machine")
		c.set(q.CPU, "qemu", "cpu")
		c.set(q.Disk, "qemu", "disk")
		c.set(q.Network, "qemu", "network")
		c.oneOf(q.Firmware, qemuFirmwares, "qemu", "firmware")
		if handed := q.Tree != ""; handed != (q.Firmware == "u-boot") || !handed && len(q.Without) > 0 {
			c.bad([]any{"qemu", "devicetree"}, "%q: a device tree is for firmware u-boot, which needs one", q.Tree)
		}
		if q.CPUs < 1 || q.Memory < 512*size.MiB {
			c.bad([]any{"qemu"}, "needs cpus of 1 or more and memory of 512MiB or more")
		}
	}
	return errors.Join(c.faults...)
}

func (c *checker) modules(m Modules) {
	seen := map[string]string{}
	for _, l := range []struct {
		set, list string
		names     []string
	}{{"boot", "load", m.Boot.Load}, {"boot", "carry", m.Boot.Carry}, {"node", "load", m.Node.Load}, {"node", "carry", m.Node.Carry}} {
		for i, name := range l.names {
			at := []any{"modules", l.set, l.list, i}
			if !moduleForm.MatchString(name) {
				c.bad(at, "%q is not a module name", name)
			}
			key := moduleKey(name)
			if where, dup := seen[key]; dup {
				c.bad(at, "%s is listed already in modules.%s", name, where)
			}
			seen[key] = l.set + "." + l.list
		}
	}
	for _, need := range []string{"dm_verity", "erofs"} {
		if where := seen[need]; where != "boot.load" {
			c.bad([]any{"modules", "boot", "load"}, "lacks %s, without which no root can be opened", need)
		}
	}
}

func moduleKey(name string) string { return strings.ReplaceAll(name, "-", "_") }

func (c *checker) boot(b *Board) {
	pkg := func(name, suite, area string, at ...any) {
		c.set(name, append(at, "package")...)
		c.set(suite, append(at, "suite")...)
		c.oneOf(area, []string{"main", "contrib", "non-free-firmware"}, append(at, "area")...)
	}
	seen := map[string]bool{}
	file := func(name string, at ...any) {
		if !fs.ValidPath(name) || name == "." {
			c.bad(at, "%q is not the path of a file", name)
		}
		key := strings.ToLower(path.Base(name)) // FAT does not tell large letters from small
		if seen[key] {
			c.bad(at, "%s: is on the boot partition already", path.Base(name))
		}
		seen[key] = true
	}
	for i, f := range b.Boot.Files {
		pkg(f.Package, f.Suite, f.Area, "boot", "files", i)
		if !fs.ValidPath(f.Folder) {
			c.bad([]any{"boot", "files", i, "folder"}, "%q is not the path of a folder", f.Folder)
		}
		for j, name := range f.Files {
			file(name, "boot", "files", i, "files", j)
		}
	}
	for i, t := range b.Boot.DeviceTrees {
		if !fs.ValidPath(t.File) {
			c.bad([]any{"boot", "devicetrees", i, "file"}, "%q is not the path of a file", t.File)
		}
		file(t.Name(), "boot", "devicetrees", i)
	}
	for i, t := range b.Boot.Texts {
		file(t.Name, "boot", "texts", i, "name")
	}
	for i, r := range b.Boot.Raw {
		pkg(r.Package, r.Suite, r.Area, "boot", "raw", i)
		head := (&disk.Table{Room: b.Disk.Entries}).HeadSize()
		if r.At%disk.Sector != 0 || int64(r.At) < head || r.At >= b.Disk.First() {
			c.bad([]any{"boot", "raw", i, "at"}, "%s: starts at %v, not between the table, which ends at %v, and the first partition at %v; move it or change disk.entries or disk.start",
				path.Base(r.File), r.At, size.Bytes(head), b.Disk.First())
		}
	}
	if b.Kernel.DeviceTree != "" && !fs.ValidPath(b.Kernel.DeviceTree) {
		c.bad([]any{"kernel", "devicetree"}, "%q is not the path of a file", b.Kernel.DeviceTree)
	}
}

// bios checks what lets a board share the kernel image of its base.
func (c *checker) bios(b *Board) {
	if (b.Slots == GRUB) != (b.Disk.Table == BIOS) {
		c.bad([]any{"disk", "table"}, "%q: slots: %s and table: %s go together", b.Disk.Table, GRUB, BIOS)
	}
	if b.Slots != GRUB {
		return
	}
	base, err := Load(b.Base)
	if err != nil || base.Slots != UEFI {
		c.bad([]any{"base"}, "%q: is no board with UEFI, whose kernel image this one starts", b.Base)
		return
	}
	if !reflect.DeepEqual(b.Kernel, base.Kernel) || !reflect.DeepEqual(b.Modules.Boot, base.Modules.Boot) || b.Platform != base.Platform {
		c.bad([]any{"base"}, "%s: has the kernel image of this board, so kernel, modules.boot and platform are to be the same", b.Base)
	}
}

// First is where the first partition starts.
func (d Disk) First() size.Bytes { return cmp.Or(d.Start, size.MiB) }

func (c *checker) disk(b *Board) {
	d := b.Disk
	c.oneOf(d.Table, tables, "disk", "table")
	if d.Entries != 0 && (d.Entries < 16 || d.Entries > disk.Entries || d.Entries%4 != 0) {
		c.bad([]any{"disk", "entries"}, "%d is not a multiple of 4 from 16 to %d", d.Entries, disk.Entries)
	}
	if d.First()%size.MiB != 0 || d.First() > 64*size.MiB {
		c.bad([]any{"disk", "start"}, "%v is not a whole number of MiB up to 64", d.Start)
	}
	if d.Round%size.MiB != 0 {
		c.bad([]any{"disk", "round"}, "%v is not a whole number of MiB", d.Round)
	}
	seen := map[string]bool{}
	for i, p := range d.Partitions {
		at := []any{"disk", "partitions", i}
		kind, known := roles[p.Name]
		switch {
		case !known:
			c.bad(at, "name %q is not one of esp, select, boot, root, config, data", p.Name)
			continue
		case seen[p.Name]:
			c.bad(at, "%s is here twice", p.Name)
		case p.Kind != kind:
			c.bad(at, "%s: kind is %q; this program makes %s there", p.Name, p.Kind, kind)
		}
		seen[p.Name] = true
		if p.Slots != (p.Name == Root || p.Name == Kernels) {
			c.bad(at, "%s: slots: true belongs to root and boot and to no other", p.Name)
		}
		if p.Kind == "fat" && p.Name != Config && !slices.Contains(bootRoles[b.Slots], p.Name) {
			c.bad(at, "%s: is not for firmware of kind %s", p.Name, b.Slots)
		}
		last := i == len(d.Partitions)-1
		if (p.Name == Data) != last || p.Grow != last {
			c.bad(at, "%s: data comes last and has grow: true, and no other has", p.Name)
		}
		if p.Size < size.MiB || p.Size%size.MiB != 0 {
			c.bad(at, "%s: size %v is not a whole number of MiB", p.Name, p.Size)
		}
		if p.Kind == "fat" && (p.Size < minFAT || p.Size > maxFAT || p.Size == badFAT) {
			c.bad(at, "%s: FAT32 here is %v to %v and not exactly %v; this is %v", p.Name, minFAT, maxFAT, badFAT, p.Size)
		}
	}
	for _, name := range append(slices.Clone(bootRoles[b.Slots]), Root, Config, Data) {
		if !seen[name] {
			c.bad([]any{"disk", "partitions"}, "has no %s", name)
		}
	}
}

// KindOf is the kind of filesystem in the partition with this name, which may be a slot's: root-a. It is empty for a name
// that is not ours.
func KindOf(name string) string {
	if kind, ok := roles[name]; ok && name != Root && name != Kernels {
		return kind
	}
	for _, id := range slot.IDs {
		switch name {
		case id.RootLabel():
			return roles[Root]
		case id.BootLabel():
			return roles[Kernels]
		}
	}
	return ""
}
