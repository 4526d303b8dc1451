package updates

import (
	"net/netip"
	"slices"
	"testing"
	"testing/fstest"
)

// The ways to others are those of the machine's own devices, however they are built on, and not those of pods.
func TestNetwork(t *testing.T) {
	link := func(names ...string) map[string]bool {
		out := map[string]bool{}
		for _, n := range names {
			out[n] = true
		}
		return out
	}
	sys := fstest.MapFS{}
	for name, has := range map[string]map[string]bool{
		"eth0": link("device"), "bond0": link("lower_eth1"), "eth1": link("device"), "bond0.7": link("lower_bond0"),
		"cni0": link("lower_veth1"), "veth1": link("address"), "flannel.1": link("lower_eth0"), "lo": link("address"),
	} {
		for f := range has {
			sys["class/net/"+name+"/"+f] = &fstest.MapFile{}
		}
	}
	p := netip.MustParsePrefix
	all := map[string][]netip.Prefix{
		"eth0": {p("192.0.2.7/24"), p("fe80::1/64"), p("2001:db8::7/64"), p("192.0.2.9/32")}, "bond0.7": {p("198.51.100.3/25")},
		"cni0": {p("10.42.0.1/24")}, "flannel.1": {p("10.42.0.0/32")}, "lo": {p("127.0.0.1/8")},
	}
	const head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
	proc := fstest.MapFS{
		"net/route":      {Data: []byte(head + "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")},
		"net/ipv6_route": {Data: []byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n")},
	}
	want := []string{"a default route for IPv4", "a default route for IPv6", "an address in 192.0.2.0/24", "an address in 198.51.100.0/25", "an address in 2001:db8::/64"}
	if got := network(sys, proc, all); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	none := fstest.MapFS{
		"net/route":      {Data: []byte(head + "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")},
		"net/ipv6_route": {Data: []byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n")},
	}
	if got := network(sys, none, nil); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}
