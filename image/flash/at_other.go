//go:build !linux

package flash

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// At says of a device what List says of disks; nil for a file that stands for one. What is not listed is neither a stick nor a card.
func At(name string) (*Disk, error) {
	disks, err := List()
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		switch {
		case strings.EqualFold(d.Path, name):
			return &d, nil
		case d.HasPartition(name):
			return nil, fmt.Errorf("%s: is a partition; an image is a whole disk and goes to %s", name, d.Path)
		}
	}
	if !isDevice(name) {
		return nil, nil //nolint:nilnil // documented above
	}
	return &Disk{Name: name, Path: name}, nil
}

func isDevice(name string) bool {
	info, err := os.Stat(name)
	return strings.HasPrefix(name, `\\.\`) || err == nil && info.Mode()&fs.ModeDevice != 0
}

// Unmount is what OpenDevice does here.
func Unmount(*Disk) error { return nil }
