//go:build !arm

package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

func setOffset(tx *unix.Timex, d time.Duration) { tx.Offset = d.Nanoseconds() }
