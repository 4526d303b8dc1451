package grub

import (
	"bytes"
	"encoding/binary"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ulikunitz/xz/lzma"

	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/imagetest"
)

// unpack gives what the decompressor of a core image makes of it.
func unpack(t *testing.T, core []byte, start int) []byte {
	t.Helper()
	packed, size := le.Uint32(core[sector+compressedSize:]), le.Uint32(core[sector+uncompressedSize:])
	head := binary.LittleEndian.AppendUint64([]byte{2*45 + 3, 0, 0, 16, 0}, uint64(size))
	r, err := lzma.NewReader(io.MultiReader(bytes.NewReader(head), bytes.NewReader(core[sector+start:][:packed])))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil || len(out) != int(size) {
		t.Fatalf("%d of %d bytes: %v", len(out), size, err)
	}
	return out
}

// kernel is an i386 program of three sections: text at 0x9000, data with a gap before it, bss.
func kernel() []byte {
	b := make([]byte, 52+4*40)
	copy(b, "\x7fELF\x01\x01\x01")
	put16 := func(at, v int) { le.PutUint16(b[at:], uint16(v)) }
	put32 := func(at, v int) { le.PutUint32(b[at:], uint32(v)) }
	put16(16, 2)
	put16(18, 3)
	put32(20, 1)
	put32(24, kernelBase)
	put32(32, 52)
	put16(40, 52)
	put16(46, 40)
	put16(48, 4)
	put16(50, 0)
	section := func(i, kind, addr, off, size int) {
		at := 52 + i*40
		put32(at+4, kind)
		put32(at+8, 2)
		put32(at+12, addr)
		put32(at+16, off)
		put32(at+20, size)
	}
	end := len(b)
	section(1, 1, kernelBase, end, 5)
	section(2, 1, kernelBase+16, end+5, 4)
	section(3, 8, kernelBase+32, 0, 4096)
	return append(b, "text.data"...)
}

func folder() fstest.MapFS {
	files := fstest.MapFS{
		"boot.img": {Data: bytes.Repeat([]byte{0xcc}, sector)}, "diskboot.img": {Data: make([]byte, sector)},
		"lzma_decompress.img": {Data: make([]byte, 3000)}, "kernel.img": {Data: kernel()},
	}
	deps := "normal: extcmd crypto\nextcmd:\ncrypto: extcmd\n"
	for _, m := range Modules {
		if m != "normal" {
			deps += m + ":\n"
		}
	}
	files["moddep.lst"] = &fstest.MapFile{Data: []byte(deps)}
	for _, m := range append([]string{"extcmd", "crypto"}, Modules...) {
		files[m+".mod"] = &fstest.MapFile{Data: []byte("module " + m)}
	}
	return files
}

func TestCore(t *testing.T) {
	files := folder()
	core, err := Core(files, 64*sector)
	if err != nil {
		t.Fatal(err)
	}
	if len(core)%sector != 0 || le.Uint64(core[blocklistSector:]) != 65 || int(le.Uint16(core[blocklistLength:])) != len(core)/sector-1 {
		t.Errorf("%d bytes; the rest is at %d, %d sectors", len(core), le.Uint64(core[blocklistSector:]), le.Uint16(core[blocklistLength:]))
	}
	got := unpack(t, core, 3000)
	if want := "text.\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00data"; string(got[:20]) != want {
		t.Errorf("kernel: %q", got[:20])
	}
	if le.Uint32(got[20:]) != magic || le.Uint32(got[24:]) != 12 || int(le.Uint32(got[28:])) != len(got)-20 {
		t.Errorf("parts: % x", got[20:32])
	}
	var names []string
	for rest := got[32:]; len(rest) > 0; {
		kind, size := le.Uint32(rest), le.Uint32(rest[4:])
		content := string(bytes.TrimRight(rest[8:size], "\x00"))
		if kind == kindPrefix {
			content = "prefix " + content
		}
		names = append(names, strings.TrimPrefix(content, "module "))
		rest = rest[size:]
	}
	want := append([]string{"biosdisk", "part_gpt", "fat", "extcmd", "crypto"}, Modules[3:]...)
	if want = append(want, "prefix "+Prefix); !slices.Equal(names, want) {
		t.Errorf("parts: %v", names)
	}
	again, err := Core(files, 64*sector)
	if err != nil || !bytes.Equal(core, again) {
		t.Errorf("twice is not the same: %v", err)
	}
}

