// Package host is the machine this process runs on, as updates see it: its slots, its firmware, whom it trusts.
package host

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/slot"
)

// RecordFile is where the record of updates is.
const RecordFile = machine.DataDir + "/update/record.json"

// MetadataDir holds what was seen of the repository's metadata.
const MetadataDir = machine.DataDir + "/update/metadata"

// TrialSocket is where skerryd tells init, during a trial, how healthy the node is: a message with TrialField.
const TrialSocket = "/run/skerry/trial.sock"

// TrialField is TrialGood, or what the node still waits for; TrialNote is what differs and was explained.
const (
	TrialField = "SKERRY_TRIAL"
	TrialGood  = "good"
	TrialNote  = "SKERRY_TRIAL_NOTE"
)

// ControlSocket is where skerryd takes what a person asks of its updates.
const ControlSocket = "/run/skerry/update.sock"

// Host is an opened machine.
type Host struct {
	Selector slot.Selector
	Roots    map[slot.ID]*linux.Device
	open     []*linux.Device
}

// Close gives the devices back.
func (h *Host) Close() error {
	var errs []error
	for _, d := range h.open {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// ErrNoSlots means that this is no image of Skerry's, so that there is nothing to update.
var ErrNoSlots = errors.New("this is no machine that runs Skerry's image; update the program and its folders as you installed them")

// Identity reads which image this is; ErrNoSlots where it is none.
func Identity() (machine.Identity, error) {
	id, err := machine.ReadIdentity(os.DirFS("/"))
	if errors.Is(err, fs.ErrNotExist) {
		return id, ErrNoSlots
	}
	if err == nil && id.Boot.Netboot {
		return id, ErrNoSlots // it runs from memory, and gets its release from the network at each start
	}
	return id, err
}

// Open finds the slots on the disk that was booted from.
func Open(id machine.Identity) (_ *Host, err error) {
	parts, err := linux.Partitions(os.DirFS("/sys"))
	if err != nil {
		return nil, err
	}
	h := &Host{Roots: map[slot.ID]*linux.Device{}}
	defer func() {
		if err != nil {
			_ = h.Close()
		}
	}()
	byLabel := map[string]linux.Partition{}
	for _, p := range parts {
		if p.DiskDev() == id.Boot.Disk {
			byLabel[p.Label] = p
		}
	}
	for _, s := range slot.IDs {
		p, ok := byLabel[s.RootLabel()]
		if !ok {
			return nil, fmt.Errorf("%s: has no partition %s", id.Boot.Disk, s.RootLabel())
		}
		if s == id.Boot.Slot {
			h.Roots[s], err = linux.OpenDeviceReadOnly(p.Dev()) // not even by mistake
		} else {
			h.Roots[s], err = linux.OpenDevice(p.Dev())
		}
		if err != nil {
			return nil, err
		}
		h.open = append(h.open, h.Roots[s])
	}
	board, err := boards.Load(id.Boot.Board)
	if err != nil {
		return nil, err
	}
	switch board.Slots {
	case boards.UEFI:
		err = h.uefi(id, byLabel[boards.ESP])
	case boards.UBoot:
		var v slot.Volume
		v, err = h.volume(id, byLabel, boards.ESP)
		h.Selector = slot.NewUBoot(v)
	case boards.GRUB:
		err = h.grub(id, byLabel)
	case boards.Pi:
		err = h.pi(id, byLabel)
	default:
		err = fmt.Errorf("board %s: updates do not know its firmware (%s) yet", board.ID, board.Slots)
	}
	return h, err
}

// loaders is the name by which firmware starts the boot loader.
var loaders = map[string]string{"amd64": `\EFI\BOOT\BOOTX64.EFI`, "arm64": `\EFI\BOOT\BOOTAA64.EFI`, "arm": `\EFI\BOOT\BOOTARM.EFI`}

func (h *Host) uefi(id machine.Identity, p linux.Partition) error {
	if p.Name == "" {
		return fmt.Errorf("%s: has no partition %s", id.Boot.Disk, boards.ESP)
	}
	dev, err := linux.OpenDevice(p.Dev())
	if err != nil {
		return err
	}
	h.open = append(h.open, dev)
	u := slot.UEFI{ESP: slot.Volume{Device: dev, Size: dev.Size()}}
	vars := linux.EFIVars().Target
	if _, err := os.Stat(filepath.Join(vars, slot.BootOrder)); err == nil {
		u.Set = linux.EFIVariables{Dir: vars}
		if u.Disk, err = diskPath(id, p); err != nil {
			return err
		}
	}
	u.Vars = os.DirFS(vars)
	h.Selector = u
	return nil
}

// volume opens a partition that the firmware reads.
func (h *Host) volume(id machine.Identity, byLabel map[string]linux.Partition, label string) (slot.Volume, error) {
	p, ok := byLabel[label]
	if !ok {
		return slot.Volume{}, fmt.Errorf("%s: has no partition %s", id.Boot.Disk, label)
	}
	dev, err := linux.OpenDevice(p.Dev())
	if err != nil {
		return slot.Volume{}, err
	}
	h.open = append(h.open, dev)
	return slot.Volume{Device: dev, Size: dev.Size()}, nil
}

func (h *Host) grub(id machine.Identity, byLabel map[string]linux.Partition) error {
	v, err := h.volume(id, byLabel, boards.ESP)
	if err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	h.Selector = slot.NewGRUB(v, string(line))
	return err
}

func (h *Host) pi(id machine.Identity, byLabel map[string]linux.Partition) (err error) {
	s := slot.Pi{Boot: map[slot.ID]slot.Volume{}, Number: map[slot.ID]int{}, Chosen: os.DirFS(slot.PiChosen)}
	if s.Select, err = h.volume(id, byLabel, boards.Select); err != nil {
		return err
	}
	for _, i := range slot.IDs {
		if s.Boot[i], err = h.volume(id, byLabel, i.BootLabel()); err != nil {
			return err
		}
		s.Number[i] = byLabel[i.BootLabel()].Num
	}
	h.Selector = s
	return nil
}

func diskPath(id machine.Identity, p linux.Partition) (slot.DiskPath, error) {
	f, err := os.Open(id.Boot.Disk)
	if err != nil {
		return slot.DiskPath{}, err
	}
	defer f.Close()
	size, err := linux.DeviceSize(f)
	if err != nil {
		return slot.DiskPath{}, err
	}
	t, err := disk.Read(f, size-size%disk.Sector)
	if t == nil || p.Num < 1 || p.Num > len(t.Partitions) {
		return slot.DiskPath{}, errors.Join(fmt.Errorf("%s: has no partition %d in its table", id.Boot.Disk, p.Num), err)
	}
	e := t.Partitions[p.Num-1]
	return slot.DiskPath{
		Number: uint32(p.Num), Start: uint64(e.Start / disk.Sector), Blocks: uint64(e.Size / disk.Sector), GUID: e.GUID.OnDisk(),
		Loader: loaders[id.Release.Arch],
	}, nil
}

// Free is how much room there is for files in a folder, or where it would be made.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for ; errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir); err = unix.Statfs(dir, &st) {
		dir = filepath.Dir(dir)
	}
	return int64(st.Bavail) * int64(st.Bsize), err //nolint:unconvert,gosec // 32 bits on arm; no disk is that large
}

// Trust reads whom the signed kernel image says to trust: for releases, and for the repository (nil for none).
func Trust(fsys fs.FS) (releases []ed25519.PublicKey, root []byte, err error) {
	names, err := fs.Glob(fsys, machine.TrustDir+"/*.pub")
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, nil, err
		}
		key, err := keys.ParsePublic(data)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		releases = append(releases, key)
	}
	root, err = fs.ReadFile(fsys, machine.TrustDir+"/root.json")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return releases, root, err
}
