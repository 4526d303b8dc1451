package image

import (
	"bytes"
	"crypto/ed25519"
	"flag"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/release"
)

var update = flag.Bool("update", false, "rewrite the golden files (make golden); read the diff before you commit it")

// grubFiles are what lies beside the kernels on a board with a BIOS.
var grubFiles = []string{"grub.cfg", "EFI/Linux/os-a.env", "EFI/Linux/os-b.env"}

// goldenRelease is a manifest with round numbers, signed with a key of zeros; no file of it exists, because a plan reads none.
func goldenRelease(t *testing.T, b *boards.Board) *release.Release {
	t.Helper()
	file := func(path string, size int64, digit string) release.File {
		return release.File{Path: path, Size: size, SHA256: strings.Repeat(digit, 64)}
	}
	m := &release.Manifest{
		Schema: release.Schema, Version: "1.0.0", Commit: strings.Repeat("0", 40), BuildTime: time.Unix(1_800_000_000, 0).UTC(), Arch: b.Arch, Kubernetes: "v1.37.2",
		Root:   release.Root{File: file("root.img", 120_000*4096, "1"), DataSize: 119_000 * 4096, RootHash: strings.Repeat("2", 64), Salt: strings.Repeat("3", 64)},
		Boards: map[string]release.Board{b.ID: {Kernel: "6.12.0", Boot: file("boot/"+b.ID+".efi", 20_000_001, "4")}},
		Files: []release.File{
			file("boot/systemd-boot.efi", 100_000, "5"), file("secureboot/KEK.auth", 2000, "6"), file("secureboot/PK.auth", 2001, "7"), file("secureboot/db.auth", 2002, "8"),
		},
	}
	if b.Slots != boards.UEFI {
		r := m.Boards[b.ID]
		r.Slots = b.Slots
		add := func(name string, f release.Firmware) {
			f.File = file("boot/"+b.ID+"/"+name, 100_001, "9")
			r.Firmware = append(r.Firmware, f)
		}
		for _, f := range b.Boot.Files {
			for _, name := range f.Files {
				add(name, release.Firmware{To: name})
			}
		}
		for _, t := range b.Boot.DeviceTrees {
			if b.Slots != boards.Pi { // there they are in the kernel image
				add(t.Name(), release.Firmware{To: t.Name()})
			}
		}
		for _, t := range b.Boot.Texts {
			add(t.Name, release.Firmware{To: t.Name})
		}
		for _, raw := range b.Boot.Raw {
			add(path.Base(raw.File), release.Firmware{At: int64(raw.At)})
		}
		if b.Slots == boards.GRUB {
			add("boot.img", release.Firmware{})
			r.Firmware[0].Size = disk.CodeSize
			add("core.img", release.Firmware{At: 32 << 10})
			for _, name := range grubFiles {
				add(path.Base(name), release.Firmware{To: name})
			}
		}
		m.Boards[b.ID] = r
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	manifest, sig, err := release.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := release.Verify(manifest, sig, []ed25519.PublicKey{key.Public().(ed25519.PublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// Every board's plan is a file to be reviewed: where each byte of its disks lies and comes from. A change that moves
// partitions breaks machines in the field, and here it shows.
func TestGoldenPlans(t *testing.T) {
	all, err := boards.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		p, err := New(b, goldenRelease(t, b), Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{})
		if err != nil {
			t.Errorf("%s: %v", b.ID, err)
			continue
		}
		var got bytes.Buffer
		if err := p.Print(&got); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join("testdata", b.ID+".plan")
		if *update {
			if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("%v; write it with: make golden", err)
		} else if !bytes.Equal(want, got.Bytes()) {
			t.Errorf("%s: the plan changed; if that is meant, run make golden and read the diff. It is now:\n%s", name, got.Bytes())
		}
	}
}
