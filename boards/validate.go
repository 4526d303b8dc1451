package boards

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// The partitions' names are their roles.
const (
	ESP    = "esp"    // what the firmware reads: boot loader and both slots' kernels
	Root   = "root"   // the verified root, once per slot
	Config = "config" // the node config
	Data   = "data"   // all that changes
)

// UEFI is the selector for machines with UEFI firmware: systemd-boot with counted entries.
const UEFI = "uefi"

// Selectors, QEMUFirmwares and the tables of kinds list what this program can do; a board outside them is refused.
var (
	selectors     = []string{UEFI}
	tables        = []string{"gpt"}
	qemuFirmwares = []string{"ovmf-secboot"}
	roles         = map[string]string{ESP: "fat", Root: "erofs", Config: "fat", Data: "ext4"} // name -> kind

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
	c.disk(b.Disk)
	if q := b.QEMU; q != nil {
		c.set(q.System, "qemu", "system")
		c.set(q.Machine, "qemu", "machine")
		c.set(q.CPU, "qemu", "cpu")
		c.set(q.Disk, "qemu", "disk")
		c.set(q.Network, "qemu", "network")
		c.oneOf(q.Firmware, qemuFirmwares, "qemu", "firmware")
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
			key := strings.ReplaceAll(name, "-", "_")
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

func (c *checker) disk(d Disk) {
	c.oneOf(d.Table, tables, "disk", "table")
	seen := map[string]bool{}
	for i, p := range d.Partitions {
		at := []any{"disk", "partitions", i}
		kind, known := roles[p.Name]
		switch {
		case !known:
			c.bad(at, "name %q is not one of esp, root, config, data", p.Name)
			continue
		case seen[p.Name]:
			c.bad(at, "%s is here twice", p.Name)
		case p.Kind != kind:
			c.bad(at, "%s: kind is %q; this program makes %s there", p.Name, p.Kind, kind)
		}
		seen[p.Name] = true
		if p.Slots != (p.Name == Root) {
			c.bad(at, "%s: slots: true belongs to root and to no other", p.Name)
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
	for _, name := range []string{ESP, Root, Config, Data} {
		if !seen[name] {
			c.bad([]any{"disk", "partitions"}, "has no %s", name)
		}
	}
}

// KindOf is the kind of filesystem in the partition with this name, which may be a slot's: root-a. It is empty for a name
// that is not ours.
func KindOf(name string) string {
	if kind, ok := roles[name]; ok && name != Root {
		return kind
	}
	for _, id := range slot.IDs {
		if name == id.RootLabel() {
			return roles[Root]
		}
	}
	return ""
}
