package install

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/disk"
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

var removable = map[string]string{"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}

// bootNext makes the firmware start from the disk next time, and only then. Without it a firmware whose order begins with the
// network finds the disk too, but first it waits minutes for answers by each protocol it knows.
func bootNext(v Variables, p *image.Plan) error {
	loader, ok := removable[p.Arch]
	if !ok {
		return fmt.Errorf("no name of a boot loader is known for %s", p.Arch)
	}
	for i, part := range p.Partitions {
		if part.Name != boards.ESP {
			continue
		}
		option := loadOption("Skerry", i+1, part, `\EFI\BOOT\`+loader)
		return errors.Join(v.Write(fmt.Sprintf("Boot%04X-%s", entry, efiGlobal), option),
			v.Write("BootNext-"+efiGlobal, binary.LittleEndian.AppendUint16(nil, entry)))
	}
	return errors.New("the image has no partition that firmware starts from")
}

// loadOption is EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): a file on a partition of a GPT (10.3.5.1, 10.3.5.4).
func loadOption(name string, number int, p image.Partition, file string) []byte {
	le := binary.LittleEndian
	guid := p.GUID.OnDisk()
	hd := le.AppendUint32([]byte{4, 1, 42, 0}, uint32(number))
	hd = le.AppendUint64(hd, uint64(p.Start/disk.Sector))
	hd = le.AppendUint64(hd, uint64(p.Size/disk.Sector))
	hd = append(append(hd, guid[:]...), 2, 2) // GPT, named by GUID
	text := wide(file)
	path := append(le.AppendUint16([]byte{4, 4}, uint16(4+len(text))), text...)
	end := []byte{0x7f, 0xff, 4, 0}
	list := append(append(hd, path...), end...)
	out := le.AppendUint16(le.AppendUint32(nil, 1), uint16(len(list))) // active
	return append(append(out, wide(name)...), list...)
}

// wide is UTF-16 with a zero at its end.
func wide(s string) (out []byte) {
	for _, c := range append(utf16.Encode([]rune(s)), 0) {
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return out
}
