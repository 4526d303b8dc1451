package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pty is the near end of a pseudo terminal. Reads end with an error once the far end's session has ended.
type pty struct {
	*os.File
	name string // of the far end
}

func newPTY() (*pty, error) {
	// Not Fd(), here and below: it would make reads block for ever, even after Close.
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	p := &pty{File: f}
	err = p.control(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		p.name = fmt.Sprintf("/dev/pts/%d", n)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("/dev/ptmx: %w", err), f.Close())
	}
	return p, nil
}

func (p *pty) control(do func(fd int) error) error {
	raw, err := p.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = do(int(fd)) })
	return errors.Join(err, inner)
}

// terminal opens the far end.
func (p *pty) terminal() (*os.File, error) { return os.OpenFile(p.name, os.O_RDWR|unix.O_NOCTTY, 0) }

// resize says how large the terminal is; the programs on it hear of it.
func (p *pty) resize(columns, rows, width, height uint32) error {
	w := &unix.Winsize{Row: uint16(rows), Col: uint16(columns), Xpixel: uint16(width), Ypixel: uint16(height)}
	return p.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, w) })
}
