// Package size reads and prints amounts of bytes: "512MiB". A number without a unit is refused, because nobody can tell
// sectors from bytes by looking.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Bytes is an amount of bytes, never negative.
type Bytes int64

// The units of IEC 80000-13. Powers of ten are not offered: disks are cut in powers of two.
const (
	B   Bytes = 1
	KiB       = 1024 * B
	MiB       = 1024 * KiB
	GiB       = 1024 * MiB
	TiB       = 1024 * GiB
)

var units = []struct {
	name string
	size Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", B}}

// Parse reads a whole number and its unit: "64KiB", "512 MiB", "4096B".
func Parse(s string) (Bytes, error) {
	digits := strings.TrimRight(s, "TGMKiB")
	unit := s[len(digits):]
	digits = strings.TrimSpace(digits)
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || strings.HasPrefix(digits, "+") {
		return 0, fmt.Errorf("size %q: write a whole number and a unit, as in 512MiB", s)
	}
	for _, u := range units {
		if u.name != unit {
			continue
		}
		if n > math.MaxInt64/int64(u.size) {
			return 0, fmt.Errorf("size %q: is larger than a 64-bit number of bytes", s)
		}
		return Bytes(n) * u.size, nil
	}
	if unit == "" {
		return 0, fmt.Errorf("size %q: has no unit; write B, KiB, MiB, GiB or TiB behind it", s)
	}
	return 0, fmt.Errorf("size %q: unit %q is not one of B, KiB, MiB, GiB, TiB", s, unit)
}

// String prints the largest unit that needs no fraction, so that Parse(b.String()) == b.
func (b Bytes) String() string {
	for _, u := range units {
		if b%u.size == 0 && b != 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// UnmarshalYAML reads the text form.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error {
	v, err := Parse(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		if err == nil {
			err = fmt.Errorf("size: is not a single value; write it as in 512MiB")
		}
		return fmt.Errorf("line %d: column %d: %w", n.Line, n.Column, err)
	}
	*b = v
	return nil
}

// MarshalYAML writes the text form.
func (b Bytes) MarshalYAML() (any, error) { return b.String(), nil }

// MarshalText writes the text form, for JSON and flags.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads the text form.
func (b *Bytes) UnmarshalText(t []byte) error {
	v, err := Parse(string(t))
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// Rounded prints for people who want an idea: three digits, "213MiB" or "1.3GiB". Parse does not read it back.
func (b Bytes) Rounded() string {
	for _, u := range units {
		if v := float64(b) / float64(u.size); v >= 1 {
			if v < 10 && u.size != B {
				return strconv.FormatFloat(v, 'f', 1, 64) + u.name
			}
			return strconv.FormatFloat(v, 'f', 0, 64) + u.name
		}
	}
	return "0B"
}
