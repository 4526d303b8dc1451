package image

import (
	"io/fs"
	"syscall"
)

// cutting is a file tree that calls cut at every read of a file.
type cutting struct {
	fs.FS
	cut func()
}

func (c cutting) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return cuttingFile{f, c.cut}, nil
}

type cuttingFile struct {
	fs.File
	cut func()
}

func (c cuttingFile) Read(b []byte) (int, error) {
	c.cut()
	return c.File.Read(b[:min(len(b), 64<<10)])
}

// blocksOf is what the file takes on disk, in units of 512 bytes.
func blocksOf(st fs.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks }
