package process

import "time"

// Backoff says how long to wait before a program that ended is started again: First, then twice as long each time up to
// Most, and First again once it ran for Reset.
type Backoff struct {
	First, Most, Reset time.Duration

	last time.Duration
}

// Next gives the wait after a run that lasted ran.
func (b *Backoff) Next(ran time.Duration) time.Duration {
	switch {
	case b.last == 0 || ran >= b.Reset:
		b.last = b.First
	default:
		b.last = min(2*b.last, b.Most)
	}
	return b.last
}