func TestMBR(t *testing.T) {
	b, err := MBR(folder(), 64*sector)
	if err != nil || len(b) != disk.CodeSize || le.Uint64(b[kernelSector:]) != 64 || b[bootDriveCheck] != 0x90 || b[bootDriveCheck+2] != 0xcc {
		t.Errorf("%d bytes, %v: % x", len(b), err, b[kernelSector:bootDriveCheck+3])
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		data []byte
		says string
	}{
		"no kernel":       {"kernel.img", nil, "kernel.img"},
		"another machine": {"kernel.img", append(append(slices.Clone(kernel()[:18]), 62), kernel()[19:]...), "not for i386"},
		"no module":       {"fat.mod", nil, "fat.mod"},
		"unknown module":  {"moddep.lst", []byte("normal:\n"), "has no module biosdisk"},
		"short":           {"diskboot.img", []byte("x"), "is 1 bytes, not 512"},
		"large":           {"linux.mod", noise(600 << 10), "sectors"},
	} {
		files := maps.Clone(folder())
		delete(files, c.file)
		if c.data != nil {
			files[c.file] = &fstest.MapFile{Data: c.data}
		}
		if _, err := Core(files, 64*sector); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i, x := 0, uint32(1); i < n; i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// GRUB's own program makes the same of the same files, but for how well it packs.
func TestMkimageMakesTheSame(t *testing.T) {
	mkimage := imagetest.Tool(t, "grub-mkimage", "grub-common")
	dir := filepath.Join("/", Folder)
	if _, err := os.Stat(dir); err != nil {
		const msg = "the modules of GRUB are not installed; to compare with it: apt-get install grub-pc-bin"
		if os.Getenv("SKERRY_TOOLS") == "1" && runtime.GOARCH == "amd64" { // Debian has them for no other host
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	ref := filepath.Join(t.TempDir(), "core.img")
	args := append([]string{"-d", dir, "-O", "i386-pc", "-p", Prefix, "-o", ref}, Modules...)
	imagetest.Run(t, mkimage, args...)
	theirs, err := os.ReadFile(ref)
	if err != nil {
		t.Fatal(err)
	}
	files := os.DirFS(dir)
	ours, err := Core(files, sector) // where grub-mkimage thinks it will be
	if err != nil {
		t.Fatal(err)
	}
	st, err := fs.Stat(files, "lzma_decompress.img")
	if err != nil {
		t.Fatal(err)
	}
	start := int(st.Size())
	if a, b := unpack(t, ours, start), unpack(t, theirs, start); !bytes.Equal(a, b) {
		n := 0
		for n < min(len(a), len(b)) && a[n] == b[n] {
			n++
		}
		t.Errorf("%d bytes, grub-mkimage's are %d; the first that differs is %d: % x, % x", len(a), len(b), n, a[n:min(n+8, len(a))], b[n:min(n+8, len(b))])
	}
	t.Logf("%d bytes, grub-mkimage's are %d", len(ours), len(theirs))
	for _, part := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:blocklistLength] },
		func(b []byte) []byte { return b[sector : sector+compressedSize] },
		func(b []byte) []byte { return b[sector+uncompressedSize : sector+start] },
	} {
		if !bytes.Equal(part(ours), part(theirs)) {
			t.Errorf("% x\n% x", part(ours), part(theirs))
		}
	}
}
