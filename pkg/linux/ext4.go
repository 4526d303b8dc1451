package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// DataLabel is the label of the filesystem on the data partition.
const DataLabel = "skerry-data"

// The first 1024 bytes of an ext4 partition are not the filesystem's. Skerry writes dataMark there once the filesystem it
// made was mounted for the first time: from then on nothing but a person may make it anew.
var dataMark = []byte("SKERRY DATA 1\n")

// DataState is what a data partition holds.
type DataState int

// The states, and what init does about each.
const (
	DataNew  DataState = iota // never finished: make the filesystem
	DataMade                  // made, not yet used: check it, and make it anew if that fails
	DataUsed                  // in use: check and repair it, never make it anew
	DataTorn                  // was in use or may have been, and its superblock is gone: repair from a copy, never make it anew
)

// ProbeData says what the data partition r of size bytes holds. A first boot that lost power while it made the filesystem
// leaves DataNew or DataMade; a superblock destroyed later leaves the mark, or the copies, and so DataTorn.
func ProbeData(r io.ReaderAt, size int64) (DataState, error) {
	head := make([]byte, 4096)
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return DataNew, err
	}
	marked := bytes.HasPrefix(head, dataMark)
	switch {
	case superblock(head[1024:]) && marked:
		return DataUsed, nil
	case superblock(head[1024:]):
		return DataMade, nil
	case marked:
		return DataTorn, nil
	}
	// mke2fs writes the superblock last, but for its copies. The first copy is in the second block group: 32768 blocks of
	// 4 KiB, or 8192 of 1 KiB (behind the first) on a small partition.
	for _, at := range []int64{32768 * 4096, 8193 * 1024} {
		copied := make([]byte, 1024)
		if at+int64(len(copied)) > size {
			continue
		}
		if _, err := r.ReadAt(copied, at); err != nil && !errors.Is(err, io.EOF) {
			return DataNew, err
		}
		if superblock(copied) {
			return DataTorn, nil
		}
	}
	return DataNew, nil
}

// superblock says whether b is an ext4 superblock with our label: magic at 56, label at 120.
func superblock(b []byte) bool {
	return binary.LittleEndian.Uint16(b[56:]) == 0xef53 && bytes.HasPrefix(b[120:136], []byte(DataLabel))
}

// MarkData writes the mark.
func MarkData(d ReadWriterAt) error {
	if _, err := d.WriteAt(dataMark, 0); err != nil {
		return err
	}
	return d.Sync()
}
