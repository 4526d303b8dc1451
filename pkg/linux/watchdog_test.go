package linux

import (
	"testing"
	"time"
)

// Whatever a device counts to, five feedings may be missed before it resets the machine; and none is fed all the time.
func TestWatchdogEvery(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		0:                time.Second, // it does not say
		3 * time.Second:  time.Second,
		16 * time.Second: 16 * time.Second / 6, // Allwinner's
		60 * time.Second: 10 * time.Second,
		time.Hour:        10 * time.Second,
	} {
		if got := (&Watchdog{timeout: timeout}).Every(); got != want {
			t.Errorf("a device of %v is fed every %v, want %v", timeout, got, want)
		}
	}
}
