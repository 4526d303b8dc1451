package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// Where a release keeps what every UEFI board of it boots with.
const bootLoader = "boot/systemd-boot.efi"

// enrolment lists the signed variables, in the order systemd-boot's documentation names them.
var enrolment = []string{"PK", "KEK", "db"}

// removable is the name by which firmware finds a boot loader on a disk it has no boot entry for.
var removable = map[string]string{"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI", "arm": "BOOTARM.EFI"}

// LoaderPath is where the boot loader lies on the ESP of an architecture's boards.
func LoaderPath(arch string) string { return "EFI/BOOT/" + removable[arch] }

// bootFile is one file of the ESP: from the release, or with the bytes given.
type bootFile struct {
	path string
	from *release.File
	data []byte
}

// KernelPath is where slot id's kernel image lies on the ESP.
func KernelPath(id slot.ID) string { return "EFI/Linux/os-" + string(id) + ".efi" }

// loaderConf is systemd-boot's configuration. The menu never shows; a held key brings it up. Keys are enrolled only by
// firmware in setup mode, which is firmware without keys; any other takes no notice of the line.
func loaderConf(secureBoot bool) []byte {
	enrol := "off"
	if secureBoot {
		enrol = "force"
	}
	return []byte("timeout 0\ndefault os-a.efi\neditor no\nauto-entries no\nauto-firmware no\nsecure-boot-enroll " + enrol + "\n")
}

// bootFiles lists the ESP's files in disk order.
func (d *draft) bootFiles() ([]bootFile, error) {
	m := d.rel.Manifest()
	kernel := m.Boards[d.board].Boot
	var errs []error
	find := func(path string) *release.File {
		i := slices.IndexFunc(m.Files, func(f release.File) bool { return f.Path == path })
		if i < 0 {
			errs = append(errs, fmt.Errorf("release %s: lacks %s, which board %s needs; build it again", m.Version, path, d.board))
			return nil
		}
		return &m.Files[i]
	}
	var files []bootFile
	states := map[string]func() map[string][]byte{boards.UBoot: slot.UBootState, boards.GRUB: slot.GRUBState}
	state, scripted := states[m.Boards[d.board].Slots]
	if !scripted {
		files = append(files, bootFile{path: LoaderPath(m.Arch), from: find(bootLoader)})
	}
	files = append(files, d.besideKernels()...)
	for _, id := range slot.IDs {
		files = append(files, bootFile{path: KernelPath(id), from: &kernel})
	}
	if scripted {
		state := state()
		for _, name := range slices.Sorted(maps.Keys(state)) {
			files = append(files, bootFile{path: name, data: state[name]})
		}
		return append(files, d.policyFiles()...), errors.Join(errs...)
	}
	files = append(files, bootFile{path: "loader/loader.conf", data: loaderConf(d.secureBoot)})
	if d.secureBoot {
		for _, name := range enrolment {
			files = append(files, bootFile{path: "loader/keys/auto/" + name + ".auth", from: find("secureboot/" + name + ".auth")})
		}
	}
	return append(files, d.policyFiles()...), errors.Join(errs...)
}

// policyFiles say which node configs the machine takes.
func (d *draft) policyFiles() (files []bootFile) {
	if d.policy != "" {
		files = append(files, bootFile{path: machine.ImagePolicyFile, data: []byte(d.policy + "\n")})
	}
	if len(d.configKeys) > 0 {
		files = append(files, bootFile{path: machine.ImageKeysFile, data: d.configKeys})
	}
	return files
}

func (d *draft) esp(p *Plan, part *Partition) error {
	files, err := d.bootFiles()
	if err != nil {
		return err
	}
	free, err := d.volume(p, part, "SKERRY-ESP", files)
	if err != nil {
		return err
	}
	// An update writes the new kernel beside the two that are there.
	if need := d.rel.Manifest().Boards[d.board].Boot.Size; free < need {
		return fmt.Errorf("partition %s: has %d bytes free, and an update needs room for a third kernel image of %d", part.Name, free, need)
	}
	return nil
}

// firmware lists what the release has for the board's firmware.
func (d *draft) firmware() []release.Firmware { return d.rel.Manifest().Boards[d.board].Firmware }

// besideKernels lists those of its files that lie beside the kernels.
func (d *draft) besideKernels() (files []bootFile) {
	for _, f := range d.firmware() {
		if f.To != "" {
			files = append(files, bootFile{path: f.To, from: &f.File})
		}
	}
	return files
}

// selectVolume says which boot partition counts.
func (d *draft) selectVolume(p *Plan, part *Partition) error {
	number := map[slot.ID]int{}
	for i, other := range d.parts {
		for _, id := range slot.IDs {
			if other.Name == id.BootLabel() {
				number[id] = i + 1
			}
		}
	}
	_, err := d.volume(p, part, "SKERRY-SEL", append([]bootFile{{path: slot.Autoboot, data: slot.PiState(number)}}, d.policyFiles()...))
	return err
}

// kernelVolume is one slot's own boot partition.
func (d *draft) kernelVolume(p *Plan, part *Partition) error {
	kernel := d.rel.Manifest().Boards[d.board].Boot
	files := append(d.besideKernels(), bootFile{path: slot.PiKernel, from: &kernel})
	free, err := d.volume(p, part, strings.ToUpper("skerry-"+part.Name[len("boot-"):]), files)
	if err == nil && free < kernel.Size {
		err = fmt.Errorf("partition %s: has %d bytes free, and an update needs room for a second kernel image of %d", part.Name, free, kernel.Size)
	}
	return err
}

func (d *draft) configVolume(p *Plan, part *Partition) error {
	var files []bootFile
	if d.config != nil {
		files = append(files, bootFile{path: ConfigName, data: d.config})
	}
	for _, f := range d.beside {
		files = append(files, bootFile{path: f.Name, data: f.Data})
	}
	_, err := d.volume(p, part, ConfigLabel, files)
	return err
}

// volume plans a FAT volume with these files in it, and says what stays free.
func (d *draft) volume(p *Plan, part *Partition, label string, files []bootFile) (int64, error) {
	params := fat.Params{Size: part.Size, Label: label, Serial: serialFor(p.GUID, part.Name), Time: fatTime(d.rel.Manifest())}
	list := make([]fat.File, len(files))
	for i, f := range files {
		list[i] = fat.File{Path: f.path, Size: int64(len(f.data))}
		if f.from != nil {
			list[i].Size = f.from.Size
		}
	}
	l, err := fat.Lay(params, list)
	if err != nil {
		return 0, fmt.Errorf("partition %s: %w", part.Name, err)
	}
	part.Serial = fmt.Sprintf("%04X-%04X", params.Serial>>16, params.Serial&0xffff)
	for _, c := range l.Meta {
		p.made(part.Start+c.Offset, part.Name, c.What, c.Data)
	}
	for i, f := range l.Files {
		switch from := files[i].from; {
		case f.Size == 0:
		case from != nil:
			p.release(part.Start+f.Offset, part.Name, "/"+f.Path, *from)
		default:
			p.made(part.Start+f.Offset, part.Name, "/"+f.Path, files[i].data)
			if part.Name == boards.Config {
				p.Extents[len(p.Extents)-1].Source = typed
			}
		}
	}
	return l.Free, nil
}
