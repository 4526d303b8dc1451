package release

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// TailSize is the space at the very end of a root partition that holds the manifest and its signature, so that a slot is
// whole in itself and stage 1 needs no second filesystem to check it.
const TailSize = 64 << 10

// tailMagic starts a tail; its last byte is the version of the layout: magic, then manifest length and signature length as
// big-endian uint32, then the two.
var tailMagic = []byte("SKERRY\x00\x01")

// ErrNoTail means the partition holds no release: it was never written, or its writing did not finish.
var ErrNoTail = errors.New("holds no release manifest")

// Tail gives the TailSize bytes for the end of a root partition.
func (r *Release) Tail() ([]byte, error) {
	b := bytes.Clone(tailMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.manifest)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.sig)))
	b = append(append(b, r.manifest...), r.sig...)
	if len(b) > TailSize {
		return nil, fmt.Errorf("release manifest and signature are %d bytes; at most %d fit at the end of a slot", len(b), TailSize)
	}
	return append(b, make([]byte, TailSize-len(b))...), nil
}

// ReadTail reads and verifies the release at the end of a root partition of size bytes.
func ReadTail(r io.ReaderAt, size int64, trusted []ed25519.PublicKey) (*Release, error) {
	b := make([]byte, TailSize)
	if size < TailSize {
		return nil, fmt.Errorf("is %d bytes: %w", size, ErrNoTail)
	}
	if _, err := r.ReadAt(b, size-TailSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	body, ok := bytes.CutPrefix(b, tailMagic)
	if !ok {
		return nil, ErrNoTail
	}
	nm, ns := int64(binary.BigEndian.Uint32(body)), int64(binary.BigEndian.Uint32(body[4:]))
	body = body[8:]
	if nm+ns > int64(len(body)) {
		return nil, fmt.Errorf("manifest of %d and signature of %d bytes do not fit in %d: the end of the slot is damaged", nm, ns, len(body))
	}
	return Verify(body[:nm], body[nm:nm+ns], trusted)
}
