package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-os/skerry/pkg/atomicfile"
)

// Kept is the answer as it lies on the data partition.
type Kept struct {
	Machine  string   `json:"machine"` // the machine's own id from its firmware; another means that the disk was cloned
	Reported bool     `json:"reported"`
	Instance Instance `json:"instance"`
}

// Machine is the id that the firmware gives this machine, which a hypervisor makes anew for each; empty if it has none.
func Machine(sys fs.FS) string {
	data, err := fs.ReadFile(sys, "class/dmi/id/product_uuid")
	if err != nil {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(string(data)))
}

// Load gives what this machine was told before. nil: it was not, or the disk comes from another machine.
func Load(file, machine string) (*Kept, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k := new(Kept)
	if err := json.Unmarshal(data, k); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if k.Machine != machine {
		return nil, nil
	}
	return k, nil
}

// Save keeps it, for root alone.
func (k *Kept) Save(file string) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(file, append(data, '\n'), 0o600)
}
