package install

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/slot"
)

// Variables sets variables of the firmware.
type Variables interface {
	Write(name string, data []byte) error
}

// The entry that starts the disk once. It is in no boot order: what a person has set there stays.
const (
	efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	entry     = 0x5c0e
)

// bootNext makes the firmware start from the disk next time, and only then. Without it a firmware whose order begins with the
// network finds the disk too, but first it waits minutes for answers by each protocol it knows.
func bootNext(v Variables, p *image.Plan) error {
	for i, part := range p.Partitions {
		if part.Name != boards.ESP {
			continue
		}
		path := slot.DiskPath{
			Number: uint32(i + 1), Start: uint64(part.Start / disk.Sector), Blocks: uint64(part.Size / disk.Sector), GUID: part.GUID.OnDisk(),
			Loader: `\` + strings.ReplaceAll(image.LoaderPath(p.Arch), "/", `\`),
		}
		return errors.Join(v.Write(fmt.Sprintf("Boot%04X-%s", entry, efiGlobal), path.Option()),
			v.Write("BootNext-"+efiGlobal, binary.LittleEndian.AppendUint16(nil, entry)))
	}
	return errors.New("the image has no partition that firmware starts from")
}
