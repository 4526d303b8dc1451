package cloud

import (
	"encoding/binary"
	"errors"
)

// A fixed VHD is the disk and, behind it, 512 bytes that describe it. Azure takes whole MiB, and no other kind.
// Layout: "Virtual Hard Disk Image Format Specification", version 1.0, Microsoft.
const (
	VHDFooterSize = 512
	vhdMax        = 2040 << 30 // what the format can say
)

type vhd struct {
	File
	size   int64
	footer []byte
}

func newVHD(f File, size int64, id [16]byte) (*vhd, error) {
	if size > vhdMax {
		return nil, errors.New("vhd: a disk of more than 2040 GiB does not go into it")
	}
	return &vhd{f, size, VHDFooter(size, id)}, f.Truncate(size + VHDFooterSize)
}

func (v *vhd) Close() error {
	_, err := v.WriteAt(v.footer, v.size)
	return err
}

// VHDFooter describes a fixed disk of size bytes.
func VHDFooter(size int64, id [16]byte) []byte {
	be := binary.BigEndian
	f := make([]byte, VHDFooterSize)
	copy(f, "conectix")
	be.PutUint32(f[8:], 2)             // features: the bit that is always set
	be.PutUint32(f[12:], 0x00010000)   // version 1.0
	be.PutUint64(f[16:], ^uint64(0))   // no header elsewhere: fixed
	copy(f[28:], "win ")               // creator: readers take the size below from this one, and guess it from the geometry for others
	be.PutUint32(f[32:], 0x000a0000)   // its version
	copy(f[36:], "Wi2k")               // its system
	be.PutUint64(f[40:], uint64(size)) // at first
	be.PutUint64(f[48:], uint64(size)) // now
	c, h, s := geometry(size / 512)
	be.PutUint16(f[56:], c)
	f[58], f[59] = h, s
	be.PutUint32(f[60:], 2) // type: fixed
	copy(f[68:], id[:])
	var sum uint32
	for _, b := range f {
		sum += uint32(b)
	}
	be.PutUint32(f[64:], ^sum)
	return f
}

// geometry is the specification's, for who still counts cylinders.
func geometry(sectors int64) (cylinders uint16, heads, perTrack uint8) {
	sectors = min(sectors, 65535*16*255)
	if sectors >= 65535*16*63 {
		return uint16(sectors / 255 / 16), 16, 255
	}
	h, s := int64(0), int64(17)
	ch := sectors / s
	h = max((ch+1023)/1024, 4)
	if ch >= h*1024 || h > 16 {
		s, h = 31, 16
		ch = sectors / s
	}
	if ch >= h*1024 {
		s, h = 63, 16
		ch = sectors / s
	}
	return uint16(ch / h), uint8(h), uint8(s)
}
