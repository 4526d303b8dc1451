package linux

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/release"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func TestPartitions(t *testing.T) {
	sys := fstest.MapFS{
		"block/vda/size":                    file("409600\n"),
		"block/vda/queue/hw":                file(""),
		"block/vda/vda2/partition":          file("2\n"),
		"block/vda/vda2/size":               file("2048\n"),
		"block/vda/vda2/uevent":             file("MAJOR=254\nDEVNAME=vda2\nDEVTYPE=partition\nPARTN=2\nPARTNAME=root-a\nPARTUUID=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"),
		"block/nvme0n1/nvme0n1p1/partition": file("1\n"),
		"block/nvme0n1/nvme0n1p1/size":      file("100\n"),
		"block/nvme0n1/nvme0n1p1/uevent":    file("PARTN=1\n"),
	}
	parts, err := Partitions(sys)
	if err != nil || len(parts) != 2 {
		t.Fatalf("got %+v, %v", parts, err)
	}
	want := Partition{Name: "vda2", Disk: "vda", Num: 2, Label: "root-a", UUID: "0fc63daf-8483-4772-8e79-3d69d8477de4", Size: 1 << 20}
	if parts[1] != want || parts[1].DiskDev() != "/dev/vda" || parts[0].Dev() != "/dev/nvme0n1p1" {
		t.Errorf("got %+v", parts)
	}
}

