package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/flash"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/size"
)

func (i *Installer) disks() ([]flash.Disk, error) { return flash.Disks(os.DirFS(i.Root)) }

// pick chooses the one disk that is meant. data says what a disk holds that must not be lost, "" for nothing.
func (i *Installer) pick(key string, sel machine.DiskSelector, disks []flash.Disk, least int64, data func(flash.Disk) (string, error)) (flash.Disk, error) {
	var fit []flash.Disk
	var not []string
	for _, d := range disks {
		switch {
		case !sel.Fits(d.Size, d.Model, d.Serial, d.Transport):
			not = append(not, describe(d)+" does not match")
		case d.ReadOnly:
			not = append(not, describe(d)+" is read-only")
		case d.Size < least:
			not = append(not, fmt.Sprintf("%s is smaller than %s", describe(d), size.Bytes(least).Rounded()))
		case sel.Empty() && d.Removable:
			not = append(not, describe(d)+" is removable; pick it by "+key+" if it is meant")
		default:
			what, err := data(d)
			if err != nil {
				return flash.Disk{}, err
			}
			if what != "" {
				not = append(not, fmt.Sprintf("%s holds %s; write install.wipe: true if that may be lost", describe(d), what))
				continue
			}
			fit = append(fit, d)
		}
	}
	switch {
	case len(disks) == 0:
		return flash.Disk{}, errors.New("this machine has no disk, or none that the installer has a driver for")
	case len(fit) == 0:
		return flash.Disk{}, fmt.Errorf("no disk matches %s: %s", key, strings.Join(not, "; "))
	case len(fit) > 1:
		var names []string
		for _, d := range fit {
			names = append(names, describe(d))
		}
		return flash.Disk{}, fmt.Errorf("%d disks match %s: %s; say more of the one that is meant", len(fit), key, strings.Join(names, "; "))
	}
	return fit[0], nil
}

func describe(d flash.Disk) string {
	text := d.String()
	if d.Serial != "" {
		text += ", serial " + d.Serial
	}
	return text
}

// sampled is how much of a disk's begin and end is read, and spots how many places between, to say whether it is empty.
const (
	sampled = 4 << 20
	spots   = 256
)

// data says what a disk holds, "" for nothing but zeros.
func (i *Installer) data(d flash.Disk) (string, error) {
	f, err := os.Open(i.path(d))
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	if t, err := disk.ReadFirst(f, disk.SizeOf(f, d.Size)); err == nil {
		var names []string
		for _, p := range t.Partitions {
			names = append(names, p.Name)
		}
		return "partitions (" + strings.Join(names, ", ") + ")", nil
	}
	b := make([]byte, sampled)
	look := func(at int64, n int64) (bool, error) {
		if at < 0 || n <= 0 {
			return false, nil
		}
		got, err := f.ReadAt(b[:n], at)
		if int64(got) < n {
			return false, fmt.Errorf("%s: reading at byte %d: %w", d.Path, at, err)
		}
		return slices.ContainsFunc(b[:n], func(c byte) bool { return c != 0 && c != 0xff }), nil // flash memory forgets to ones
	}
	places := [][2]int64{{0, min(sampled, d.Size)}, {max(0, d.Size-sampled), min(sampled, d.Size)}}
	for s := range int64(spots) {
		places = append(places, [2]int64{d.Size / spots * s &^ 4095, min(4096, d.Size)})
	}
	for _, p := range places {
		found, err := look(p[0], p[1])
		if err != nil || found {
			return "data", err
		}
	}
	return "", nil
}

func (i *Installer) path(d flash.Disk) string { return filepath.Join(i.Root, d.Path) }

// marker is what an installation leaves on the disk, in the gap before the first partition: whose it is. A server that lost its
// memory learns from it that the machine is installed.
type marker struct {
	ID     string   `json:"id"`
	MACs   []string `json:"macs"`
	Serial string   `json:"serial,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Begun  bool     `json:"begun,omitempty"` // and not ended: nothing on the disk is of use
}

const (
	markerAt   = 1<<20 - markerSize // partitions begin at 1 MiB
	markerSize = 4096
)

var markerMagic = []byte("SKERRY-INSTALL\x00\x01")

func (i *Installer) marker(id string, begun bool) marker {
	return marker{ID: id, MACs: i.Hello.MACs, Serial: i.Hello.Serial, UUID: i.Hello.UUID, Begun: begun}
}

// writeMarker makes it durable.
func writeMarker(d Disk, m marker) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b := append(bytes.Clone(markerMagic), data...)
	if len(b) > markerSize {
		return errors.New("the marker of the installation is too long")
	}
	if _, err := d.WriteAt(append(b, make([]byte, markerSize-len(b))...), markerAt); err != nil {
		return err
	}
	return d.Sync()
}

func readMarker(r interface {
	ReadAt([]byte, int64) (int, error)
}) (m marker, ok bool) {
	b := make([]byte, markerSize)
	if _, err := r.ReadAt(b, markerAt); err != nil {
		return m, false
	}
	data, ok := bytes.CutPrefix(b, markerMagic)
	if !ok {
		return m, false
	}
	return m, json.Unmarshal(bytes.TrimRight(data, "\x00"), &m) == nil
}

// mine gives the marker of this machine's installation on a disk. One that came from another machine is not.
func (i *Installer) mine(d flash.Disk) (m marker, ok bool) {
	f, err := os.Open(i.path(d))
	if err != nil {
		return m, false
	}
	defer f.Close() //nolint:errcheck // only read
	if m, ok = readMarker(f); !ok {
		return m, false
	}
	if m.Serial != "" && m.Serial == i.Hello.Serial || m.UUID != "" && m.UUID == i.Hello.UUID ||
		slices.ContainsFunc(m.MACs, func(mac string) bool { return slices.Contains(i.Hello.MACs, mac) }) {
		return m, true
	}
	return m, false
}

// holds gives the ID of an installation that was ended, "" for none.
func (i *Installer) holds(disks []flash.Disk) string {
	for _, d := range disks {
		if m, ok := i.mine(d); ok && !m.Begun {
			return m.ID
		}
	}
	return ""
}

// own are the disks that hold an installation of this machine, ended or not; all, if none does.
func (i *Installer) own(disks []flash.Disk) []flash.Disk {
	var out []flash.Disk
	for _, d := range disks {
		if _, ok := i.mine(d); ok {
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		return disks
	}
	return out
}

// hasData says whether a disk has a data partition of ours alone: that of a diskless machine.
func (i *Installer) hasData(d flash.Disk) bool {
	f, err := os.Open(i.path(d))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	t, err := disk.ReadFirst(f, disk.SizeOf(f, d.Size))
	return err == nil && len(t.Partitions) == 1 && t.Partitions[0].Name == boards.Data
}

// makeData gives a disk one partition, which the node's first start formats.
func (i *Installer) makeData(d flash.Disk) error {
	f, err := i.Open(i.path(d))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced before
	const edge = int64(size.MiB)
	whole := f.Size() &^ (edge - 1)
	t := &disk.Table{Size: whole, GUID: newGUID(), Partitions: []disk.Partition{{Name: boards.Data, Type: disk.TypeLinux, GUID: newGUID(), Start: edge, Size: whole - 2*edge}}}
	head, tail, err := t.Encode()
	if err != nil {
		return err
	}
	part := t.Partitions[0]
	if _, err := f.WriteAt(datafs.Fresh(), part.Start); err != nil { // or a filesystem of before would be found there
		return err
	}
	if _, err := f.WriteAt(tail, whole-int64(len(tail))); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if r, ok := f.(interface{ Reread() }); ok {
		r.Reread()
	}
	return nil
}
