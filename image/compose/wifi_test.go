package compose

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/debian"
)

// Boards with WiFi are of architectures that the list has its packages for; a release of another is refused before anything is built.
func TestWiFiPackages(t *testing.T) {
	all, err := boards.All()
	if err != nil {
		t.Fatal(err)
	}
	radios := 0
	for _, b := range all {
		ok, err := (&packages{arch: b.Arch}).hasPart(wifi)
		if err != nil || b.WiFi && !ok {
			t.Errorf("board %s: %v", b.ID, err)
		}
		if b.WiFi {
			radios++
		}
	}
	if radios < 3 {
		t.Errorf("%d boards have WiFi", radios)
	}
	_, err = newBuild(t.Context(), Options{Arch: "arm", Out: filepath.Join(t.TempDir(), "r"), Work: t.TempDir(), Additions: Additions{WiFi: true}})
	if ok, _ := (&packages{arch: "arm"}).hasPart(wifi); !ok && (err == nil || !strings.Contains(err.Error(), "add it there and run `make lock`")) {
		t.Errorf("arm: %v", err)
	}
}

// The locked packages hold wpa_supplicant with everything it needs, the rules for radios, and the firmware that boards name.
func TestWiFiFiles(t *testing.T) {
	if os.Getenv("SKERRY_MIRROR") == "" {
		t.Skip("fetches from a Debian mirror; set SKERRY_MIRROR=1")
	}
	mirrors, err := debian.HostMirrors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lock, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("SKERRY_CACHE")
	if cache == "" {
		cache = t.TempDir()
	}
	all, err := boards.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		tree := func(parts ...string) *rootfs.Tree {
			p := &packages{
				ctx: t.Context(), lock: lock, arch: arch, log: NewLog(t.Output()), used: map[string]debian.Package{},
				store: &debian.Store{Dir: cache, Mirrors: mirrors.All(), Retry: time.Second},
			}
			out := rootfs.New(mergedFolders(arch)...)
			if err := p.addPrograms(out, parts...); err != nil {
				t.Fatal(err)
			}
			if len(parts) == 0 {
				return out
			}
			if err := p.addRegulatory(out); err != nil {
				t.Fatal(err)
			}
			for _, b := range all {
				if b.Arch == arch {
					if err := p.addFirmware(out, b); err != nil {
						t.Fatal(err)
					}
				}
			}
			return out
		}
		with, without := tree(wifi), tree()
		for _, name := range []string{"usr/sbin/wpa_supplicant", "usr/lib/firmware/regulatory.db", "usr/lib/firmware/regulatory.db.p7s", "usr/share/doc/wpasupplicant/copyright"} {
			if _, ok := with.Get(name); !ok {
				t.Errorf("%s: %s is missing", arch, name)
			}
			if _, ok := without.Get(name); ok {
				t.Errorf("%s: %s is in releases without WiFi", arch, name)
			}
		}
		for _, e := range with.Entries() {
			if e.Mode.Type() == fs.ModeSymlink && strings.HasPrefix(e.Path, "usr/lib/firmware/") {
				if _, ok := with.Get(filepath.Join(filepath.Dir(e.Path), e.Link)); !ok {
					t.Errorf("%s: %s -> %s, which no board names", arch, e.Path, e.Link)
				}
			}
		}
		if f := "usr/lib/firmware/brcm/brcmfmac43455-sdio.raspberrypi,5-model-b.txt"; arch == "arm64" {
			if _, ok := with.Get(f); !ok {
				t.Errorf("%s is missing", f)
			}
		}
	}
}
