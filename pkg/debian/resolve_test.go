package debian

import (
	"os"
	"testing"
	"time"
)

// The host's own mirrors: what Resolve locks can be fetched and unpacked.
func TestResolveFetchUnpack(t *testing.T) {
	if os.Getenv("SKERRY_MIRROR") == "" {
		t.Skip("asks a Debian mirror, which may be in the middle of its own update; set SKERRY_MIRROR=1")
	}
	m, err := HostMirrors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &Want{Suite: "bookworm", Components: []string{"main"}, Arches: []string{"amd64", "arm64"}, Packages: []WantedItem{
		{Name: "libmnl0"},
		{Name: "systemd-boot-efi", Suite: "bookworm-backports", Arches: []string{"amd64"}},
		{Name: "linux-image-amd64", Suite: "bookworm-backports", Follow: []string{"linux-image-"}, Arches: []string{"amd64"}},
	}}
	lock, err := Resolve(t.Context(), w, m, t.TempDir(), func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	for arch, n := range map[string]int{"amd64": 3, "arm64": 1} {
		if len(lock.Arches[arch]) != n {
			t.Errorf("%s: %+v", arch, lock.Arches[arch])
		}
	}
	kernel, err := lock.Followed("amd64", "linux-image-amd64", "bookworm-backports")
	if err != nil || len(kernel) != 1 || kernel[0].Name == "linux-image-amd64" || kernel[0].Size < 50<<20 {
		t.Errorf("kernel: %+v, %v", kernel, err)
	}
	s := &Store{Dir: t.TempDir(), Mirrors: m.All(), Retry: time.Second}
	for arch, name := range map[string]string{"amd64": "systemd-boot-efi", "arm64": "libmnl0"} {
		p, err := lock.Find(arch, name)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := s.Unpack(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir + "/usr/share/doc/" + name); err != nil {
			t.Error(err)
		}
	}
	w.Packages = []WantedItem{{Name: "no-such-package-here"}}
	if _, err := Resolve(t.Context(), w, m, t.TempDir(), func(string) {}); err == nil {
		t.Error("a package that does not exist was locked")
	}
}
