package fat_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/imagetest"
	"github.com/skerry-os/skerry/pkg/powercut"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// volume makes a small volume with these files.
func volume(t testing.TB, files map[string]string) *powercut.Disk {
	t.Helper()
	const size = 34 << 20
	b := make([]byte, size)
	var list []fat.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, fat.File{Path: name, Size: int64(len(files[name]))})
	}
	l, err := fat.Lay(fat.Params{Size: size, Label: "TEST", Serial: 1, Time: noon}, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range l.Meta {
		copy(b[c.Offset:], c.Data)
	}
	for _, f := range l.Files {
		copy(b[f.Offset:], files[f.Path])
	}
	return powercut.New(b)
}

func edit(t testing.TB, d fat.Device) *fat.Editor {
	t.Helper()
	e, err := fat.Edit(d, 34<<20, noon)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// content reads a volume as strictly as any image, and gives its files.
func content(t testing.TB, d io.ReaderAt) map[string]string {
	t.Helper()
	v, err := fat.Read(d, 34<<20)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range v.Files {
		b, err := io.ReadAll(f.Open())
		if err != nil {
			t.Fatal(err)
		}
		out[f.Path] = string(b)
	}
	return out
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, e *fat.Editor, name, text string) {
	t.Helper()
	check(t, e.Write(name, int64(len(text)), strings.NewReader(text)))
}

func TestEditIsWhatOthersRead(t *testing.T) {
	d := volume(t, map[string]string{"EFI/Linux/os-a.efi": strings.Repeat("a", 9000), "loader/loader.conf": "default a\n"})
	e := edit(t, d)
	free := e.Free()
	put(t, e, "EFI/Linux/os-b.new", strings.Repeat("b", 70_000))
	if got, want := free-e.Free(), e.Takes(70_000); got != want {
		t.Errorf("takes %d, said %d", got, want)
	}
	check(t, e.Rename("EFI/Linux/os-b.new", "EFI/Linux/os-b+3-0.efi"))
	put(t, e, "loader/loader.conf", "default b\n")
	put(t, e, "loader/empty", "")
	check(t, e.Remove("efi/linux/OS-A.EFI"))
	check(t, e.Remove("EFI/Linux/never.efi"))
	// More than a cluster of entries, so that the folder grows.
	for i := range 40 {
		put(t, e, fmt.Sprintf("loader/a rather long name number %d", i), fmt.Sprint(i))
	}
	for i := range 39 {
		check(t, e.Remove(fmt.Sprintf("loader/a rather long name number %d", i)))
	}
	want := map[string]string{
		"EFI/Linux/os-b+3-0.efi": strings.Repeat("b", 70_000), "loader/loader.conf": "default b\n", "loader/empty": "",
		"loader/a rather long name number 39": "39",
	}
	if got := content(t, d); !maps.Equal(got, want) {
		t.Errorf("holds %q", slices.Sorted(maps.Keys(got)))
	}
	name := filepath.Join(t.TempDir(), "volume")
	check(t, os.WriteFile(name, d.Bytes(), 0o600))
	out := imagetest.Run(t, imagetest.Tool(t, "fsck.vfat", "dosfstools"), "-n", "-v", name)
	if strings.Contains(out, "ifferences") || strings.Contains(out, "wrong") || strings.Contains(out, "eclaim") {
		t.Errorf("fsck.vfat: %s", out)
	}
	list := imagetest.Run(t, imagetest.Tool(t, "mdir", "mtools"), "-b", "-/", "-i", name, "::")
	for file := range want {
		if !strings.Contains(list, file) {
			t.Errorf("mtools does not see %s in:\n%s", file, list)
		}
	}
}

func TestEditFullVolume(t *testing.T) {
	d := volume(t, map[string]string{"loader/loader.conf": "old", "big": strings.Repeat("x", 20<<20)})
	e := edit(t, d)
	before := content(t, d)
	err := e.Write("loader/more", 20<<20, bytes.NewReader(make([]byte, 20<<20)))
	if !errors.Is(err, fat.ErrNoRoom) {
		t.Errorf("got %v", err)
	}
	if got := content(t, d); !maps.Equal(got, before) {
		t.Error("the failed write changed something")
	}
	check(t, e.Remove("big"))
	check(t, e.Write("loader/more", 20<<20, bytes.NewReader(make([]byte, 20<<20))))
}

func TestEditRefuses(t *testing.T) {
	e := edit(t, volume(t, map[string]string{"a/x": "1", "a/y": "2"}))
	for what, err := range map[string]error{
		"no folder":      e.Write("b/x", 0, strings.NewReader("")),
		"bad name":       e.Write("a/x?", 0, strings.NewReader("")),
		"short content":  e.Write("a/z", 10, strings.NewReader("short")),
		"taken":          e.Rename("a/x", "a/y"),
		"absent":         e.Rename("a/q", "a/r"),
		"another folder": e.Rename("a/x", "x"),
	} {
		if err == nil {
			t.Errorf("%s: was done", what)
		}
	}
}

// A medium that does not keep what it is given is found out before the file gets its name.
func TestEditReadsBack(t *testing.T) {
	d := volume(t, map[string]string{"a/x": "1"})
	liar := &liar{Disk: d}
	e := edit(t, liar)
	if err := e.Write("a/x", 5000, bytes.NewReader(bytes.Repeat([]byte{7}, 5000))); err == nil || !strings.Contains(err.Error(), "reading back") {
		t.Errorf("got %v", err)
	}
	if got := content(t, d); got["a/x"] != "1" {
		t.Errorf("holds %q", got)
	}
}

type liar struct{ *powercut.Disk }

func (l *liar) WriteAt(b []byte, at int64) (int, error) {
	if b[0] == 7 {
		b = append([]byte{8}, b[1:]...)
	}
	return l.Disk.WriteAt(b, at)
}

// However the power fails, each file is the old one or the new one, none is lost, and the volume can be changed again.
func TestEditPowerCut(t *testing.T) {
	type step struct {
		name string
		do   func(e *fat.Editor) error
		old  map[string]string // what changes, before
		new  map[string]string // and after; "" for not there
	}
	a, b := strings.Repeat("a", 9000), strings.Repeat("b", 30_000)
	write := func(name, text string) func(*fat.Editor) error {
		return func(e *fat.Editor) error { return e.Write(name, int64(len(text)), strings.NewReader(text)) }
	}
	steps := []step{
		{"create", write("l/os-b.new", b), map[string]string{"l/os-b.new": ""}, map[string]string{"l/os-b.new": b}},
		{"rename", func(e *fat.Editor) error { return e.Rename("l/os-b.new", "l/os-b+3-0.efi") },
			map[string]string{"l/os-b.new": b, "l/os-b+3-0.efi": ""}, map[string]string{"l/os-b.new": "", "l/os-b+3-0.efi": b}},
		{"replace", write("l/conf", "new"), map[string]string{"l/conf": "old"}, map[string]string{"l/conf": "new"}},
		{"remove", func(e *fat.Editor) error { return e.Remove("l/os-a.efi") }, map[string]string{"l/os-a.efi": a}, map[string]string{"l/os-a.efi": ""}},
	}
	files := map[string]string{"l/os-a.efi": a, "l/conf": "old"}
	for i := range 20 { // so that sets come to lie on both sides of a sector's end
		steps = append(steps, step{fmt.Sprintf("fill %d", i), write(fmt.Sprintf("l/a name of three entries %d", i), "x"),
			map[string]string{fmt.Sprintf("l/a name of three entries %d", i): ""}, map[string]string{fmt.Sprintf("l/a name of three entries %d", i): "x"}})
	}
	d := volume(t, files)
	cuts := 0
	for _, s := range steps {
		before := content(t, d)
		d.Record()
		check(t, s.do(edit(t, d)))
		after := content(t, d)
		cuts += d.Cuts(1, 30, func(c powercut.Cut) {
			got := content(t, c.Disk())
			if !maps.Equal(got, before) && !maps.Equal(got, after) {
				t.Fatalf("%s: %s: holds %q", s.name, c.What, slices.Sorted(maps.Keys(got)))
			}
			again := c.Disk()
			check(t, write("l/conf", "after the cut")(edit(t, again)))
			if text := content(t, again)["l/conf"]; text != "after the cut" {
				t.Fatalf("%s: %s: afterwards %q", s.name, c.What, text)
			}
		})
		if maps.Equal(before, after) {
			t.Errorf("%s: changed nothing", s.name)
		}
	}
	t.Logf("%d cuts", cuts)
}

// What firmware that lost power while it renamed leaves, two names for one file, is put in order without losing the file.
func TestEditTwoNames(t *testing.T) {
	text := strings.Repeat("b", 9000)
	d := volume(t, map[string]string{"l/os-b+2-1.efi": text, "l/os-b+3-0.efi": "x"})
	// Both short entries get the cluster and the size of the first.
	img := d.Bytes()
	one := bytes.Index(img, []byte("OS-B2-~1EFI"))
	two := bytes.Index(img, []byte("OS-B3-~1EFI"))
	if one < 0 || two < 0 {
		t.Fatal("the entries are not where they were")
	}
	copy(img[two+20:two+32], img[one+20:one+32])
	if _, err := fat.Read(d, 34<<20); err == nil {
		t.Error("a strict reader finds nothing wrong")
	}
	e := edit(t, d)
	if n := len(e.Files()); n != 2 {
		t.Fatalf("%d files", n)
	}
	check(t, e.Remove("l/os-b+3-0.efi"))
	if got := content(t, d); len(got) != 1 || got["l/os-b+2-1.efi"] != text {
		t.Errorf("left %q", slices.Sorted(maps.Keys(got)))
	}
}
