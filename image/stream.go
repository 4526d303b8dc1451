package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"slices"
)

// Stream reads a planned disk from its first byte to its last, holes as zeros, without a file between. Files of the release are
// checked against their digests on the way. Seek goes back to the first byte only.
type Stream struct {
	plan    *Plan
	files   fs.FS
	extents []Extent // those to come
	at      int64
	content io.Reader // of the first of extents; nil: not open
	close   func() error
	sum     hash.Hash // nil: made here, needs no check
}

// NewStream opens nothing yet.
func NewStream(p *Plan, files fs.FS) *Stream {
	return &Stream{plan: p, files: files, extents: sourced(p)}
}

// sourced are the extents that are not zeros.
func sourced(p *Plan) []Extent {
	return slices.DeleteFunc(slices.Clone(p.Extents), func(e Extent) bool { return e.Source == zeros })
}

// Seek is for io.SeekStart and offset 0.
func (s *Stream) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return s.at, errors.New("a planned disk is read from its first byte")
	}
	err := s.Close()
	s.extents, s.at = sourced(s.plan), 0
	return 0, err
}

// Close closes the file that is open.
func (s *Stream) Close() error {
	defer func() { s.content, s.close, s.sum = nil, nil, nil }()
	if s.close == nil {
		return nil
	}
	return s.close()
}

func (s *Stream) Read(b []byte) (int, error) {
	if s.at >= s.plan.Size {
		return 0, io.EOF
	}
	end := s.plan.Size
	if len(s.extents) > 0 {
		end = s.extents[0].Offset
	}
	if s.at < end { // a hole
		n := int(min(int64(len(b)), end-s.at))
		clear(b[:n])
		s.at += int64(n)
		return n, nil
	}
	e := s.extents[0]
	if s.content == nil {
		if err := s.open(e); err != nil {
			return 0, err
		}
	}
	left := e.Offset + e.Size - s.at
	n, err := s.content.Read(b[:min(int64(len(b)), left)])
	if s.sum != nil {
		s.sum.Write(b[:n])
	}
	s.at += int64(n)
	switch {
	case int64(n) == left:
		return n, s.next(e)
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("release: %s: ends %d bytes before the manifest says", e.file, left-int64(n))
	case err != nil:
		return n, fmt.Errorf("release: %s: %w", e.file, err)
	}
	return n, nil
}

func (s *Stream) open(e Extent) error {
	if e.file == "" {
		s.content = bytes.NewReader(e.data)
		return nil
	}
	f, err := s.files.Open(e.file)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	s.content, s.close, s.sum = f, f.Close, sha256.New()
	return nil
}

// next leaves an extent that was read whole.
func (s *Stream) next(e Extent) error {
	sum := s.sum
	if err := s.Close(); err != nil {
		return err
	}
	s.extents = s.extents[1:]
	if sum == nil {
		return nil
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != e.SHA256 {
		return fmt.Errorf("release: %s: sha256 is %.8s; the manifest says %.8s; fetch the release again", e.file, got, e.SHA256)
	}
	return nil
}
