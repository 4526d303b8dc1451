package powercut

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// What dm-log-writes writes (linux/drivers/md/dm-log-writes.c), and QEMU's blklogwrites after it: a superblock, then for each
// operation a header, and after it what was written. Each begins at a sector of the log; numbers are little endian.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	logFlush   = 1 << 0
	logFUA     = 1 << 1
	logDiscard = 1 << 2
	logMark    = 1 << 3
)

// mostWritten is more than any one request of a machine writes, in bytes.
const mostWritten = 256 << 20

// ReadLog gives a disk that held base, to which a machine did what its log says. It becomes the owner of base, whose length is
// in sectors. What was discarded may be there or not, so it stays.
func ReadLog(base []byte, log io.Reader) (*Disk, error) {
	d := &Disk{data: base, start: base}
	r := bufio.NewReaderSize(log, 1<<20)
	var super struct {
		Magic, Version, Entries uint64
		SectorSize              uint32
	}
	if err := readPadded(r, &super, Sector); err != nil {
		return nil, fmt.Errorf("superblock of the log: %w", err)
	}
	if super.Magic != logMagic || super.Version != logVersion || super.SectorSize != Sector {
		return nil, fmt.Errorf("not a log of writes of version %d in sectors of %d bytes: magic %#x, version %d, sectors of %d",
			logVersion, Sector, super.Magic, super.Version, super.SectorSize)
	}
	for n := range super.Entries {
		if err := d.readEntry(r); err != nil {
			return nil, fmt.Errorf("entry %d of %d of the log: %w", n+1, super.Entries, err)
		}
	}
	return d, nil
}

func (d *Disk) readEntry(r io.Reader) error {
	var e struct{ Sector, Sectors, Flags, DataLen uint64 }
	if err := readPadded(r, &e, Sector); err != nil {
		return err
	}
	if e.Flags&logMark != 0 {
		if e.DataLen > Sector {
			return fmt.Errorf("a mark of %d bytes", e.DataLen)
		}
		note := make([]byte, Sector)
		if _, err := io.ReadFull(r, note); err != nil {
			return err
		}
		d.log = append(d.log, op{kind: 'm', note: string(note[:e.DataLen])})
		return nil
	}
	if e.Flags&logFlush != 0 {
		d.log = append(d.log, op{kind: 's'})
	}
	if e.Flags&logDiscard == 0 && e.Sectors > 0 {
		size, disk := e.Sectors*Sector, uint64(len(d.data))
		if e.Sectors > mostWritten/Sector || e.Sector > disk/Sector || e.Sector*Sector+size > disk {
			return fmt.Errorf("%d sectors at sector %d of a disk of %d", e.Sectors, e.Sector, disk/Sector)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		d.log = append(d.log, op{kind: 'w', at: int64(e.Sector * Sector), data: data, through: e.Flags&logFUA != 0}) //nolint:gosec // is on the disk
	}
	return nil
}

// readPadded reads v from the start of size bytes.
func readPadded(r io.Reader, v any, size int64) error {
	err := binary.Read(r, binary.LittleEndian, v)
	if err == nil {
		_, err = io.CopyN(io.Discard, r, size-int64(binary.Size(v)))
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Writes are the operations that wrote to one of the parts, counted from 1.
func (d *Disk) Writes(parts ...Part) (operations []int) {
	for i, o := range d.log {
		if o.kind == 'w' && o.touches(parts) {
			operations = append(operations, i+1)
		}
	}
	return operations
}

// Only forgets what was written elsewhere: cuts that differ in nothing but that are one.
func (d *Disk) Only(parts ...Part) {
	d.log = slices.DeleteFunc(d.log, func(o op) bool { return o.kind == 'w' && !o.touches(parts) })
	// Of flushes with nothing between them one is enough.
	d.log = slices.CompactFunc(d.log, func(a, b op) bool { return a.kind == 's' && b.kind == 's' })
}

func (o op) touches(parts []Part) bool {
	return slices.ContainsFunc(parts, func(p Part) bool { return o.at < p.At+p.Len && o.at+int64(len(o.data)) > p.At })
}
