package slot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/skerry-os/skerry/image/fat"
)

// Pi is the Selector of Raspberry Pis whose firmware knows tryboot (4 and later):
// https://www.raspberrypi.com/documentation/computers/config_txt.html#example-update-flow-for-ab-booting
//
// The partition "select" holds autoboot.txt, which says which of two boot partitions counts, and which one a restart with the
// argument "0 tryboot" uses, once. A trial that ends in any other way than Keep is over with the next restart.
type Pi struct {
	Select Volume
	Boot   map[ID]Volume // the boot partitions of the slots
	Number map[ID]int    // and their numbers in the table
	Chosen fs.FS         // what the firmware says: PiChosen
}

// The files of the firmware.
const (
	Autoboot = "autoboot.txt" // on "select"
	PiKernel = "boot.img"     // on each boot partition; config.txt beside it says boot_ramdisk=1: kernel, initramfs, device trees and command line are in it
)

// PiChosen is where the kernel shows what the firmware says of the boot.
const PiChosen = "/proc/device-tree/chosen/bootloader"

const (
	piStaged  = "boot.new"
	piReboot  = "0 tryboot"
	piHead    = "[all]\ntryboot_a_b=1\n"
	piTryboot = "[tryboot]\n"
)

var bootPartition = regexp.MustCompile(`(?m)^boot_partition=([0-9]+)\r?$`)

// render gives autoboot.txt; trial is "" for none.
func (p Pi) render(kept, trial ID) string {
	text := fmt.Sprintf("%sboot_partition=%d\n", piHead, p.Number[kept])
	if trial != "" {
		text += fmt.Sprintf("%sboot_partition=%d\n", piTryboot, p.Number[trial])
	}
	return text
}

// PiState gives autoboot.txt of a machine that was never updated.
func PiState(number map[ID]int) []byte { return []byte(Pi{Number: number}.render(A, "")) }

func (p Pi) open() (e *fat.Editor, kept, trial ID, err error) {
	e, err = p.Select.edit()
	if err != nil {
		return nil, "", "", err
	}
	text, err := readText(e, Autoboot)
	if err != nil {
		return nil, "", "", err
	}
	all, try, _ := strings.Cut(text, piTryboot)
	if kept, err = p.slotIn(all); err != nil {
		return nil, "", "", err
	}
	if kept == "" {
		return nil, "", "", fmt.Errorf("/%s: has no boot_partition for every boot", Autoboot)
	}
	trial, err = p.slotIn(try)
	return e, kept, trial, err
}

func (p Pi) slotIn(text string) (ID, error) {
	m := bootPartition.FindStringSubmatch(text)
	if m == nil {
		return "", nil
	}
	for _, id := range IDs {
		if strconv.Itoa(p.Number[id]) == m[1] {
			return id, nil
		}
	}
	return "", fmt.Errorf("/%s: boot_partition=%s is neither slot's", Autoboot, m[1])
}

func (p Pi) write(e *fat.Editor, kept, trial ID) error {
	text := p.render(kept, trial)
	return e.Write(Autoboot, int64(len(text)), strings.NewReader(text))
}

// Booted reads what the firmware left in the device tree.
func (p Pi) Booted() (id ID, trial bool, err error) {
	part, err := p.chosen("partition")
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, ErrNotNamed
	}
	if err != nil {
		return "", false, err
	}
	try, err := p.chosen("tryboot")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	for _, id := range IDs {
		if uint32(p.Number[id]) == part {
			return id, try == 1, nil
		}
	}
	return "", false, fmt.Errorf("the firmware started partition %d, which is neither slot's", part)
}

func (p Pi) chosen(name string) (uint32, error) {
	data, err := fs.ReadFile(p.Chosen, name)
	if err != nil {
		return 0, err
	}
	if len(data) != 4 {
		return 0, fmt.Errorf("device tree: chosen/bootloader/%s: %d bytes are not a number", name, len(data))
	}
	return binary.BigEndian.Uint32(data), nil
}

// Kept reads autoboot.txt.
func (p Pi) Kept() (ID, error) {
	_, kept, _, err := p.open()
	return kept, err
}

// Room is what the slot's own boot partition would have.
func (p Pi) Room(id ID) (int64, error) {
	e, err := p.Boot[id].edit()
	if err != nil {
		return 0, err
	}
	room := e.Free()
	for _, name := range []string{PiKernel, piStaged} {
		if f, ok := e.Find(name); ok {
			room += e.Takes(f.Size)
		}
	}
	return room, nil
}

// Clear ends a trial and takes the slot's kernel away.
func (p Pi) Clear(id ID) error {
	if err := p.other(id); err != nil {
		return err
	}
	e, kept, trial, err := p.open()
	if err != nil {
		return err
	}
	if trial != "" {
		if err := p.write(e, kept, ""); err != nil {
			return err
		}
	}
	b, err := p.Boot[id].edit()
	if err != nil {
		return err
	}
	return removeAll(b, []string{PiKernel, piStaged})
}

func (p Pi) other(id ID) error {
	kept, err := p.Kept()
	if err == nil && kept == id {
		err = fmt.Errorf("slot %s: %w", id, ErrInUse)
	}
	return err
}

// Stage writes the kernel into the slot's boot partition, under another name.
func (p Pi) Stage(id ID, kernel io.Reader, size int64) error {
	if err := p.other(id); err != nil {
		return err
	}
	e, err := p.Boot[id].edit()
	if err != nil {
		return err
	}
	return stage(e, piStaged, kernel, size)
}

// Kernel is boot.img on the slot's boot partition.
func (p Pi) Kernel(id ID) (io.ReaderAt, int64, error) {
	e, err := p.Boot[id].edit()
	if err != nil {
		return nil, 0, err
	}
	return kernelIn(e, id, PiKernel)
}

// TryOnce names the slot's partition for one boot.
func (p Pi) TryOnce(id ID) (rebootArg string, err error) {
	if err := p.other(id); err != nil {
		return "", err
	}
	if ok, err := p.bootable(id.Other()); err != nil || !ok {
		return "", errors.Join(fmt.Errorf("slot %s: has no kernel: %w", id.Other(), ErrNoFallback), err)
	}
	b, err := p.Boot[id].edit()
	if err != nil {
		return "", err
	}
	if _, staged := b.Find(piStaged); staged {
		if err := b.Remove(PiKernel); err != nil {
			return "", err
		}
		if err := b.Rename(piStaged, PiKernel); err != nil {
			return "", err
		}
	}
	if _, ok := b.Find(PiKernel); !ok {
		return "", fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	e, kept, _, err := p.open()
	if err != nil {
		return "", err
	}
	return piReboot, p.write(e, kept, id)
}

func (p Pi) bootable(id ID) (bool, error) {
	e, err := p.Boot[id].edit()
	if err != nil {
		return false, err
	}
	_, ok := e.Find(PiKernel)
	return ok, nil
}

// Keep writes autoboot.txt.
func (p Pi) Keep(id ID) error {
	ok, err := p.bootable(id)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("slot %s: %w", id, ErrEmpty)
	}
	e, kept, trial, err := p.open()
	if err != nil || kept == id && trial == "" {
		return err
	}
	return p.write(e, id, "")
}
