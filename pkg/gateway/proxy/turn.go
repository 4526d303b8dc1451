package proxy

import "sync/atomic"

// turn spreads choices evenly: after any number of them every choice has had its share, within one or two.
type turn struct{ n uint32 }

// next is a number below n, each as often as the others.
func (t *turn) next(n int) int { return int(atomic.AddUint32(&t.n, 1) % uint32(n)) } //nolint:gosec // n is the length of a list

// fraction is a number in [0, 1). Steps of the golden ratio fill the range evenly and without a pattern.
func (t *turn) fraction() float64 {
	const golden = 0x9E3779B9 // 2^32 divided by the golden ratio
	return float64(atomic.AddUint32(&t.n, 1)*golden) / (1 << 32)
}

// weighted picks a backend by weight; nil when all weights are 0.
func weighted(t *turn, backends []Backend) *Backend {
	total := 0
	for i := range backends {
		total += backends[i].Weight
	}
	if total <= 0 {
		return nil
	}
	at := int(t.fraction() * float64(total))
	for i := range backends {
		if at < backends[i].Weight {
			return &backends[i]
		}
		at -= backends[i].Weight
	}
	return &backends[len(backends)-1]
}
