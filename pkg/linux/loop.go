package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// AttachLoop makes a read-only block device of a file and returns its device file. The file may be removed then.
func AttachLoop(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return "", fmt.Errorf("asking for a free loop device: %w", err)
	}
	dev := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(dev, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer loop.Close()
	conf := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 4096}
	conf.Info.Flags = unix.LO_FLAGS_READ_ONLY
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &conf); err != nil {
		return "", fmt.Errorf("%s for %s: %w", dev, name, err)
	}
	return dev, nil
}
