//go:build !linux

package compose

import (
	"errors"
	"os"
)

// Releases are built on Linux; the desk tool is built for other systems to flash with.
func exchange(_, _ string) error { return errors.ErrUnsupported }

func lock(*os.File) error { return errors.ErrUnsupported }
