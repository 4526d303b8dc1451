// Package verity makes and checks dm-verity hash trees: SHA-256, 4096-byte blocks, hash type 1, no superblock. The tree stands
// right behind the data it covers; the kernel gets salt, root hash and sizes on the table line, so nothing else is stored.
package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// BlockSize is the size of data and hash blocks.
const BlockSize = 4096

const perBlock = BlockSize / sha256.Size

// Tree is a hash tree: levels as they lie on the disk, the one below the root first.
type Tree struct {
	Bytes    []byte
	RootHash []byte
}

// Size is the length of the tree for dataSize bytes of data.
func Size(dataSize int64) int64 {
	var total int64
	for n := dataSize / BlockSize; n > 1; {
		n = (n + perBlock - 1) / perBlock
		total += n
	}
	return total * BlockSize
}

// Build reads dataSize bytes, a multiple of BlockSize, and gives their tree.
func Build(r io.ReaderAt, dataSize int64, salt []byte) (*Tree, error) {
	if dataSize <= 0 || dataSize%BlockSize != 0 {
		return nil, fmt.Errorf("data of %d bytes: is not a whole number of %d-byte blocks", dataSize, BlockSize)
	}
	level, err := hashData(r, dataSize/BlockSize, salt)
	if err != nil {
		return nil, err
	}
	var levels [][]byte
	for len(level) > sha256.Size {
		level = append(level, make([]byte, -len(level)&(BlockSize-1))...)
		levels = append(levels, level)
		next := make([]byte, 0, len(level)/perBlock)
		for i := 0; i < len(level); i += BlockSize {
			next = append(next, hash(salt, level[i:i+BlockSize])...)
		}
		level = next
	}
	t := &Tree{RootHash: level}
	for i := len(levels) - 1; i >= 0; i-- {
		t.Bytes = append(t.Bytes, levels[i]...)
	}
	return t, nil
}

func hash(salt, block []byte) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	return h.Sum(nil)
}

// hashData hashes the data blocks, on all cores.
func hashData(r io.ReaderAt, blocks int64, salt []byte) ([]byte, error) {
	const chunk = 256 // blocks a core takes at once: 1 MiB
	out := make([]byte, blocks*sha256.Size)
	starts := make(chan int64)
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, chunk*BlockSize)
			for start := range starts {
				n := min(chunk, blocks-start)
				if m, err := r.ReadAt(buf[:n*BlockSize], start*BlockSize); int64(m) < n*BlockSize {
					once.Do(func() { failed = fmt.Errorf("block %d: %w", start+int64(m)/BlockSize, err) })
					continue
				}
				for i := range n {
					copy(out[(start+i)*sha256.Size:], hash(salt, buf[i*BlockSize:(i+1)*BlockSize]))
				}
			}
		})
	}
	for start := int64(0); start < blocks; start += chunk {
		starts <- start
	}
	close(starts)
	wg.Wait()
	return out, failed
}

// Verify reads data and the tree behind it, and compares every block and the root hash. rootHash and salt are hex. Where
// something is wrong the error is a Fault.
func Verify(r io.ReaderAt, dataSize int64, rootHash, salt string) error {
	s, err := hex.DecodeString(salt)
	if err != nil {
		return fmt.Errorf("salt: %w", err)
	}
	root, err := hex.DecodeString(rootHash)
	if err != nil {
		return fmt.Errorf("root hash: %w", err)
	}
	t, err := Build(r, dataSize, s)
	if err != nil {
		return err
	}
	stored := make([]byte, len(t.Bytes))
	if _, err := r.ReadAt(stored, dataSize); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("hash tree: %w", err)
	}
	if bytes.Equal(stored, t.Bytes) && bytes.Equal(t.RootHash, root) {
		return nil
	}
	return locate(r, dataSize, root, s)
}
