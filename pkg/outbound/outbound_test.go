package outbound

import (
	"net/netip"
	"net/url"
	"os"
	"testing"
)

func TestTake(t *testing.T) {
	for name, value := range map[string]string{
		"HTTPS_PROXY": "http://all:1", "CONTAINERD_HTTPS_PROXY": "http://images:2", "http_proxy": "http://plain:3", "NO_PROXY": "example.org", "ALL_PROXY": "http://x",
	} {
		t.Setenv(name, value)
	}
	s := Take(Settings{No: "mine.example.org"})
	if want := (Settings{HTTP: "http://plain:3", HTTPS: "http://images:2", No: "mine.example.org"}); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	t.Cleanup(func() {
		for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
			_ = os.Unsetenv(kept + name)
		}
	})
	if again := Take(Settings{}); again != s {
		t.Errorf("a process that starts itself anew has %+v", again)
	}
	for _, name := range []string{"HTTPS_PROXY", "http_proxy", "NO_PROXY", "ALL_PROXY", "CONTAINERD_HTTPS_PROXY"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s is still %q: the API server would use it", name, v)
		}
	}
}

func TestWhatGoesThroughTheProxy(t *testing.T) {
	never := Never([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:43::/112")}, "cluster.local", []netip.Addr{netip.MustParseAddr("192.0.2.7")})
	f := Settings{HTTPS: "http://proxy:3128", No: "direct.example.org"}.Func(never, func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")}
	})
	for address, through := range map[string]bool{
		"https://registry.example.org/v2/": true, "https://192.0.2.9/": true,
		"https://192.0.2.8:5000/": false, "https://[2001:db8::8]/": false, "https://[2001:db8::9]/": true, "https://direct.example.org/": false,
		"https://10.42.3.4:5000/": false, "https://[fd00:43::7]/": false, "https://registry.kube-system.svc.cluster.local/": false,
		"https://registry.kube-system.svc/": false, "https://192.0.2.7:6443/": false, "https://localhost:5000/": false, "https://127.0.0.1:9/": false,
		"http://registry.example.org/": false,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		p, err := f(u)
		if err != nil || (p != nil) != through {
			t.Errorf("%s: %v %v", address, p, err)
		}
	}
	if (Settings{No: "x"}).Func(never, nil) != nil {
		t.Error("no proxy is a proxy")
	}
}
