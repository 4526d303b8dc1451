// Package boards knows the machines Skerry runs on. A board is data: one <id>.yaml in this folder says everything about it
// and nothing registers it; the glob below embeds it and a test loads it.
package boards

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

//go:embed *.yaml
var files embed.FS

// Board is a kind of machine. It is not changed after Load.
type Board struct {
	ID       string     `yaml:"id" json:"id"`
	Name     string     `yaml:"name" json:"name"`             // what a person calls it
	Arch     string     `yaml:"arch" json:"arch"`             // one of release.Arches
	Match    []string   `yaml:"match" json:"match,omitempty"` // device tree "compatible" values; none where firmware describes the machine
	Slots    string     `yaml:"slots" json:"slots"`           // the slot.Selector, one of Selectors
	Kernel   Kernel     `yaml:"kernel" json:"kernel"`
	Modules  Modules    `yaml:"modules" json:"modules"`
	Firmware []Firmware `yaml:"firmware" json:"firmware,omitempty"`
	Disk     Disk       `yaml:"disk" json:"disk"`
	QEMU     *QEMU      `yaml:"qemu" json:"qemu,omitempty"` // nil: no emulation of this machine exists
}

// Kernel is the Debian package of the kernel and how it is started.
type Kernel struct {
	Package string   `yaml:"package" json:"package"` // may be a metapackage such as linux-image-amd64
	Suite   string   `yaml:"suite" json:"suite"`     // such as bookworm-backports
	Args    []string `yaml:"args" json:"args"`       // before the ones every board gets
}

// Modules are kernel modules by the names of their files, without .ko; dependencies are found by pkg/kmod.
type Modules struct {
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
	Table      string      `yaml:"table" json:"table"`
	Partitions []Partition `yaml:"partitions" json:"partitions"` // in disk order
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
	Firmware string     `yaml:"firmware" json:"firmware"` // one of QEMUFirmwares
	Disk     string     `yaml:"disk" json:"disk"`         // a device model that takes drive=
	Network  string     `yaml:"network" json:"network"`   // a device model that takes netdev=
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
	doc, err := strictyaml.Decode(name, data, b)
	if err != nil {
		return nil, err
	}
	if err := b.validate(strings.TrimSuffix(path.Base(name), ".yaml"), doc); err != nil {
		return nil, err
	}
	return b, nil
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