// diskImage is an image as skerry writes it, on a disk that is larger.
// A stick may have a partition table or none; what the kernel makes out of other disks is no stick, nor is an empty card reader.
func TestVolumes(t *testing.T) {
	sys := fstest.MapFS{
		"block/vda/size":           file("409600\n"),
		"block/vda/device/vendor":  file("x\n"),
		"block/vda/vda1/partition": file("1\n"),
		"block/vda/vda1/size":      file("2048\n"),
		"block/vda/vda1/uevent":    file("PARTN=1\n"),
		"block/sda/size":           file("1048576\n"),
		"block/sda/device/vendor":  file("stick\n"),
		"block/sdb/size":           file("0\n"),
		"block/sdb/device/vendor":  file("reader\n"),
		"block/dm-0/size":          file("240000\n"),
		"block/sdc/device/vendor":  file("went away\n"),
	}
	got, err := Volumes(sys)
	want := []Partition{{Name: "vda1", Disk: "vda", Num: 1, Size: 1 << 20}, {Name: "sda", Disk: "sda", Size: 512 << 20}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func diskImage(t *testing.T, size, grown int64) *os.File {
	t.Helper()
	linuxData, err := disk.ParseGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
	if err != nil {
		t.Fatal(err)
	}
	table := disk.Table{Size: size, GUID: disk.GUID{1}, Partitions: []disk.Partition{
		{Name: "root-a", Type: linuxData, GUID: disk.GUID{2}, Start: 1 << 20, Size: 4 << 20},
		{Name: "data", Type: linuxData, GUID: disk.GUID{3}, Start: 5 << 20, Size: 2 << 20},
	}}
	head, tail, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	for _, w := range []struct {
		b  []byte
		at int64
	}{{head, 0}, {tail, size - disk.TailSize}} {
		if _, err := f.WriteAt(w.b, w.at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(grown); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGrowLast(t *testing.T) {
	const size, grown = 8 << 20, 64<<20 + 7*512
	f := diskImage(t, size, grown)
	num, p, changed, err := GrowLast(f, grown, "data")
	if err != nil || num != 2 || !changed || p.Start != 5<<20 || p.Start+p.Size != 63<<20 {
		t.Fatalf("got partition %d %+v, %v, %v", num, p, changed, err)
	}
	if _, err := disk.Read(f, grown); err != nil {
		t.Errorf("the new table: %v", err)
	}
	if sgdisk, err := exec.LookPath("sgdisk"); err == nil {
		if out, err := exec.Command(sgdisk, "-v", f.Name()).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No problems found")) {
			t.Errorf("sgdisk: %v\n%s", err, out)
		}
	}
	if _, _, changed, err := GrowLast(f, grown, "data"); err != nil || changed {
		t.Errorf("a second time: changed %v, %v", changed, err)
	}
}

// What a BIOS starts is in the same sector as the table, and is there when the table was written anew.
func TestGrowLastKeepsTheBootSector(t *testing.T) {
	f := diskImage(t, 8<<20, 64<<20)
	code := bytes.Repeat([]byte{0xeb}, disk.CodeSize)
	if _, err := f.WriteAt(append(bytes.Clone(code), 0, 0, 0, 0, 0, 0, 0x80), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, changed, err := GrowLast(f, 64<<20, "data"); err != nil || !changed {
		t.Fatal(changed, err)
	}
	got := make([]byte, 447)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got[:len(code)], code) || got[446] != 0x80 {
		t.Errorf("% x, %v", got, err)
	}
}

// A size is a limit for growing, not a reason to shrink.
func TestGrowLastTo(t *testing.T) {
	f := diskImage(t, 8<<20, 64<<20)
	if _, p, _, err := GrowLastTo(f, 64<<20, "data", 20<<20); err != nil || p.Start != 5<<20 || p.Size != 20<<20 {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, p, _, err := GrowLastTo(f, 64<<20, "data", 10<<20); err != nil || p.Size != 20<<20 {
		t.Errorf("then %+v, %v", p, err)
	}
}

func TestGrowLastRefuses(t *testing.T) {
	f := diskImage(t, 8<<20, 16<<20)
	if _, _, _, err := GrowLast(f, 16<<20, "root-a"); err == nil || !strings.Contains(err.Error(), "the last partition is data") {
		t.Errorf("a partition that is not the last: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := GrowLast(f, 16<<20, "data"); err == nil {
		t.Error("a disk whose only whole table is lost was given a new one")
	}
}

// cutDisk is a disk whose power fails: after so many writes, or in the middle of one, nothing arrives any more.
type cutDisk struct {
	*os.File
	left int // bytes
}

func (d *cutDisk) WriteAt(p []byte, at int64) (int, error) {
	n := min(len(p), d.left)
	d.left -= n
	if _, err := d.File.WriteAt(p[:n], at); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

// However far growing gets before the power fails, the machine that comes back finds all partitions and finishes it.
func TestGrowLastPowerCut(t *testing.T) {
	const size, grown = 8 << 20, 32 << 20
	for cut := 0; ; cut += 1021 {
		f := diskImage(t, size, grown)
		d := &cutDisk{f, cut}
		_, _, _, err := GrowLast(d, grown, "data")
		table, rerr := disk.Read(f, grown)
		if table == nil || len(table.Partitions) != 2 {
			t.Fatalf("power cut after %d bytes: no table is left: %v", cut, rerr)
		}
		if _, p, _, err := GrowLast(f, grown, "data"); err != nil || p.Start+p.Size != 31<<20 {
			t.Fatalf("power cut after %d bytes: growing again: %+v, %v", cut, p, err)
		}
		if _, err := disk.Read(f, grown); err != nil {
			t.Fatalf("power cut after %d bytes: then the table is %v", cut, err)
		}
		if err == nil {
			return
		}
	}
}

func TestCmdline(t *testing.T) {
	line := "console=ttyS0 skerry.board=x skerry.roothash=abc quiet skerry.board=y\n"
	for key, want := range map[string]string{"skerry.board": "y", "skerry.roothash": "abc", "roothash": "", "quiet": ""} {
		if got := Cmdline(line, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestSetSysctl(t *testing.T) {
	proc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "net/ipv4/conf/eth0.5"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/eth0.5/forwarding"} {
		if err := os.WriteFile(filepath.Join(proc, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for key, file := range map[string]string{"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net.ipv4.conf.eth0/5.forwarding": "net/ipv4/conf/eth0.5/forwarding"} {
		if err := SetSysctl(proc, key, "1"); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if got, err := os.ReadFile(filepath.Join(proc, file)); err != nil || string(got) != "1" {
			t.Errorf("%s: wrote %q, %v", key, got, err)
		}
	}
	for _, key := range []string{"net.ipv4.nothing", "////etc.x", "net.//.//.x"} {
		if err := SetSysctl(proc, key, "1"); err == nil {
			t.Errorf("%s was set", key)
		}
	}
}

func TestModaliases(t *testing.T) {
	sys := fstest.MapFS{
		"devices/pci0/0000:00/modalias":         file("pci:v1\n"),
		"devices/pci0/0000:00/virtio0/modalias": file("virtio:d2\n"),
		"devices/pci0/0000:01/modalias":         file("pci:v1\n"),
		"devices/platform/x/modalias":           file("\n"),
		"class/x/modalias":                      file("never\n"),
	}
	got, err := Modaliases(sys)
	if err != nil || strings.Join(got, " ") != "pci:v1 virtio:d2" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestParseUevent(t *testing.T) {
	e := parseUevent([]byte("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=vda1\x00"))
	if e["ACTION"] != "add" || e["DEVNAME"] != "vda1" || len(e) != 3 {
		t.Errorf("got %v", e)
	}
}

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo(strings.NewReader(`22 1 253:0 / / ro,nodev shared:1 - erofs /dev/dm-0 ro
23 22 0:5 / /var/lib/with\040space rw,relatime shared:2 master:3 - tmpfs tmpfs rw
`))
	if err != nil || len(got) != 2 || got[1].Target != "/var/lib/with space" || got[1].FS != "tmpfs" || got[0].Source != "/dev/dm-0" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseMountinfo(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestConsoles(t *testing.T) {
	sys := fstest.MapFS{"class/tty/console/active": file("tty0 ttyS0\n")}
	if got := Consoles(sys); strings.Join(got, " ") != "/dev/tty0 /dev/ttyS0" {
		t.Errorf("got %v", got)
	}
	if got := Consoles(fstest.MapFS{}); len(got) != 1 || got[0] != "/dev/console" {
		t.Errorf("without sysfs: %v", got)
	}
}

func TestPowerKey(t *testing.T) {
	sys := fstest.MapFS{
		"class/input/event0/device/capabilities/key": file("10000000000000 0\n"), // the ACPI power button
		"class/input/event1/device/capabilities/key": file("ffff\n"),
	}
	const wide = ^uint(0)>>63 == 1
	if got := HasPowerKey(sys, "event0"); got != wide {
		t.Errorf("the power button: %v", got)
	}
	if HasPowerKey(sys, "event1") || HasPowerKey(sys, "event2") {
		t.Error("a mouse has a power key")
	}
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, 8<<(^uint(0)>>63), 24)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, code)
		return binary.NativeEndian.AppendUint32(b, value)
	}
	press := bytes.Join([][]byte{event(4, 4, 9), event(1, 30, 1), event(1, 116, 1)}, nil)
	if err := PowerPressed(t.Context(), bytes.NewReader(press)); err != nil {
		t.Errorf("pressed: %v", err)
	}
	release := bytes.Join([][]byte{event(1, 116, 0), event(0, 0, 0)}, nil)
	if err := PowerPressed(t.Context(), bytes.NewReader(release)); err == nil {
		t.Error("letting go counts as pressing")
	}
}

// The table is what veritysetup would give for a tree without superblock behind the data.
func TestVerityTarget(t *testing.T) {
	root := release.Root{DataSize: 40960, RootHash: strings.Repeat("ab", 32), Salt: strings.Repeat("cd", 32)}
	got := verityTarget("/dev/vda2", root)
	want := "1 /dev/vda2 /dev/vda2 4096 4096 10 10 sha256 " + root.RootHash + " " + root.Salt + " 1 panic_on_corruption"
	if got.Params != want || got.Length != 80 || got.Type != "verity" {
		t.Errorf("got %+v", got)
	}
	// Major 253, minors 3 and 259, as huge_encode_dev packs them.
	if dmMinor(0xfd03) != 3 || dmMinor(0x10fd03) != 259 {
		t.Errorf("minors %d and %d", dmMinor(0xfd03), dmMinor(0x10fd03))
	}
}
