// Package boards knows the machines Skerry runs on. A board is data: one <id>.yaml in this folder says everything about it
// and nothing registers it; the glob below embeds it and a test loads it. A board that is like another names it as its base
// and says only what differs: keys and lists it has replace those of the base.
package boards

import (
	"cmp"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

//go:embed *.yaml sets/*.yaml
var files embed.FS

// Board is a kind of machine. It is not changed after Load.
type Board struct {
	ID       string     `yaml:"id" json:"id"`
	Base     string     `yaml:"base" json:"base,omitempty"`         // the board it is like; has no base itself
	Name     string     `yaml:"name" json:"name"`                   // what a person calls it
	Arch     string     `yaml:"arch" json:"arch"`                   // one of release.Arches
	Match    []string   `yaml:"match" json:"match,omitempty"`       // device tree "compatible" values; none where firmware describes the machine
	Slots    string     `yaml:"slots" json:"slots"`                 // the slot.Selector, one of Selectors
	Platform string     `yaml:"platform" json:"platform,omitempty"` // who tells the machine its node config at the first boot, one of Platforms; none: its config partition
	Format   string     `yaml:"format" json:"format,omitempty"`     // how its disk is stored unless somebody says otherwise, one of cloud.Formats; none: raw
	Kernel   Kernel     `yaml:"kernel" json:"kernel"`
	Modules  Modules    `yaml:"modules" json:"modules"`
	Firmware []Firmware `yaml:"firmware" json:"firmware,omitempty"`
	WiFi     bool       `yaml:"wifi" json:"wifi,omitempty"` // its releases hold wpa_supplicant and the rules for radios; drivers and firmware are among the other modules and files
	Boot     Boot       `yaml:"boot" json:"boot,omitzero"`
	Disk     Disk       `yaml:"disk" json:"disk"`
	QEMU     *QEMU      `yaml:"qemu" json:"qemu,omitempty"` // nil: no emulation of this machine exists
}

// Kernel is the Debian package of the kernel and how it is started.
type Kernel struct {
	Package string   `yaml:"package" json:"package"` // may be a metapackage such as linux-image-amd64
	Suite   string   `yaml:"suite" json:"suite"`     // such as bookworm-backports
	Args    []string `yaml:"args" json:"args"`       // before the ones every board gets
	// DeviceTree is a file of the package, below its folder of device trees, that goes into the kernel image: for firmware
	// that hands over none, or one for another kernel. Updates bring it along.
	DeviceTree string `yaml:"devicetree" json:"devicetree,omitempty"`
}

// Boot is what a board's firmware reads beside the kernels. It is written with the image; updates leave it alone.
type Boot struct {
	Files       []BootFiles `yaml:"files" json:"files,omitempty"`
	DeviceTrees []Tree      `yaml:"devicetrees" json:"devicetrees,omitempty"` // for firmware that reads them, at the top of the partition
	Texts       []BootText  `yaml:"texts" json:"texts,omitempty"`
	Raw         []RawFile   `yaml:"raw" json:"raw,omitempty"`
}

// BootFiles are files of a Debian package, put at the top of the partition that the firmware reads.
type BootFiles struct {
	Package string   `yaml:"package" json:"package"`
	Suite   string   `yaml:"suite" json:"suite"`
	Area    string   `yaml:"area" json:"area"`     // main, contrib, non-free-firmware
	Folder  string   `yaml:"folder" json:"folder"` // in the package
	Files   []string `yaml:"files" json:"files"`   // there
}

// Tree is a device tree of the kernel's package.
type Tree struct {
	File string `yaml:"file" json:"file"`       // below the package's folder of device trees
	As   string `yaml:"as" json:"as,omitempty"` // the name that the firmware looks for, if it is another
}

// Name is what it is called on the partition.
func (t Tree) Name() string { return cmp.Or(t.As, path.Base(t.File)) }

// BootText is a small file that stands in the board file itself.
type BootText struct {
	Name string `yaml:"name" json:"name"`
	Text string `yaml:"text" json:"text"`
}

// RawFile is a file of a Debian package that lies outside of all partitions, where a boot ROM looks for it.
type RawFile struct {
	Package string     `yaml:"package" json:"package"`
	Suite   string     `yaml:"suite" json:"suite"`
	Area    string     `yaml:"area" json:"area"`
	File    string     `yaml:"file" json:"file"` // in the package
	At      size.Bytes `yaml:"at" json:"at"`     // from the start of the disk
}

// Modules are kernel modules by the names of their files, without .ko; dependencies are found by pkg/kmod.
type Modules struct {
	Sets []string  `yaml:"sets" json:"-"`    // lists of boards/sets, added to Node by Decode
	Boot ModuleSet `yaml:"boot" json:"boot"` // in the initramfs, and on the root too
	Node ModuleSet `yaml:"node" json:"node"` // on the root only
}

// ModuleSet splits modules by who asks for them.
type ModuleSet struct {
	Load  []string `yaml:"load" json:"load"`   // loaded by name, in this order
	Carry []string `yaml:"carry" json:"carry"` // loaded when a device or the kernel asks
}

// All is both lists.
func (s ModuleSet) All() []string { return slices.Concat(s.Load, s.Carry) }

// Firmware is a set of files out of a Debian package that drivers request.
type Firmware struct {
	Package string   `yaml:"package" json:"package"`
	Suite   string   `yaml:"suite" json:"suite"`
	Area    string   `yaml:"area" json:"area"`   // main, contrib, non-free-firmware
	Files   []string `yaml:"files" json:"files"` // path.Match patterns below lib/firmware
}

// Disk is the layout of an image.
type Disk struct {
	Table      string      `yaml:"table" json:"table"`               // gpt, or one of the tables below
	Entries    int         `yaml:"entries" json:"entries,omitempty"` // that the GPT has room for; 0 is 128, 56 end at 8 KiB
	Start      size.Bytes  `yaml:"start" json:"start,omitempty"`     // of the first partition; 0 is 1 MiB
	Partitions []Partition `yaml:"partitions" json:"partitions"`     // in disk order
	Round      size.Bytes  `yaml:"round" json:"round,omitempty"`     // disks are whole multiples of this; none: of 1 MiB
}

// Partition is one partition, or with Slots two of them: name-a and name-b.
type Partition struct {
	Name  string     `yaml:"name" json:"name"` // one of the role names below; also the GPT name
	Kind  string     `yaml:"kind" json:"kind"` // fat, erofs, ext4
	Size  size.Bytes `yaml:"size" json:"size"`
	Slots bool       `yaml:"slots" json:"slots,omitempty"`
	Grow  bool       `yaml:"grow" json:"grow,omitempty"` // the last one: fills the disk at the first boot
}

// QEMU is how to emulate the machine.
type QEMU struct {
	System   string     `yaml:"system" json:"system"` // qemu-system-<System>
	Machine  string     `yaml:"machine" json:"machine"`
	CPU      string     `yaml:"cpu" json:"cpu"`
	CPUs     int        `yaml:"cpus" json:"cpus"`
	Memory   size.Bytes `yaml:"memory" json:"memory"`
	Firmware string     `yaml:"firmware" json:"firmware"`               // one of QEMUFirmwares
	Disk     string     `yaml:"disk" json:"disk"`                       // a device model that takes drive=, or sd: the machine's own card slot
	Network  string     `yaml:"network" json:"network"`                 // a device model that takes netdev=, or onboard, or none
	Tree     string     `yaml:"devicetree" json:"devicetree,omitempty"` // with firmware u-boot: the one that the real firmware would hand over
	Without  []string   `yaml:"without" json:"without,omitempty"`       // "compatible" values in it that are taken away, because the emulation does harm
	Console  int        `yaml:"console" json:"console,omitempty"`       // which of the machine's serial ports is the console
	Args     []string   `yaml:"args" json:"args,omitempty"`
}

// Load gives the board with this id; the error for an unknown one lists those there are.
func Load(id string) (*Board, error) {
	name := id + ".yaml"
	if path.Base(name) != name {
		return nil, unknown(id)
	}
	data, err := files.ReadFile(name)
	if err != nil {
		return nil, unknown(id)
	}
	return Decode("boards/"+name, data)
}

// All gives every board, sorted by id.
func All() ([]*Board, error) {
	var out []*Board
	for _, id := range ids() {
		b, err := Load(id)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Decode reads and validates a board file. The error names every fault by line and column.
func Decode(name string, data []byte) (*Board, error) {
	b := new(Board)
	if base := baseOf(data); base != "" {
		var err error
		if b, err = Load(base); err != nil {
			return nil, fmt.Errorf("%s: base: %w", name, err)
		}
		if b.Base != "" {
			return nil, fmt.Errorf("%s: base: board %s has a base itself, %s; name that one", name, base, b.Base)
		}
	}
	doc, err := strictyaml.Decode(name, data, b) // over what the base says
	if err != nil {
		return nil, err
	}
	if err := b.addSets(doc); err != nil {
		return nil, err
	}
	if err := b.validate(strings.TrimSuffix(path.Base(name), ".yaml"), doc); err != nil {
		return nil, err
	}
	return b, nil
}

// addSets adds the module lists that boards share, without what the board has already.
func (b *Board) addSets(doc *strictyaml.Doc) error {
	for i, name := range b.Modules.Sets {
		file := "sets/" + name + ".yaml"
		data, err := files.ReadFile(file)
		if err != nil || path.Base(file) != name+".yaml" {
			return doc.At(fmt.Sprintf("modules.sets.%d: there is no list %q in boards/sets", i, name), "modules", "sets", i)
		}
		var set ModuleSet
		if _, err := strictyaml.Decode("boards/"+file, data, &set); err != nil {
			return err
		}
		has := map[string]bool{}
		for _, m := range slices.Concat(b.Modules.Boot.All(), b.Modules.Node.All()) {
			has[moduleKey(m)] = true
		}
		known := func(m string) bool { return has[moduleKey(m)] }
		b.Modules.Node.Load = append(b.Modules.Node.Load, slices.DeleteFunc(set.Load, known)...)
		b.Modules.Node.Carry = append(b.Modules.Node.Carry, slices.DeleteFunc(set.Carry, known)...)
	}
	return nil
}

// baseOf looks for the base ahead of the strict reading, which finds what is wrong with the file.
func baseOf(data []byte) string {
	var head struct {
		Base string `yaml:"base"`
	}
	_ = yaml.Unmarshal(data, &head)
	return head.Base
}

func ids() []string {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil { // the pattern is a constant
		panic(err)
	}
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".yaml")
	}
	slices.Sort(names)
	return names
}

func unknown(id string) error {
	return fmt.Errorf("board %q: is not one of %s; `skerry board list` tells what they are", id, strings.Join(ids(), ", "))
}
