package kmod

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// insert hands one module file to the kernel, as it is if the kernel can decompress it.
func insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), params, flags)
	if flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOEXEC)) {
		data, derr := decompress(file, f)
		if derr != nil {
			return derr
		}
		err = unix.InitModule(data, params)
	}
	if errors.Is(err, fs.ErrExist) { // loaded already
		return nil
	}
	return err
}
