package fat

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/skerry-os/skerry/image/imagetest"
)

const mib = 1 << 20

var params = Params{Size: 48 * mib, Label: "SKERRYCFG", Serial: 0x1234abcd, Time: time.Date(2026, 2, 28, 13, 14, 16, 0, time.UTC)}

// tree is files with all kinds of names and sizes around those of clusters.
func tree() ([]File, map[string][]byte) {
	content := map[string][]byte{}
	var files []File
	for i, f := range []struct {
		path string
		size int
	}{
		{"EFI/BOOT/BOOTX64.EFI", 70_000}, {"EFI/Linux/os-a.efi", 3 * mib}, {"EFI/Linux/os-b+3-0.efi", 512}, {"EFI/Linux/os-b+3-1.efi", 513},
		{"loader/loader.conf", 60}, {"loader/keys/auto/PK.auth", 511}, {"loader/empty", 0}, {"config.yaml", 1}, {"a.b.c", 5}, {"README", 5},
		{"a name that is quite a bit longer than one long entry.txt", 5}, {"thirteen.char", 13}, {"loader/loader", 4096},
	} {
		files = append(files, File{f.path, int64(f.size)})
		content[f.path] = bytes.Repeat([]byte{byte(i + 1)}, f.size)
	}
	for i := range 40 { // a folder of several clusters
		p := "many/file-with-number-" + strings.Repeat("x", i)
		files = append(files, File{p, 3})
		content[p] = []byte("xyz")
	}
	return files, content
}

// write puts a layout on disk over noise, so that no byte is right by being zero already.
func write(t *testing.T, p Params, files []File, content map[string][]byte) (string, *Layout) {
	t.Helper()
	l, err := Lay(p, files)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{0xaa}, int(p.Size))
	for _, c := range l.Meta {
		copy(b[c.Offset:], c.Data)
	}
	for _, f := range l.Files {
		copy(b[f.Offset:], content[f.Path][:f.Size])
	}
	name := filepath.Join(t.TempDir(), "fat.img")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, l
}

func TestReadGivesWhatWasLaid(t *testing.T) {
	files, content := tree()
	name, l := write(t, params, files, content)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	v, err := Read(f, params.Size)
	if err != nil {
		t.Fatal(err)
	}
	if v.Params != params {
		t.Errorf("params %+v, want %+v", v.Params, params)
	}
	offsets := map[string]int64{}
	for _, p := range l.Files {
		offsets[p.Path] = p.Offset
	}
	if len(v.Files) != len(files) {
		t.Errorf("%d files, want %d", len(v.Files), len(files))
	}
	for _, got := range v.Files {
		data, err := io.ReadAll(got.Open())
		if err != nil || !bytes.Equal(data, content[got.Path]) || got.Size != int64(len(data)) || got.Offset() != offsets[got.Path] {
			t.Errorf("%s: %d bytes at %d, want %d at %d (%v)", got.Path, len(data), got.Offset(), len(content[got.Path]), offsets[got.Path], err)
		}
	}
}

