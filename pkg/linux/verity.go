package linux

import (
	"errors"
	"fmt"

	"github.com/containerd/go-dmverity/pkg/dm"

	"github.com/skerry-os/skerry/pkg/release"
)

const verityBlock = 4096

// verityTarget is the device-mapper table that reads root from the partition dev and checks every block on the way. A block
// that is wrong makes the kernel panic: a root that was changed must not go on running in part, and the restart lets the
// firmware choose.
func verityTarget(dev string, root release.Root) dm.Target {
	data := root.DataSize / verityBlock
	return dm.Target{
		Length: uint64(root.DataSize / 512),
		Type:   "verity",
		// version, data and hash device, their block sizes, blocks of data, first block of hashes, hash, root hash, salt, options
		Params: fmt.Sprintf("1 %s %s %d %d %d %d sha256 %s %s 1 panic_on_corruption",
			dev, dev, verityBlock, verityBlock, data, data, root.RootHash, root.Salt),
	}
}

// OpenVerity makes the verity device called name and returns its device file.
func OpenVerity(name, dev string, root release.Root) (string, error) {
	c, err := dm.Open()
	if err != nil {
		return "", fmt.Errorf("device mapper: %w", err)
	}
	number, err := c.CreateDevice(name)
	if err == nil {
		err = c.LoadTable(name, []dm.Target{verityTarget(dev, root)})
	}
	if err == nil {
		err = c.SuspendDevice(name, false)
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return "", fmt.Errorf("verity on %s: %w", dev, err)
	}
	return fmt.Sprintf("/dev/dm-%d", dmMinor(number)), nil
}

// dmMinor takes the minor number out of the kernel's 64-bit huge_encode_dev form.
func dmMinor(dev uint64) uint64 { return dev&0xff | (dev>>12)&0xfff00 }
