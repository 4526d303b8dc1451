package flash

import "os"

// File is a block device, or a file that stands for one.
type File struct {
	*os.File
	block bool
	size  int64
	held  //nolint:unused // what else the system wants to be remembered
}

// Size in bytes.
func (f *File) Size() int64 { return f.size }
