package size

import (
	"math"
	"testing"
)

func TestParse(t *testing.T) {
	good := map[string]Bytes{
		"0B": 0, "1B": 1, "4096B": 4096, "64KiB": 64 * KiB, "512 MiB": 512 * MiB, "3GiB": 3 * GiB, "1TiB": TiB,
	}
	for in, want := range good {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "MiB", "-1MiB", "+1MiB", "1.5MiB", "1MB", "1M", "1mib", "1iB", "9999999999TiB", "99999999999999999999B", "1MiBMiB", "1 2MiB"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %d; want an error", in, got)
		}
	}
}

func TestStringRoundTrip(t *testing.T) {
	for _, b := range []Bytes{0, 1, 512, 1023, KiB, KiB + 1, 17 * KiB, MiB, 1536 * KiB, 512 * MiB, GiB, 5 * TiB, math.MaxInt64} {
		got, err := Parse(b.String())
		if err != nil || got != b {
			t.Errorf("Parse(%d.String() = %q) = %d, %v", b, b.String(), got, err)
		}
	}
}
