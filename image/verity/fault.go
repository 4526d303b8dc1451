package verity

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Fault is a block that is not what the tree says, by its offset from the start of the data.
type Fault struct {
	Offset int64
	Msg    string
}

func (f Fault) Error() string { return fmt.Sprintf("offset %d: %s", f.Offset, f.Msg) }

// locate finds the first wrong block, from the root hash down, as the kernel would.
func locate(r io.ReaderAt, dataSize int64, root, salt []byte) error {
	// Level 0 holds the digests of the data; on disk the highest level comes first.
	var levels []int64 // blocks
	for n := dataSize / BlockSize; n > 1; {
		n = (n + perBlock - 1) / perBlock
		levels = append(levels, n)
	}
	above, at := root, dataSize
	for i := len(levels) - 1; i >= 0; i-- {
		level := make([]byte, levels[i]*BlockSize)
		if _, err := r.ReadAt(level, at); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the hash tree: %w", err)
		}
		if err := compare(level, above, salt, at, "hash tree"); err != nil {
			return err
		}
		at += int64(len(level))
		above = level
	}
	buf := make([]byte, 256*BlockSize)
	for at := int64(0); at < dataSize; at += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), dataSize-at)]
		if _, err := r.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the data: %w", err)
		}
		if err := compare(b, above[at/BlockSize*sha256.Size:], salt, at, "data"); err != nil {
			return err
		}
	}
	return errors.New("was changed while it was read")
}

// compare holds each block against its digest in above.
func compare(blocks, above, salt []byte, at int64, what string) error {
	for i := 0; i < len(blocks); i += BlockSize {
		j := i / BlockSize * sha256.Size
		got, want := hash(salt, blocks[i:i+BlockSize]), above[j:j+sha256.Size]
		if !bytes.Equal(got, want) {
			return Fault{at + int64(i), fmt.Sprintf("%s block has hash %x; the tree says %x", what, got[:4], want[:4])}
		}
	}
	return nil
}
