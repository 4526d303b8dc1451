package fleet

import (
	"net/netip"
	"testing"
)

func BenchmarkDecode1000(b *testing.B) {
	data, err := New(Sketch{Name: "big", Boards: []Batch{{"x86-uefi", 1000}}, Servers: 3, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Decode("fleet.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}
