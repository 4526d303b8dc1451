package rootfs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
)

// The kinds of files, as Linux has them on any host.
const (
	modeDir  = 0o040000
	modeLink = 0o120000
	modeFile = 0o100000
	modeChar = 0o020000
)

// CPIO writes the tree, which has a folder dev, as a newc archive: what the kernel unpacks as its first root. A node for the
// console is added.
func (t *Tree) CPIO(w io.Writer, when time.Time) error {
	rw := cpio.Newc.Writer(w)
	for i, e := range t.Entries() {
		info := cpio.Info{Ino: uint64(i + 1), NLink: 1, MTime: uint64(when.Unix()), Name: e.Path, Mode: uint64(e.Mode.Perm())}
		var content []byte
		switch {
		case e.Mode.IsDir():
			info.Mode |= modeDir
			info.NLink = 2
		case e.Mode.Type() == fs.ModeSymlink:
			info.Mode |= modeLink
			content = []byte(e.Link)
		default:
			info.Mode |= modeFile
			var buf bytes.Buffer
			if err := e.copyTo(&buf); err != nil {
				return err
			}
			content = buf.Bytes()
		}
		rec := cpio.Record{Info: info}
		if len(content) > 0 {
			rec.FileSize = uint64(len(content))
			rec.ReaderAt = bytes.NewReader(content)
		}
		if err := rw.WriteRecord(rec); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	// The kernel opens the first process's input and output before anything can have mounted /dev.
	console := cpio.Record{Info: cpio.Info{Ino: uint64(len(t.entries) + 1), NLink: 1, MTime: uint64(when.Unix()), Name: "dev/console", Mode: modeChar | 0o600, Rmajor: 5, Rminor: 1}}
	if err := rw.WriteRecord(console); err != nil {
		return err
	}
	return cpio.WriteTrailer(rw)
}
