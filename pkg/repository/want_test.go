package repository

import (
	"errors"
	"testing"
	"time"
)

// A machine that wants a version goes to it and no further, in whatever channel and wave it is, and over the stones in between; what
// failed stays failed.
func TestChooseTheWanted(t *testing.T) {
	offer := func(version, channel string, stone bool) Offer {
		var o Offer
		o.Version, o.Channel, o.Arch, o.Boards, o.Stone = version, channel, "amd64", []string{"x86-uefi"}, stone
		return o
	}
	beta := offer("1.2.0", "beta", false)
	beta.Waves = []Wave{{Percent: 0}}
	offers := []Offer{offer("1.1.0", "stable", true), beta, offer("1.3.0", "stable", false)}
	for _, tt := range []struct{ runs, want, failed, next string }{
		{"1.1.0", "1.2.0", "", "1.2.0"},
		{"1.0.0", "1.2.0", "", "1.1.0"}, // the stone
		{"1.1.0", "1.2.0", "1.2.0", ""},
		{"1.2.0", "1.2.0", "", ""},
		{"1.1.0", "", "", "1.3.0"},
	} {
		m := Machine{Arch: "amd64", Board: "x86-uefi", Version: tt.runs, Want: tt.want, Failed: map[string]bool{tt.failed: true}}
		o, err := Choose(offers, m, time.Now())
		if o.Version != tt.next || (tt.next == "") != errors.Is(err, ErrUpToDate) {
			t.Errorf("from %s to %q, %q failed: %q, %v; want %q", tt.runs, tt.want, tt.failed, o.Version, err, tt.next)
		}
	}
}
