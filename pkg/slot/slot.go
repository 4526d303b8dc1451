// Package slot is about the two places an OS can boot from. It holds the words that boards, images, init and updates share;
// each kind of firmware has a Selector.
package slot

import (
	"errors"
	"fmt"
	"io"

	"github.com/skerry-os/skerry/image/fat"
)

// ID names a slot. The zero value is no slot.
type ID string

// The two slots. An image is written with A booted and B empty of promises: both hold the same release.
const (
	A ID = "a"
	B ID = "b"
)

// IDs lists the slots in disk order.
var IDs = [...]ID{A, B}

// Parse reads "a" or "b".
func Parse(s string) (ID, error) {
	switch id := ID(s); id {
	case A, B:
		return id, nil
	}
	return "", fmt.Errorf("slot %q: is neither a nor b", s)
}

// Other is the slot that id is not.
func (id ID) Other() ID {
	switch id {
	case A:
		return B
	case B:
		return A
	}
	return ""
}

// RootLabel is the GPT partition name of the slot's root: "root-a", "root-b".
func (id ID) RootLabel() string { return "root-" + string(id) }

// BootLabel is the name of the slot's own boot partition, on machines whose firmware picks one: "boot-a", "boot-b".
func (id ID) BootLabel() string { return "boot-" + string(id) }

// Why a Selector refuses.
var (
	// ErrNoFallback means that the slot to fall back to could not boot: nothing may be tried.
	ErrNoFallback = errors.New("there is no slot to fall back to")
	// ErrInUse means that the slot is the one that boots, and must not be touched.
	ErrInUse = errors.New("is the slot that boots")
	// ErrEmpty means that the slot has no kernel.
	ErrEmpty = errors.New("holds no kernel")
	// ErrNoRoom means that a kernel does not fit.
	ErrNoRoom = fat.ErrNoRoom
)

// Selector is how one kind of firmware picks a slot. In each, the FIRMWARE does the falling back, so that a kernel that
// never starts is covered too. What it changes survives a power cut at any instant: the machine then boots the slot of before
// or the slot of after. slottest holds what all of them promise.
type Selector interface {
	// Booted says which slot this boot came from, and whether it is on trial.
	Booted() (id ID, trial bool, err error)
	// Kept says which slot boots when no other is tried.
	Kept() (ID, error)
	// Room is how many bytes a kernel may have that is staged for id once id is cleared.
	Room(id ID) (int64, error)
	// Clear makes id a slot that does not boot, before its root is written. The kept slot is ErrInUse.
	Clear(id ID) error
	// Stage brings the kernel of id to where the firmware finds it and reads it back. id does not boot yet.
	Stage(id ID, kernel io.Reader, size int64) error
	// Kernel is the kernel image that id boots, or would boot; ErrEmpty if there is none. It can be read until id is cleared.
	Kernel(id ID) (image io.ReaderAt, size int64, err error)
	// TryOnce makes the next boot use id, and those after it unless Keep is called the kept one: at once, or after as many
	// tries as the firmware counts. The restart that follows passes rebootArg to the firmware.
	TryOnce(id ID) (rebootArg string, err error)
	// Keep makes id the slot of every boot from now on. Keeping the kept slot ends a trial of the other.
	Keep(id ID) error
}

// The selectors' names, as boards have them.
const (
	KindUEFI  = "uefi"
	KindUBoot = "uboot"
	KindGRUB  = "grub"
	KindPi    = "rpi-tryboot"
)

// Tries is how often the firmware tries a slot before it falls back.
const Tries = 3

// kernelPath is where the kernel image of a slot lies on the partition that the firmware reads; staged is its name before the
// firmware may see it.
func kernelPath(id ID) string { return "EFI/Linux/os-" + string(id) + ".efi" }
func stagedPath(id ID) string { return "EFI/Linux/os-" + string(id) + ".new" }
