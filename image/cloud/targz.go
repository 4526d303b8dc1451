package cloud

import (
	"archive/tar"
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
