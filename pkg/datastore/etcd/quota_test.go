package etcd

import "testing"

// A server with 32-bit addresses raises the alarm before its file can be mapped no more.
func TestQuota(t *testing.T) {
	for _, c := range []struct {
		bits int
		want int64
	}{{64, 8 << 30}, {32, 1 << 30}} {
		if got := mostFor(c.bits); got != c.want {
			t.Errorf("%d bits: %d, want %d", c.bits, got, c.want)
		}
	}
}
