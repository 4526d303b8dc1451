package cloud

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// The one shape of VMDK written here: streamOptimized, which vSphere imports and which needs no second pass. Grains of 64 KiB
// are compressed one by one, each behind a marker that says where it belongs; tables of 512 grains follow theirs, the
// directory and a footer are at the end. Layout: "Virtual Disk Format 5.0", VMware.
const (
	vmdkMagic  = "KDMV"
	grain      = 64 << 10
	perTable   = 512
	vmdkSector = 512
	overhead   = 128 // sectors before the first grain
	atTheEnd   = ^uint64(0)
	maxVMDK    = 62 << 40 // vSphere's own limit

	markEnd    = 0
	markTable  = 1
	markDir    = 2
	markFooter = 3
)

type vmdk struct {
	rising
	w     io.WriterAt
	at    int64 // the next free byte of the file, on a sector
	grain int64 // number of the grain in buf; -1 for none
	buf   []byte
	table []uint32 // of the current 512 grains: sectors
	dir   []uint32
	id    [16]byte
	zip   *zlib.Writer
}

func newVMDK(f File, size int64, id [16]byte) (*vmdk, error) {
	if size > maxVMDK {
		return nil, errors.New("vmdk: a disk of more than 62 TiB does not go into it")
	}
	zip, err := zlib.NewWriterLevel(io.Discard, zlib.DefaultCompression)
	if err != nil {
		return nil, err
	}
	tables := (size + grain*perTable - 1) / (grain * perTable)
	return &vmdk{
		rising: rising{size: size}, w: f, at: overhead * vmdkSector, grain: -1, buf: make([]byte, grain),
		table: make([]uint32, perTable), dir: make([]uint32, tables), id: id, zip: zip,
	}, nil
}

func (v *vmdk) WriteAt(b []byte, off int64) (int, error) {
	if _, err := v.check(VMDK, len(b), off); err != nil {
		return 0, err
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		if err := v.turn(at / grain); err != nil {
			return done, err
		}
		done += copy(v.buf[at%grain:], b[done:])
	}
	return len(b), nil
}

// turn makes grain n the one in the buffer.
func (v *vmdk) turn(n int64) error {
	if n == v.grain {
		return nil
	}
	if err := v.flush(); err != nil {
		return err
	}
	if v.grain >= 0 && n/perTable != v.grain/perTable {
		if err := v.flushTable(v.grain / perTable); err != nil {
			return err
		}
	}
	clear(v.buf)
	v.grain = n
	return nil
}

// flush writes the grain in the buffer. One of zeros takes no room.
func (v *vmdk) flush() error {
	if v.grain < 0 || bytes.Equal(v.buf, nothing[:]) {
		return nil
	}
	var out bytes.Buffer
	out.Write(make([]byte, 12))
	v.zip.Reset(&out)
	if _, err := v.zip.Write(v.buf); err != nil {
		return err
	}
	if err := v.zip.Close(); err != nil {
		return err
	}
	b := out.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(v.grain*(grain/vmdkSector)))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-12))
	at, err := v.put(b)
	v.table[v.grain%perTable] = at
	return err
}

// put appends bytes, filled up to whole sectors, and says in which sector they begin.
func (v *vmdk) put(b []byte) (sector uint32, err error) {
	at := v.at / vmdkSector
	if at > 1<<32-1 {
		return 0, errors.New("vmdk: what is on the disk takes more than 2 TiB, which the format cannot address")
	}
	if n := len(b) % vmdkSector; n > 0 {
		b = append(b, make([]byte, vmdkSector-n)...)
	}
	_, err = v.w.WriteAt(b, v.at)
	v.at += int64(len(b))
	return uint32(at), err
}

func (v *vmdk) flushTable(i int64) error {
	used := false
	for _, e := range v.table {
		used = used || e != 0
	}
	if !used {
		return nil
	}
	at, err := v.marked(markTable, words(v.table))
	v.dir[i] = at
	clear(v.table)
	return err
}

// marked appends metadata behind its marker, and says in which sector it begins.
func (v *vmdk) marked(kind uint32, b []byte) (uint32, error) {
	m := make([]byte, vmdkSector)
	binary.LittleEndian.PutUint64(m, uint64((len(b)+vmdkSector-1)/vmdkSector))
	binary.LittleEndian.PutUint32(m[12:], kind)
	if _, err := v.put(m); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	return v.put(b)
}

