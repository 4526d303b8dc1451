package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cmdline gives the value of key on the kernel command line; the last one counts.
func Cmdline(line, key string) string {
	value := ""
	for w := range strings.FieldsSeq(line) {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			value = v
		}
	}
	return value
}

// Restart restarts the machine. It only returns if the kernel refuses.
func Restart() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }

// RestartWith restarts it and passes arg on, which some firmware takes: a Raspberry Pi's "0 tryboot".
func RestartWith(arg string) error {
	if arg == "" {
		return Restart()
	}
	p, err := unix.BytePtrFromString(arg)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(p)), 0, 0)
	return errno
}

// PowerOff turns the machine off. It only returns if the kernel refuses.
func PowerOff() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }

// CatchCtrlAltDel makes the keys send SIGINT to process 1, where they would restart at once.
func CatchCtrlAltDel() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }

// SetSysctl sets a kernel setting by its name with dots, below proc (/proc/sys).
func SetSysctl(proc, key, value string) error {
	// A dot in the name of an interface is written as a slash in sysctl's notation, and the other way round.
	name := strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
	if strings.Contains("/"+name+"/", "/../") {
		return fmt.Errorf("kernel setting %s: is not a name", key)
	}
	// No O_CREATE: a name that the kernel does not have is an error.
	f, err := os.OpenFile(filepath.Join(proc, name), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kernel setting %s: this kernel has none of that name: %w", key, err)
	}
	if err != nil {
		return fmt.Errorf("kernel setting %s: %w", key, err)
	}
	_, werr := f.WriteString(value)
	if err := errors.Join(werr, f.Close()); err != nil {
		return fmt.Errorf("kernel setting %s to %q: %w", key, value, err)
	}
	return nil
}

// Modaliases lists what the devices present say they are, each once. sys is sysfs.
func Modaliases(sys fs.FS) ([]string, error) {
	seen := map[string]bool{}
	err := fs.WalkDir(sys, "devices", func(p string, d fs.DirEntry, gone error) error {
		// A device that goes away while we look is none.
		if gone != nil || d.Name() != "modalias" {
			return nil //nolint:nilerr // see above
		}
		if data, err := fs.ReadFile(sys, p); err == nil {
			if a := strings.TrimSpace(string(data)); a != "" {
				seen[a] = true
			}
		}
		return nil
	})
	out := make([]string, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	slices.Sort(out)
	return out, err
}

// Uevents hears of devices that come and go.
type Uevents struct{ f *os.File }

// ListenUevents starts to listen; what happens from now on is kept until Next asks.
func ListenUevents() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listening for devices: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("listening for devices: %w", err), unix.Close(fd))
	}
	return &Uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Next waits for the next event and gives its variables, such as ACTION, SUBSYSTEM, DEVNAME and MODALIAS. Events that were
// lost because nobody asked in time come as one without variables.
func (u *Uevents) Next() (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := u.f.Read(buf)
	if errors.Is(err, unix.ENOBUFS) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseUevent(buf[:n]), nil
}

// Close ends Next.
func (u *Uevents) Close() error { return u.f.Close() }

func parseUevent(b []byte) map[string]string {
	out := map[string]string{}
	for field := range bytes.SplitSeq(b, []byte{0}) {
		if k, v, ok := strings.Cut(string(field), "="); ok {
			out[k] = v
		}
	}
	return out
}

// Consoles gives the device files of the consoles the kernel writes to. sys is sysfs.
func Consoles(sys fs.FS) []string {
	data, err := fs.ReadFile(sys, "class/tty/console/active")
	if err != nil {
		return []string{"/dev/console"}
	}
	var out []string
	for name := range strings.FieldsSeq(string(data)) {
		out = append(out, path.Join("/dev", name))
	}
	return out
}

// evKey is the type of key events and keyPower the code of the button, in linux/input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// HasPowerKey says whether the input device, a folder of sysfs's class/input, can send the power key: bit 116 of
// capabilities/key, which is words of this machine's size in hexadecimal, the highest first.
func HasPowerKey(sys fs.FS, dev string) bool {
	data, err := fs.ReadFile(sys, path.Join("class/input", dev, "device/capabilities/key"))
	if err != nil {
		return false
	}
	words := strings.Fields(string(data))
	const bits = 32 << (^uint(0) >> 63)
	i := len(words) - 1 - keyPower/bits
	if i < 0 {
		return false
	}
	var w uint64
	if _, err := fmt.Sscanf(words[i], "%x", &w); err != nil {
		return false
	}
	return w>>(keyPower%bits)&1 == 1
}

// PowerPressed reads events of an input device and returns nil when the power key goes down.
func PowerPressed(ctx context.Context, r io.Reader) error {
	// struct input_event: a time of two words, type, code, value.
	const word = 4 << (^uint(0) >> 63)
	event := make([]byte, 2*word+8)
	for ctx.Err() == nil {
		if _, err := io.ReadFull(r, event); err != nil {
			return err
		}
		e := event[2*word:]
		if binary.NativeEndian.Uint16(e) == evKey && binary.NativeEndian.Uint16(e[2:]) == keyPower && binary.NativeEndian.Uint32(e[4:]) == 1 {
			return nil
		}
	}
	return context.Cause(ctx)
}
