package cloud

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
)

// tarGz is what Google imports: disk.raw, the only file of a tar archive in GNU's old form, compressed.
type tarGz struct {
	rising
	tar *tar.Writer
	gz  *gzip.Writer
}

func newTarGz(f File, size int64) (*tarGz, error) {
	gz, err := gzip.NewWriterLevel(io.NewOffsetWriter(f, 0), gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	t := &tarGz{rising{size: size}, tar.NewWriter(gz), gz}
	return t, t.tar.WriteHeader(&tar.Header{Name: "disk.raw", Size: size, Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatGNU})
}

func (t *tarGz) WriteAt(b []byte, off int64) (int, error) {
	gap, err := t.check(TarGz, len(b), off)
	if err == nil {
		err = t.zeros(gap)
	}
	if err != nil {
		return 0, err
	}
	return t.tar.Write(b)
}

var nothing [64 << 10]byte

func (t *tarGz) zeros(n int64) error {
	for n > 0 {
		k, err := t.tar.Write(nothing[:min(n, int64(len(nothing)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

func (t *tarGz) Close() error {
	if err := t.zeros(t.size - t.next); err != nil {
		return err
	}
	if err := t.tar.Close(); err != nil {
		return fmt.Errorf("tar.gz: %w", err)
	}
	return t.gz.Close()
}

// UnpackTarGz takes the disk out of such an archive, holes left out, and gives its size.
func UnpackTarGz(r io.Reader, f File) (int64, error) {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return 0, fmt.Errorf("tar.gz: %w", err)
	}
	t := tar.NewReader(gz)
	h, err := t.Next()
	if err != nil {
		return 0, fmt.Errorf("tar.gz: %w", err)
	}
	if h.Name != "disk.raw" || h.Typeflag != tar.TypeReg || h.Size > maxDisk {
		return 0, fmt.Errorf("tar.gz: begins with %s; Google takes disk.raw and nothing else", h.Name)
	}
	b := make([]byte, len(nothing))
	for at := int64(0); at < h.Size; {
		n, err := io.ReadFull(t, b[:min(int64(len(b)), h.Size-at)])
		if err != nil {
			return 0, fmt.Errorf("tar.gz: disk.raw at %d: %w", at, err)
		}
		if !bytes.Equal(b[:n], nothing[:n]) {
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return 0, err
			}
		}
		at += int64(n)
	}
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return 0, errors.New("tar.gz: holds more than disk.raw, or is damaged at its end; Google takes nothing else")
	}
	return h.Size, f.Truncate(h.Size)
}
