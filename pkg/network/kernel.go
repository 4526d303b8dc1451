package network

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelLog gives the kernel's messages so far. A machine that shows none to us gives none.
func kernelLog() (lines []string) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 8<<10)
	for { // one message each
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // the oldest was overwritten meanwhile
		case err != nil || n <= 0:
			return lines
		}
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		lines = append(lines, text)
	}
}

// missingFirmware names the files that drivers asked for in vain, by the words of the kernel's firmware loader
// (drivers/base/firmware_loader). The radio rules of countries are no driver's.
func missingFirmware(log []string) (files []string) {
	for _, line := range log {
		_, rest, ok := strings.Cut(line, "Direct firmware load for ")
		name, _, ok2 := strings.Cut(rest, " failed with error ")
		if ok && ok2 && !strings.HasPrefix(name, "regulatory.db") && !slices.Contains(files, name) {
			files = append(files, name)
		}
	}
	return files
}
