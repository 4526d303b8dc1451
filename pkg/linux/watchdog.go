package linux

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WatchdogTimeout is how long the hardware waits for a sign of life before it resets the machine.
const WatchdogTimeout = 60 * time.Second

const wdiocSetTimeout = 0xc0045706

// Watchdog is the machine's hardware watchdog. It is never disarmed: whatever stops feeding it, the machine restarts.
type Watchdog struct{ f *os.File }

// OpenWatchdog arms the watchdog. A device that is not there is fs.ErrNotExist.
func OpenWatchdog() (*Watchdog, error) {
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	w := &Watchdog{f}
	// Not every device can set its time; its own is used then.
	_ = unix.IoctlSetPointerInt(int(f.Fd()), wdiocSetTimeout, int(WatchdogTimeout/time.Second))
	return w, w.feed()
}

// AdoptWatchdog takes over the armed watchdog that the program before this one left open as file descriptor fd.
func AdoptWatchdog(fd int) (*Watchdog, error) {
	w := &Watchdog{os.NewFile(uintptr(fd), "/dev/watchdog")}
	if w.f == nil {
		return nil, fmt.Errorf("watchdog: %d is no file descriptor", fd)
	}
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

// Run feeds the watchdog until ctx ends, which leaves it armed.
func (w *Watchdog) Run(ctx context.Context) {
	t := time.NewTicker(WatchdogTimeout / 6)
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
