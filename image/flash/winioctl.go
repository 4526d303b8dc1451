package flash

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// What Windows answers about disks is read here, apart from the asking, so that it is tested everywhere.

// driveNumber reads \\.\PhysicalDriveN.
func driveNumber(name string) (int, bool) {
	const prefix = `\\.\physicaldrive`
	lower := strings.ToLower(name)
	rest, ok := strings.CutPrefix(lower, prefix)
	n, err := strconv.Atoi(rest)
	return n, ok && err == nil && n >= 0
}

// busTypes are the values of STORAGE_BUS_TYPE that a person knows.
var busTypes = map[uint32]string{1: "scsi", 2: "atapi", 3: "ata", 7: "usb", 8: "raid", 10: "sas", 11: "sata", 12: "sd", 13: "mmc", 14: "virtual", 17: "nvme"}

// storageDescriptor reads a STORAGE_DEVICE_DESCRIPTOR.
func storageDescriptor(b []byte) (model, bus string, removable bool) {
	if len(b) < 36 {
		return "", "", false
	}
	text := func(at int) string {
		from := int(binary.LittleEndian.Uint32(b[at:]))
		if from <= 0 || from >= len(b) {
			return ""
		}
		s, _, _ := bytes.Cut(b[from:], []byte{0})
		return string(s)
	}
	model = strings.Join(strings.Fields(text(12)+" "+text(16)), " ")
	kind := binary.LittleEndian.Uint32(b[28:])
	bus = busTypes[kind]
	return model, bus, b[10] != 0 || kind == 7 || kind == 12 || kind == 13
}

// diskExtents reads VOLUME_DISK_EXTENTS: the numbers of the disks that a volume is on.
func diskExtents(b []byte) (disks []int) {
	if len(b) < 8 {
		return nil
	}
	n := int(binary.LittleEndian.Uint32(b))
	for i := range n {
		at := 8 + 24*i
		if at+24 > len(b) {
			break
		}
		disks = append(disks, int(binary.LittleEndian.Uint32(b[at:])))
	}
	return disks
}
