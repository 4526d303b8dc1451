package cloud

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/skerry-os/skerry/image/imagetest"
)

var testID = [16]byte{0xde, 0xad, 0xbe, 0xef, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15}

// sample stores the same disk, with pieces of all sizes in it and much nothing between, in a file of the format.
func sample(t testing.TB, format Format, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk."+string(format))
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	d, err := Create(f, format, size, testID)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	put := func(at int64, n int) {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if k, err := d.WriteAt(b, at); err != nil || k != n {
			t.Fatalf("%s: %d of %d bytes at %d: %v", format, k, n, at, err)
		}
	}
	put(0, 512)
	put(512, 100_000)          // goes on in the same grain
	put(100_512, 7)            // and in the middle of one
	put(3<<20, 2<<20)          // whole ones
	put(40<<20-5, 10)          // across two
	put(size/2+12345, 300_000) // far away: other tables
	put(size-16896, 16896)     // and to the end
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// content gives the digest of the disk in a file, as a reader of ours sees it.
func content(t testing.TB, name string, format Format, size int64) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var r io.Reader = io.NewSectionReader(f, 0, size)
	if format == TarGz {
		gz, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(gz)
		h, err := tr.Next()
		if err != nil || h.Name != "disk.raw" || h.Size != size || h.Format != tar.FormatGNU {
			t.Fatalf("%+v, %v", h, err)
		}
		r = tr
	} else if d, err := Open(f); err != nil {
		t.Fatal(err)
	} else if d != nil {
		if d.Size() != size {
			t.Errorf("%s: size is %d", format, d.Size())
		}
		r = io.NewSectionReader(d, 0, d.Size()+1)
	}
	h := sha256.New()
	if n, err := io.Copy(h, r); err != nil || n != size {
		t.Fatalf("%s: %d bytes, %v", format, n, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// What was written is read back from every format, twice the same bytes come out, and holes take no room.
func TestFormatsHoldTheDisk(t *testing.T) {
	const size = 100 << 20
	want := content(t, sample(t, Raw, size), Raw, size)
	for _, format := range Formats {
		name := sample(t, format, size)
		if got := content(t, name, format, size); got != want {
			t.Errorf("%s: another disk comes back", format)
		}
		a, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(sample(t, format, size)); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: the same disk gives other bytes (%v)", format, err)
		}
		if (format == QCOW2 || format == VMDK || format == TarGz) && len(a) > 5<<20 {
			t.Errorf("%s: takes %d bytes", format, len(a))
		}
	}
}

// QEMU, who shares no line with us, finds no fault and the same disk.
func TestQemuImgAgreesOnFormats(t *testing.T) {
	qemuImg := imagetest.Tool(t, "qemu-img", "qemu-utils")
	const size = 160 << 20
	raw := sample(t, Raw, size)
	for format, theirs := range map[Format]string{QCOW2: "qcow2", VHD: "vpc", VMDK: "vmdk"} {
		name := sample(t, format, size)
		if format != VHD { // it has nothing to check
			imagetest.Run(t, qemuImg, "check", "-f", theirs, name)
		}
		imagetest.Run(t, qemuImg, "compare", "-f", "raw", "-F", theirs, raw, name)
		var info struct {
			Size   int64  `json:"virtual-size"`
			Format string `json:"format"`
		}
		if err := json.Unmarshal([]byte(imagetest.Run(t, qemuImg, "info", "--output=json", name)), &info); err != nil {
			t.Fatal(err)
		}
		if format != VHD && info.Format != theirs || format == VHD && info.Format != "raw" { // a fixed VHD begins with the disk
			t.Errorf("%s: qemu-img takes it for %s", format, info.Format)
		}
		if format != VHD && info.Size != size {
			t.Errorf("%s: qemu-img sees %d bytes", format, info.Size)
		}
		back := filepath.Join(t.TempDir(), "back")
		imagetest.Run(t, qemuImg, "convert", "-f", theirs, "-O", "raw", name, back)
		imagetest.Run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", raw, back)
	}
	out := imagetest.Run(t, "tar", "-tvzf", sample(t, TarGz, size))
	if !strings.HasSuffix(strings.TrimSpace(out), "disk.raw") || !strings.Contains(out, fmt.Sprint(size)) {
		t.Errorf("tar lists %s", out)
	}
}

// What Azure demands of a VHD: fixed, whole MiB, a size that the footer states, its checksum.
func TestVHDFooter(t *testing.T) {
	qemuImg := imagetest.Tool(t, "qemu-img", "qemu-utils")
	for _, size := range []int64{1 << 20, 89 << 20, 1346 << 20, 2 << 30, 127 << 30} {
		name := filepath.Join(t.TempDir(), "x.vhd")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Create(f, VHD, size, testID)
		if err == nil {
			err = d.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, VHDFooterSize)
		if n, err := f.ReadAt(b, size); err != nil || n != VHDFooterSize {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != size+VHDFooterSize {
			t.Errorf("the file has %d bytes", st.Size())
		}
		_ = f.Close()
		be := binary.BigEndian
		if string(b[:8]) != "conectix" || be.Uint32(b[60:]) != 2 || be.Uint64(b[40:]) != uint64(size) || be.Uint64(b[48:]) != uint64(size) || be.Uint64(b[16:]) != ^uint64(0) || be.Uint32(b[8:]) != 2 {
			t.Errorf("footer % x", b[:88])
		}
		sum := be.Uint32(b[64:])
		copy(b[64:68], make([]byte, 4))
		var n uint32
		for _, c := range b {
			n += uint32(c)
		}
		if sum != ^n {
			t.Errorf("checksum %08x, want %08x", sum, ^n)
		}
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err := json.Unmarshal([]byte(imagetest.Run(t, qemuImg, "info", "-f", "vpc", "--output=json", name)), &info); err != nil || info.Size != size {
			t.Errorf("qemu-img sees %d of %d bytes (%v)", info.Size, size, err)
		}
	}
	for _, c := range []struct {
		sectors    int64
		cyl        uint16
		heads, spt uint8
	}{{2048, 30, 4, 17}, {40 << 20 / 512, 963, 5, 17}, {65535 * 16 * 255 * 2, 65535, 16, 255}} {
		if cyl, h, s := geometry(c.sectors); cyl != c.cyl || h != c.heads || s != c.spt {
			t.Errorf("geometry of %d sectors: %d %d %d", c.sectors, cyl, h, s)
		}
	}
}

func TestBadDisksAreRefused(t *testing.T) {
	for _, c := range []struct {
		format Format
		size   int64
		want   string
	}{
		{"vhdx", 1 << 20, `image format "vhdx": is not one of raw, qcow2, vhd, vmdk, tar.gz`},
		{VHD, 1<<20 + 512, "is not whole MiB"},
		{Raw, 0, "is not whole MiB"},
		{VHD, 2041 << 30, "more than 2040 GiB"},
		{VMDK, 63 << 40, "more than 62 TiB"},
	} {
		if _, err := Create(new(memory), c.format, c.size, testID); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %d: %v", c.format, c.size, err)
		}
	}
	for _, format := range []Format{VMDK, TarGz} {
		d, err := Create(new(memory), format, 1<<20, testID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt([]byte("x"), 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt([]byte("x"), 999); err == nil || !strings.Contains(err.Error(), "from the first byte to the last") {
			t.Errorf("%s: backwards: %v", format, err)
		}
		if _, err := d.WriteAt([]byte("xx"), 1<<20-1); err == nil || !strings.Contains(err.Error(), "outside the disk") {
			t.Errorf("%s: behind the end: %v", format, err)
		}
	}
}

func (m *memory) Truncate(size int64) error {
	if size > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	}
	m.b = m.b[:size]
	return nil
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

func FuzzOpenVMDK(f *testing.F) {
	file := &memory{}
	d, err := Create(file, VMDK, 2<<20, testID)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("x"), 5); err != nil {
		f.Fatal(err)
	}
	if err := d.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(56), []byte{0, 1})
	f.Add(uint16(12), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		b := bytes.Clone(file.b)
		copy(b[int(at)%len(b):], patch)
		r, err := Open(&memory{b})
		if err != nil || r == nil {
			return
		}
		buf := make([]byte, grain)
		for _, off := range []int64{0, r.Size() / 2, r.Size() - 1} {
			_, _ = r.ReadAt(buf, off) // whatever it gives, it ends
		}
	})
}

// What goes into an archive for Google comes out of it, and nothing but disk.raw alone is taken for one.
func TestUnpackTarGz(t *testing.T) {
	const size = 100 << 20
	data, err := os.ReadFile(sample(t, TarGz, size))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(sample(t, Raw, size))
	if err != nil {
		t.Fatal(err)
	}
	unpack := func(data []byte) ([]byte, error) {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		n, err := UnpackTarGz(bytes.NewReader(data), f)
		if err != nil {
			return nil, err
		}
		got, rerr := os.ReadFile(f.Name())
		if rerr != nil || n != int64(len(got)) {
			t.Fatalf("%d of %d bytes, %v", len(got), n, rerr)
		}
		return got, nil
	}
	if got, err := unpack(data); err != nil || !bytes.Equal(got, want) {
		t.Errorf("another disk, or %v", err)
	}
	archive := func(names ...string) []byte {
		var b bytes.Buffer
		gz := gzip.NewWriter(&b)
		w := tar.NewWriter(gz)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Size: 5, Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte("bytes")); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := gz.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if got, err := unpack(archive("disk.raw")); err != nil || string(got) != "bytes" {
		t.Errorf("%q, %v", got, err)
	}
	for what, bad := range map[string][]byte{
		"no archive": []byte("no archive"), "another name": archive("../disk.raw"), "two files": archive("disk.raw", "more"), "no file": archive(),
		"cut off": data[:len(data)/2], "end cut off": data[:len(data)-20],
	} {
		if _, err := unpack(bad); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}
