// Package slot is about the two places an OS can boot from. It holds the words that boards, images, init and updates share;
// each kind of firmware has a Selector.
package slot

import "fmt"

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

// Selector is how one kind of firmware picks a slot. In each, the FIRMWARE does the falling back, so that a kernel that
// never starts is covered too.
type Selector interface {
	// Booted says which slot this boot came from, and whether it is on trial.
	Booted() (id ID, trial bool, err error)
	// TryOnce makes the next boot, and only it, use id. The reboot that follows passes rebootArg to the firmware.
	TryOnce(id ID) (rebootArg string, err error)
	// Keep makes id the slot of every boot from now on.
	Keep(id ID) error
}
