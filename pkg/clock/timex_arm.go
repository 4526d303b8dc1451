package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// slewMost in nanoseconds fits.
func setOffset(tx *unix.Timex, d time.Duration) { tx.Offset = int32(d.Nanoseconds()) }
