package platform

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/image/imagetest"
)

// Labels of volumes as the usual programs make them.
func TestVolumeLabels(t *testing.T) {
	mkfs := imagetest.Tool(t, "mkfs.vfat", "dosfstools")
	dir := t.TempDir()
	made := map[string]string{}
	for name, args := range map[string][]string{
		"fat12": {"-F12", "-n", "CIDATA", "-C", "", "1440"}, "fat16": {"-F16", "-n", "cidata", "-C", "", "20000"}, "fat32": {"-F32", "-n", "config-2", "-C", "", "40000"},
	} {
		file := filepath.Join(dir, name)
		args[4] = file
		imagetest.Run(t, mkfs, args...)
		made[name] = file
	}
	t.Run("iso9660", func(t *testing.T) {
		tool := imagetest.Tool(t, "genisoimage", "genisoimage")
		src, file := t.TempDir(), filepath.Join(dir, "iso")
		if err := os.WriteFile(filepath.Join(src, "user-data"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		imagetest.Run(t, tool, "-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", file, src)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if label, kind := Volume(f); label != "cidata" || kind != ISO9660 {
			t.Errorf("%q %q", label, kind)
		}
	})
	for name, want := range map[string]string{"fat12": "CIDATA", "fat16": "cidata", "fat32": "config-2"} {
		f, err := os.Open(made[name])
		if err != nil {
			t.Fatal(err)
		}
		if label, kind := Volume(f); label != want || kind != VFAT {
			t.Errorf("%s: %q %q", name, label, kind)
		}
		_ = f.Close()
	}
	sys := fstest.MapFS{"class/block/vda": {}, "class/block/fat32": {}, "class/block/fat12": {}, "class/block/sr0": {}}
	open := func(name string) (io.ReaderAt, func(), error) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, nil, err
		}
		return f, func() { _ = f.Close() }, nil
	}
	if device, kind := FindVolume(sys, open, "cidata", "config-2"); device != "fat12" || kind != VFAT {
		t.Errorf("found %q %q", device, kind)
	}
	if device, _ := FindVolume(sys, open, "nothing"); device != "" {
		t.Errorf("found %q", device)
	}
}

func FuzzVolume(f *testing.F) {
	f.Add(uint16(11), []byte{0, 2, 1, 1, 0, 2})
	f.Add(uint16(510), []byte{0x55, 0xaa})
	f.Fuzz(func(_ *testing.T, at uint16, patch []byte) {
		b := make([]byte, 40<<10)
		copy(b[54:], "FAT16")
		b[510], b[511] = 0x55, 0xaa
		copy(b[int(at)%len(b):], patch)
		Volume(reader(b)) // whatever it says, it ends
	})
}

type reader []byte

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(p, r[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func FuzzUserData(f *testing.F) {
	f.Add([]byte("#cloud-config\nhostname: x\nwrite_files: [{path: /etc/skerry/x, encoding: gz+b64, content: aa}]\n"))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = ReadUserData(data) })
}
