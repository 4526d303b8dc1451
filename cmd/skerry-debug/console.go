package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skerry-os/skerry/pkg/machine"
)

var virtualTerminal = regexp.MustCompile(`^tty[0-9]+$`)

// console offers a shell on one terminal. This process leads a session of its own, which init made, and the terminal becomes that
// session's. Nothing is written before somebody presses Enter: what the machine says on the console stays as it is, for those
// who read it by program. A file in dir says that the shell is in use.
func console(name, dir, home string) error {
	open := filepath.Join(dir, filepath.Base(name))
	if err := os.Remove(open); err != nil && !errors.Is(err, os.ErrNotExist) { // of the shell before this one
		return err
	}
	f, err := takeTerminal(name)
	if err != nil {
		return err
	}
	term := ""
	if virtualTerminal.MatchString(filepath.Base(name)) {
		term = "linux"
		fmt.Fprint(f, machine.DebugNotice+". Press Enter.\n") // nobody reads this by program
	}
	if err := awaitEnter(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// From now on what init says begins with a new line there: the person is in the middle of one.
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(open, nil, 0o644)); err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := os.Chdir(folder(home)); err != nil {
		return err
	}
	err = syscall.Exec(shell, []string{"-sh"}, environment(home, term)) // the dash makes it a login shell
	return fmt.Errorf("%s: %w", shell, err)
}

// takeTerminal opens a terminal, makes it this session's and sets it up for a person who types.
func takeTerminal(name string) (*os.File, error) {
	// A serial line may have nobody at its end who raises the carrier: only an open that does not wait for it comes back.
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := setUp(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func setUp(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	// Speed and size of a byte stay as kernel and firmware set them.
	t.Cflag |= unix.CREAD | unix.CLOCAL | unix.HUPCL
	t.Iflag = unix.ICRNL | unix.IXON | unix.IUTF8
	t.Oflag = unix.OPOST | unix.ONLCR
	t.Lflag = unix.ISIG | unix.ICANON | unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHOCTL | unix.ECHOKE | unix.IEXTEN
	for at, c := range map[int]byte{
		unix.VINTR: 3, unix.VQUIT: 28, unix.VERASE: 127, unix.VKILL: 21, unix.VEOF: 4, unix.VSTART: 17, unix.VSTOP: 19, unix.VSUSP: 26,
		unix.VREPRINT: 18, unix.VWERASE: 23, unix.VLNEXT: 22, unix.VMIN: 1, unix.VTIME: 0,
	} {
		t.Cc[at] = c
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 1); err != nil { // 1: also from a session that lost its leader and not its terminal
		return fmt.Errorf("making it this session's: %w", err)
	}
	return unix.SetNonblock(fd, false)
}

// awaitEnter waits for the end of a line, without showing what is typed.
func awaitEnter(f *os.File) error {
	fd := int(f.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	quiet := *t
	quiet.Lflag &^= unix.ECHO | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return err
	}
	// Byte by byte: what follows the line is for the shell.
	if _, err := bufio.NewReaderSize(oneByte{f}, 16).ReadString('\n'); err != nil {
		return err
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// oneByte reads no more than is asked for.
type oneByte struct{ f *os.File }

func (o oneByte) Read(p []byte) (int, error) { return o.f.Read(p[:1]) }
