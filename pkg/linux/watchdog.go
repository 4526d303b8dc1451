package linux

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WatchdogTimeout is how long the hardware is asked to wait for a sign of life before it resets the machine.
const WatchdogTimeout = 60 * time.Second

// From linux/watchdog.h.
const (
	wdiocSetTimeout = 0xc0045706
	wdiocGetTimeout = 0x80045707
)

// Watchdog is the machine's hardware watchdog. It is never disarmed: whatever stops feeding it, the machine restarts.
type Watchdog struct {
	f       *os.File
	timeout time.Duration // of the device; 0 is unknown
}

// OpenWatchdog arms the watchdog. A device that is not there is fs.ErrNotExist.
func OpenWatchdog() (*Watchdog, error) {
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	w := &Watchdog{f: f}
	// Some devices count to less (Allwinner's to 16 s), and some cannot be set at all.
	for t := WatchdogTimeout; t >= 10*time.Second; t -= 5 * time.Second {
		if unix.IoctlSetPointerInt(int(f.Fd()), wdiocSetTimeout, int(t/time.Second)) == nil {
			break
		}
	}
	w.ask()
	return w, w.feed()
}

// ask reads the device's timeout.
func (w *Watchdog) ask() {
	if seconds, err := unix.IoctlGetInt(int(w.f.Fd()), wdiocGetTimeout); err == nil {
		w.timeout = time.Duration(seconds) * time.Second
	}
}

// AdoptWatchdog takes over the armed watchdog that the program before this one left open as file descriptor fd.
func AdoptWatchdog(fd int) (*Watchdog, error) {
	w := &Watchdog{f: os.NewFile(uintptr(fd), "/dev/watchdog")}
	if w.f == nil {
		return nil, fmt.Errorf("watchdog: %d is no file descriptor", fd)
	}
	w.ask()
	return w, w.feed()
}

// Keep makes the watchdog stay open across exec and returns its file descriptor.
func (w *Watchdog) Keep() (int, error) {
	fd := int(w.f.Fd())
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	return fd, err
}

func (w *Watchdog) feed() error {
	_, err := w.f.Write([]byte{0}) // anything but the V that would disarm it
	return err
}

// Every is how often the watchdog is fed: so that it takes five that are missed to reset the machine, on any device.
func (w *Watchdog) Every() time.Duration {
	return min(max(w.timeout, 6*time.Second), WatchdogTimeout) / 6
}

// Run feeds the watchdog until ctx ends, which leaves it armed. What it needs for that stays in memory: a program whose pages must be
// read from a busy card would be late.
func (w *Watchdog) Run(ctx context.Context) {
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) // without it, it is only late now and then
	t := time.NewTicker(w.Every())
	defer t.Stop()
	for {
		_ = w.feed() // one missed is no harm, and the hardware speaks if all are
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
