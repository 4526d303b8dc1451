package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// releaseFor gives the bench a signed release for a board, with small files where its firmware has its own.
func releaseFor(t *testing.T, bench *releasetest.Bench, b *boards.Board) *release.Release {
	t.Helper()
	m := *bench.Signed.Manifest()
	m.Arch = b.Arch
	x86 := m.Boards["x86-uefi"]
	m.Boards = map[string]release.Board{b.ID: bench.Board(t, b)}
	if b.Slots == boards.GRUB { // in one release with the board whose kernel image it has
		m.Boards["x86-uefi"] = x86
	}
	bench.Sign(t, &m)
	return bench.Signed
}

// What Build writes for any kind of firmware, Inspect reads back into the same plan, and a changed byte of any range it names.
func TestInspectKnowsEveryFirmware(t *testing.T) {
	for _, id := range []string{"rpi3", "rpi5", "orangepi-pc", "beaglebone-black", "x86-bios"} {
		t.Run(id, func(t *testing.T) {
			b, err := boards.Load(id)
			if err != nil {
				t.Fatal(err)
			}
			bench := releasetest.New(t, 300_000)
			rel := releaseFor(t, bench, b)
			p, err := New(b, rel, Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(t.TempDir(), "disk.img")
			if err := Create(t.Context(), p, os.DirFS(bench.Release), name, Raw); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			got, err := Inspect(t.Context(), f, p.Size, bench.Trusted())
			// The test's kernel says it is x86-uefi's; everything else is right.
			if err != nil && strings.Count(err.Error(), "\n")+1 != strings.Count(err.Error(), "skerry.board="+id) {
				t.Fatal(err)
			}
			if got == nil || fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", *p) {
				t.Fatalf("Inspect read another plan than was built:\n%+v\n%+v", got, p)
			}
			for _, e := range p.Extents {
				at := e.Offset + e.Size/2
				if e.Source == zeros || e.Where == boards.Config || strings.Contains(e.What, "table") || e.Where == "gpt" {
					continue
				}
				flip(t, f, at)
				if _, err := Inspect(t.Context(), f, p.Size, bench.Trusted()); err == nil || !strings.Contains(err.Error(), e.Where+": offset ") {
					t.Errorf("%s %s: a changed byte at %d: %v", e.Where, e.What, at, err)
				}
				flip(t, f, at)
			}
		})
	}
}

func flip(t *testing.T, f *os.File, at int64) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// What the vendor's documentation says of the boot partition is so on every Raspberry Pi's image.
func TestRaspberryPiRules(t *testing.T) {
	for id, needs := range map[string][]string{
		"rpi3": {"bootcode.bin", "start.elf", "fixup.dat", "u-boot.bin", "config.txt", "boot.scr", "bcm2837-rpi-3-b.dtb", "bcm2837-rpi-3-b-plus.dtb", "bcm2837-rpi-zero-2-w.dtb"},
		"rpi4": {"start4.elf", "fixup4.dat", "u-boot.bin", "config.txt", "boot.scr", "bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4-io.dtb"},
		"rpi5": {"config.txt"},
	} {
		b, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		p, err := New(b, goldenRelease(t, b), Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		first := p.Partitions[0]
		if kind := fat32(t, p, first); kind != "FAT32   " {
			t.Errorf("%s: the first partition is %q", id, kind)
		}
		in := map[string][]string{} // partition -> files
		for _, e := range p.Extents {
			if name, ok := strings.CutPrefix(e.What, "/"); ok {
				in[e.Where] = append(in[e.Where], name)
			}
		}
		where := first.Name
		if b.Slots == boards.Pi {
			where = slot.A.BootLabel()
			// autoboot.txt: at most 512 bytes, lines of at most 98, numbers of FAT partitions.
			i := slices.IndexFunc(p.Extents, func(e Extent) bool { return e.What == "/"+slot.Autoboot })
			if i < 0 {
				t.Fatalf("%s: no %s", id, slot.Autoboot)
			}
			if text := string(p.Extents[i].data); len(text) > 512 || text != "[all]\ntryboot_a_b=1\nboot_partition=2\n" || p.Partitions[1].Name != where || p.Extents[i].Where != first.Name {
				t.Errorf("%s: %s is %q", id, slot.Autoboot, text)
			}
			if p.Partitions[2].Name != slot.B.BootLabel() || !slices.Equal(in[slot.A.BootLabel()], in[slot.B.BootLabel()]) {
				t.Errorf("%s: the boot partitions differ: %v", id, in)
			}
			needs = append(needs, slot.PiKernel)
		} else if p.MBR != 1 {
			t.Errorf("%s: the boot partition does not stand in the MBR", id)
		}
		for _, name := range needs {
			if name == "boot.scr" {
				continue // made with the release
			}
			if !slices.Contains(in[where], name) {
				t.Errorf("%s: %s lacks %s: it has %v", id, where, name, in[where])
			}
		}
		config := ""
		for _, text := range b.Boot.Texts {
			config = text.Text
		}
		for line := range strings.Lines(config) {
			if len(line) > 98 || strings.Contains(line, " =") || strings.Contains(line, "= ") {
				t.Errorf("%s: config.txt: line %q is not one that the firmware reads", id, line)
			}
		}
		for _, want := range map[string][]string{"uboot": {"arm_64bit=1\n", "kernel=u-boot.bin\n", "enable_uart=1\n", "upstream_kernel=1\n"}, "rpi-tryboot": {"boot_ramdisk=1\n"}}[b.Slots] {
			if !strings.Contains(config, want) {
				t.Errorf("%s: config.txt lacks %q", id, want)
			}
		}
	}
}

// fat32 reads the kind of filesystem out of a planned volume's boot sector.
func fat32(t *testing.T, p *Plan, part Partition) string {
	t.Helper()
	for _, e := range p.Extents {
		if e.Offset == part.Start {
			return string(e.data[82:90])
		}
	}
	t.Fatalf("%s has no boot sector", part.Name)
	return ""
}

// Nothing that a boot ROM reads lies on the table or in a partition, and one that would is refused.
func TestRawFilesKeepOff(t *testing.T) {
	b, err := boards.Load("orangepi-pc")
	if err != nil {
		t.Fatal(err)
	}
	rel := goldenRelease(t, b)
	changed := *b
	changed.Disk.Entries = disk.Entries // the table then reaches into the SPL
	if _, err := New(&changed, rel, Config{Name: "node.yaml", Data: []byte(releasetest.Config)}, Options{}); err == nil || !strings.Contains(err.Error(), "starts at 8192, inside") {
		t.Errorf("got %v", err)
	}
}
