package floor

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/skerry-os/skerry/pkg/slot"
)

// variable is the floor's name, with a vendor GUID that is Skerry's alone.
const variable = "SkerryFloor-6d0f2f3b-5a0c-4c0e-9b5e-2f6a1e0d7c11"

// Variable is a floor in a variable of UEFI firmware.
type Variable struct {
	Vars fs.FS // efivarfs
	Set  slot.Variables
}

func (Variable) String() string { return "the firmware's variables" }

// Reset is in the firmware's menu, if there is one for it.
func (Variable) Reset() string { return "reset the firmware's variables" }

// Load reads the variable.
func (v Variable) Load() (string, error) {
	data, err := fs.ReadFile(v.Vars, variable)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(data) < 4 || len(data) > 4+room { // attributes, then the text
		return "", fmt.Errorf("EFI variable %s: %d bytes are not a version", variable, len(data))
	}
	return string(data[4:]), nil
}

// Raise writes the variable.
func (v Variable) Raise(version string) error { return v.Set.Write(variable, []byte(version)) }

// Close does nothing: a variable that the running system must write stays one that it can.
func (Variable) Close() error { return nil }