// The sizes around which cluster sizes change, and the one that other writers get wrong.
func TestFsckAgrees(t *testing.T) {
	fsck := imagetest.Tool(t, "fsck.vfat", "dosfstools")
	files, content := tree()
	for _, size := range []int64{34 * mib, 35*mib + 512, 48 * mib, 64 * mib, 67 * mib, 128 * mib, 256 * mib, 260 * mib} {
		p := params
		p.Size = size
		name, l := write(t, p, files, content)
		out := imagetest.Run(t, fsck, "-n", "-v", name)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for _, l := range lines {
			for _, bad := range []string{"differ", "not", "wrong", "orphan", "Dirty", "wasn't", "mismatch", "correct"} {
				if strings.Contains(l, bad) && !strings.Contains(l, "Checking") {
					t.Errorf("%d bytes: fsck.vfat says %q", size, l)
				}
			}
		}
		if l.Free <= 0 || l.Free >= size {
			t.Errorf("%d bytes: %d free", size, l.Free)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMtoolsAgrees(t *testing.T) {
	mtype, mdir, minfo := imagetest.Tool(t, "mtype", "mtools"), imagetest.Tool(t, "mdir", "mtools"), imagetest.Tool(t, "minfo", "mtools")
	files, content := tree()
	name, l := write(t, params, files, content)
	for path, data := range content {
		if out := imagetest.Run(t, mtype, "-i", name, "::"+path); out != string(data) {
			t.Errorf("%s: mtype gives %d bytes, want %d", path, len(out), len(data))
		}
	}
	out := imagetest.Run(t, mdir, "-i", name, "::/")
	if !strings.Contains(out, "Volume in drive : is SKERRYCFG") || !strings.Contains(out, "1234-ABCD") || !strings.Contains(out, "2026-02-28  13:14") {
		t.Error(out)
	}
	free := strings.ReplaceAll(out[strings.LastIndex(out, "\n    ")+1:], " ", "")
	if want := strings.TrimSpace(free); !strings.HasPrefix(want, itoa(l.Free)+"bytesfree") {
		t.Errorf("mdir says %q, the layout %d", want, l.Free)
	}
	if out := imagetest.Run(t, minfo, "-i", name, "::"); !strings.Contains(out, "SKERRYCFG") {
		t.Error(out)
	}
}

func itoa(n int64) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

func TestDiskfsAgrees(t *testing.T) {
	files, content := tree()
	name, _ := write(t, params, files, content)
	b, err := file.OpenFromPath(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	fs, err := fat32.Read(b, params.Size, 0, sector)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range content {
		f, err := fs.OpenFile("/"+path, os.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got, err := io.ReadAll(f); len(want) > 0 && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%s: go-diskfs reads %d bytes, want %d (%v)", path, len(got), len(want), err)
		}
	}
}

func TestLayRefuses(t *testing.T) {
	ok := []File{{"a", 1}}
	for _, c := range []struct {
		want  string
		p     func(*Params)
		files []File
	}{
		{"34 MiB is the least", func(p *Params) { p.Size = 20 * mib }, ok},
		{"not whole sectors", func(p *Params) { p.Size++ }, ok},
		{"label", func(p *Params) { p.Label = "too long label" }, ok},
		{"label", func(p *Params) { p.Label = "lower" }, ok},
		{"the year 1970", func(p *Params) { p.Time = time.Unix(0, 0) }, ok},
		{"do not fit in a volume", nil, []File{{"a", 47 * mib}, {"b", mib}}},
		{"4 GiB less one", nil, []File{{"a", 1 << 32}}},
		{"is one name with a/b to FAT", nil, []File{{"a/b", 1}, {"a/B", 1}}},
		{"is one name with a/b to FAT", nil, []File{{"a/b", 1}, {"a/b/c", 1}}},
		{"is one name with a to FAT", nil, []File{{"a/b", 1}, {"A/c", 1}}},
		{"is one name with a to FAT", nil, []File{{"a/b", 1}, {"a", 1}}},
		{"not a clean path", nil, []File{{"../a", 1}}},
		{"not a clean path", nil, []File{{"/a", 1}}},
		{"is not for FAT names", nil, []File{{"a:b", 1}}},
		{"begins or ends", nil, []File{{"a.", 1}}},
	} {
		p := params
		if c.p != nil {
			c.p(&p)
		}
		if l, err := Lay(p, c.files); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v, %v", c.want, l, err)
		}
	}
}

// Whatever a volume says, reading it ends, and gives files that can be read.
func FuzzRead(f *testing.F) {
	p := params
	p.Size = 34 * mib
	files, _ := tree()
	l, err := Lay(p, files)
	if err != nil {
		f.Fatal(err)
	}
	base := make([]byte, p.Size)
	for _, c := range l.Meta {
		copy(base[c.Offset:], c.Data)
	}
	f.Add(uint32(44), uint32(3), uint32(0), uint32(0))
	f.Fuzz(func(t *testing.T, at1, to1, at2, to2 uint32) {
		b := patched{base, map[int64]byte{}}
		for _, c := range [][2]uint32{{at1, to1}, {at2, to2}} {
			for i := range int64(4) {
				b.patch[int64(c[0]%(2<<20))+i] = byte(c[1] >> (8 * i))
			}
		}
		v, err := Read(b, p.Size)
		if err != nil {
			return
		}
		for _, found := range v.Files {
			if n, err := io.Copy(io.Discard, found.Open()); err != nil || n != found.Size {
				t.Fatalf("%s: %d of %d bytes: %v", found.Path, n, found.Size, err)
			}
		}
	})
}

// patched is a volume with some bytes changed.
type patched struct {
	base  []byte
	patch map[int64]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for at, v := range p.patch {
		if at >= off && at < off+int64(n) {
			b[at-off] = v
		}
	}
	return n, err
}
