package main

import (
	"errors"
	"os"
	"slices"

	"github.com/skerry-os/skerry/pkg/linux"
	"github.com/skerry-os/skerry/pkg/slot"
)

// findByState looks for the slot on machines whose firmware leaves its word on the disk (U-Boot) or names a partition of it
// (Raspberry Pi): on each disk that has both slots, the one the firmware means, or else the other one, whose signed manifest
// names this kernel's root hash. The kernel is what surely was started; the word only tells two equal slots apart, and
// whether this is a trial.
func (s *system) findByState(parts []linux.Partition) (*linux.Partition, bool) {
	for _, disk := range disksOf(parts) {
		var on []linux.Partition
		for _, p := range parts {
			if p.Disk == disk {
				on = append(on, p)
			}
		}
		said, trial, err := s.bootedOn(on)
		if errors.Is(err, errOtherDisk) {
			continue
		}
		if err != nil {
			s.boot.Note = oneLine(err)
			said, trial = slot.A, false
		}
		for _, id := range []slot.ID{said, said.Other()} {
			p := labelled(on, id.RootLabel())
			if p == nil {
				continue
			}
			r, err := readTail(*p, s.keys)
			if err != nil {
				s.console.sayf("find slot: %s: %s; not this one", p.Dev(), oneLine(err))
				continue
			}
			if r.Manifest().Root.RootHash == s.cmdline.rootHash {
				return p, trial && id == said
			}
		}
	}
	return nil, false
}

var errOtherDisk = errors.New("the disk has no partitions for this firmware")

// bootedOn asks the selector which slot of a disk was started.
func (s *system) bootedOn(on []linux.Partition) (slot.ID, bool, error) {
	switch s.cmdline.slots {
	case slot.KindUBoot:
		p := labelled(on, "esp")
		if p == nil {
			return "", false, errOtherDisk
		}
		dev, err := linux.OpenDeviceReadOnly(p.Dev())
		if err != nil {
			return "", false, err
		}
		defer func() { _ = dev.Close() }()
		return slot.NewUBoot(slot.Volume{Device: dev, Size: dev.Size()}).Booted()
	default:
		pi := slot.Pi{Number: map[slot.ID]int{}, Chosen: os.DirFS(slot.PiChosen)}
		for _, id := range slot.IDs {
			p := labelled(on, id.BootLabel())
			if p == nil {
				return "", false, errOtherDisk
			}
			pi.Number[id] = p.Num
		}
		return pi.Booted()
	}
}

func labelled(parts []linux.Partition, label string) *linux.Partition {
	i := slices.IndexFunc(parts, func(p linux.Partition) bool { return p.Label == label })
	if i < 0 {
		return nil
	}
	return &parts[i]
}

func disksOf(parts []linux.Partition) (disks []string) {
	for _, p := range parts {
		if !slices.Contains(disks, p.Disk) {
			disks = append(disks, p.Disk)
		}
	}
	return disks
}