func words(t []uint32) []byte {
	b := make([]byte, 0, 4*len(t))
	for _, e := range t {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	return b
}

func (v *vmdk) Close() error {
	if err := v.flush(); err != nil {
		return err
	}
	if v.grain >= 0 {
		if err := v.flushTable(v.grain / perTable); err != nil {
			return err
		}
	}
	dir, err := v.marked(markDir, words(v.dir))
	if err != nil {
		return err
	}
	if _, err := v.marked(markFooter, v.header(uint64(dir))); err != nil {
		return err
	}
	if _, err := v.marked(markEnd, nil); err != nil {
		return err
	}
	head := append(v.header(atTheEnd), v.descriptor()...)
	_, err = v.w.WriteAt(append(head, make([]byte, overhead*vmdkSector-len(head))...), 0)
	return err
}

// descriptorSectors is how much room the text has.
const descriptorSectors = 20

// header is the file's first sector, and its footer, which knows where the directory is.
func (v *vmdk) header(dir uint64) []byte {
	le := binary.LittleEndian
	h := make([]byte, vmdkSector)
	copy(h, vmdkMagic)
	le.PutUint32(h[4:], 3)       // version
	le.PutUint32(h[8:], 0x30001) // line ends can be checked, grains are compressed, there are markers
	le.PutUint64(h[12:], uint64(v.size/vmdkSector))
	le.PutUint64(h[20:], grain/vmdkSector)
	le.PutUint64(h[28:], 1) // where the descriptor is
	le.PutUint64(h[36:], descriptorSectors)
	le.PutUint32(h[44:], perTable)
	le.PutUint64(h[56:], dir)
	le.PutUint64(h[64:], overhead)
	copy(h[73:], "\n \r\n")
	le.PutUint16(h[77:], 1) // deflate
	return h
}

func (v *vmdk) descriptor() []byte {
	return fmt.Appendf(nil, `# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "13"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
`, binary.BigEndian.Uint32(v.id[:4])&0x7fffffff, v.size/vmdkSector, min(v.size/vmdkSector/(255*63), 65535))
}

// vmdkReader reads the disk in a streamOptimized VMDK.
type vmdkReader struct {
	r      io.ReaderAt
	size   int64
	dir    []uint32
	mu     sync.Mutex
	tables map[int64][]uint32
	last   int64 // number of the grain in buf; -1 for none
	buf    []byte
}

func openVMDK(r io.ReaderAt) (*vmdkReader, error) {
	h := make([]byte, vmdkSector)
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, fmt.Errorf("vmdk: reading the header: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint32(h[8:])&0x30000 != 0x30000 || le.Uint64(h[20:]) != grain/vmdkSector || le.Uint32(h[44:]) != perTable || le.Uint16(h[77:]) != 1 {
		return nil, errors.New("vmdk: is not streamOptimized with grains of 64 KiB; only such are read here")
	}
	size := le.Uint64(h[12:])
	if size == 0 || size > maxVMDK/vmdkSector {
		return nil, fmt.Errorf("vmdk: a disk of %d sectors makes no sense", size)
	}
	v := &vmdkReader{r: r, size: int64(size) * vmdkSector, tables: map[int64][]uint32{}, last: -1, buf: make([]byte, grain)}
	at := le.Uint64(h[56:])
	if at == atTheEnd {
		end, err := sizeOf(r)
		if err != nil {
			return nil, err
		}
		if _, err := r.ReadAt(h, end-2*vmdkSector); err != nil || string(h[:4]) != vmdkMagic {
			return nil, errors.New("vmdk: has no footer; it was cut off")
		}
		at = le.Uint64(h[56:])
	}
	if at > 1<<40 {
		return nil, errors.New("vmdk: its directory is nowhere")
	}
	var err error
	v.dir, err = v.words(int64(at), (v.size+grain*perTable-1)/(grain*perTable))
	return v, err
}

// sizeOf finds where a file ends.
func sizeOf(r io.ReaderAt) (int64, error) {
	if s, ok := r.(io.Seeker); ok {
		return s.Seek(0, io.SeekEnd)
	}
	if s, ok := r.(interface{ Size() int64 }); ok {
		return s.Size(), nil
	}
	return 0, errors.New("vmdk: its end cannot be found")
}

func (v *vmdkReader) Size() int64 { return v.size }

func (v *vmdkReader) words(sector, n int64) ([]uint32, error) {
	b := make([]byte, 4*n)
	if _, err := v.r.ReadAt(b, sector*vmdkSector); err != nil {
		return nil, fmt.Errorf("vmdk: reading a table in sector %d: %w", sector, err)
	}
	t := make([]uint32, n)
	for i := range t {
		t[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return t, nil
}

// ReadAt reads from the disk.
func (v *vmdkReader) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vmdk: offset %d", off)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	done := 0
	for done < len(b) {
		at := off + int64(done)
		if at >= v.size {
			return done, io.EOF
		}
		if err := v.load(at / grain); err != nil {
			return done, err
		}
		done += copy(b[done:], v.buf[at%grain:min(grain, v.size-at/grain*grain)])
	}
	return done, nil
}

// load brings grain n into the buffer.
func (v *vmdkReader) load(n int64) error {
	if n == v.last {
		return nil
	}
	v.last = -1
	t := v.tables[n/perTable]
	if t == nil {
		t = make([]uint32, perTable)
		if at := v.dir[n/perTable]; at != 0 {
			var err error
			if t, err = v.words(int64(at), perTable); err != nil {
				return err
			}
		}
		v.tables[n/perTable] = t
	}
	at := int64(t[n%perTable]) * vmdkSector
	if at == 0 {
		clear(v.buf)
		v.last = n
		return nil
	}
	m := make([]byte, 12)
	if _, err := v.r.ReadAt(m, at); err != nil {
		return fmt.Errorf("vmdk: reading the grain at %d: %w", at, err)
	}
	size := binary.LittleEndian.Uint32(m[8:])
	if binary.LittleEndian.Uint64(m) != uint64(n*(grain/vmdkSector)) || size > 2*grain {
		return fmt.Errorf("vmdk: at %d is not the grain that the table says", at)
	}
	z, err := zlib.NewReader(io.NewSectionReader(v.r, at+12, int64(size)))
	if err == nil {
		_, err = io.ReadFull(z, v.buf)
	}
	if err != nil {
		return fmt.Errorf("vmdk: unpacking the grain at %d: %w", at, err)
	}
	v.last = n
	return nil
}
