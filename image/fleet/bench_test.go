package fleet

import (
	"net/netip"
	"testing"
)

func BenchmarkDecode1000(b *testing.B) {
	data, err := New(Sketch{Name: "big", Board: "x86-uefi", Servers: 3, Agents: 997, Address: netip.MustParsePrefix("10.0.0.10/16"), Gateway: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Decode("fleet.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}
