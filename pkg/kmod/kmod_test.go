package kmod_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/pkg/kmod"
)

// module makes an ELF object with the .modinfo section that entries give.
func module(t *testing.T, entries ...string) *fstest.MapFile {
	t.Helper()
	info := strings.Join(entries, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const head = 64
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: head,
		Shoff: uint64(head + len(info) + len(names)), Shentsize: 64, Shnum: 3, Shstrndx: 2,
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	var b bytes.Buffer
	for _, v := range []any{
		h, []byte(info), []byte(names), elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head, Size: uint64(len(info))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(head + len(info)), Size: uint64(len(names))},
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return &fstest.MapFile{Data: b.Bytes()}
}

// kernel is a small one with every kind of tie between modules.
func kernel(t *testing.T) fstest.MapFS {
	return fstest.MapFS{
		"kernel/fs/erofs/erofs.ko":        module(t, "name=erofs", "alias=fs-erofs", "depends=libcrc32c"),
		"kernel/lib/libcrc32c.ko":         module(t, "name=libcrc32c", "softdep=pre: crc32c", "depends="),
		"kernel/crypto/crc32c_generic.ko": module(t, "alias=crc32c", "alias=crypto-crc32c"),
		"kernel/arch/crc32c-fast.ko":      module(t, "alias=crc32c", "name=crc32c_fast"),
		"kernel/net/vxlan.ko":             module(t, "depends=udp-tunnel,tcp_core", "softdep=pre: nowhere post: late"),
		"kernel/net/udp_tunnel.ko":        module(t, "depends="),
		"kernel/net/late.ko":              module(t, "depends=vxlan"),
		"kernel/net/e1000.ko":             module(t, "alias=pci:v00008086d0000100Esv*sd*bc*sc*i*", "firmware=e1000/x.bin"),
		"kernel/bad/orphan.ko":            module(t, "depends=gone"),
		"modules.builtin":                 {Data: []byte("kernel/net/ipv4/tcp_core.ko\nkernel/fs/ext4/ext4.ko\n")},
		"modules.builtin.modinfo":         {Data: []byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00x.alias=pci:v*\x00")},
		"modules.order":                   {Data: []byte("kernel/fs/erofs/erofs.ko\n")},
	}
}

func names(mods []kmod.Module) string {
	var out []string
	for _, m := range mods {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

func TestResolve(t *testing.T) {
	x, err := kmod.Build(kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ ask, want string }{
		{"erofs", "crc32c_fast crc32c_generic libcrc32c erofs"}, // every module that answers to the softdep's alias
		{"fs-erofs", "crc32c_fast crc32c_generic libcrc32c erofs"},
		{"fs_erofs libcrc32c", "crc32c_fast crc32c_generic libcrc32c erofs"},
		{"vxlan", "udp_tunnel vxlan late"}, // a builtin is not loaded, a softdep nobody has is left out, the post one comes last
		{"late", "udp_tunnel vxlan late"},
		{"ext4 fs-ext4 tcp-core", ""},
		{"pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", "e1000"},
	} {
		mods, err := x.Resolve(strings.Fields(tt.ask)...)
		if err != nil || names(mods) != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.ask, names(mods), err, tt.want)
		}
	}
}

func TestResolveSaysWhatIsMissing(t *testing.T) {
	x, err := kmod.Build(kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = x.Resolve("orphan", "erofs", "no-such")
	if !errors.Is(err, kmod.ErrUnknown) || !strings.Contains(err.Error(), "gone, which orphan depends on") || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("got %v", err)
	}
}

// An image's own index holds just its modules and survives the trip through its file.
func TestSubset(t *testing.T) {
	x, err := kmod.Build(kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := x.Subset("erofs", "ext4", "e1000")
	if err != nil {
		t.Fatal(err)
	}
	var b, again bytes.Buffer
	if err := errors.Join(s.Write(&b), s.Write(&again)); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatalf("two writings differ (%v)", err)
	}
	r, err := kmod.ReadFile(fstest.MapFS{kmod.IndexName: {Data: b.Bytes()}})
	if err != nil || !reflect.DeepEqual(r, s) {
		t.Errorf("read back %+v, %v; wrote %+v", r, err, s)
	}
	if len(r.Modules) != 5 || r.Modules["e1000"].Firmware[0] != "e1000/x.bin" {
		t.Errorf("holds %v", r.Modules)
	}
	if _, err := r.Resolve("vxlan"); !errors.Is(err, kmod.ErrUnknown) {
		t.Errorf("a module that is not on the image resolves: %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"not a module":  {"kernel/x.ko": {Data: []byte("hello")}},
		"broken xz":     {"kernel/x.ko.xz": {Data: []byte("\xfd7zXZ\x00 and then nothing")}},
		"the same name": {"kernel/a/x.ko": module(t), "kernel/b/x.ko": module(t)},
	} {
		if _, err := kmod.Build(files); err == nil || !strings.Contains(err.Error(), "kernel/") {
			t.Errorf("%s: error %v, want one that names the file", name, err)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		alias, dev string
		want       bool
	}{
		{"pci:v00008086d*sv*sd*bc02sc00i*", "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", true},
		{"pci:v00008086d*sv*sd*bc02sc00i*", "pci:v00008086d000010D3sv00008086sd0000A01Fbc01sc00i00", false},
		{"usb:v0BDAp8153d*dc*dsc*dp*icFFiscFFip00in*", "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00", true},
		{"usb:v0BDAp8152d01[0-9a-f]*dc*", "usb:v0BDAp8152d01f0dc00", true},
		{"usb:v0BDAp8152d01[!0-9]*dc*", "usb:v0BDAp8152d0140dc00", false},
		{"of:N*T*Cbrcm,bcm2711-gpio", "of:NgpioT(null)Cbrcm,bcm2711_gpio", true},
		{"of:N*T*Cbrcm,bcm2711-gpioC*", "of:NgpioT(null)Cbrcm,bcm2711-gpioCother", true},
		{"virtio:d00000002v*", "virtio:d00000002v00001AF4", true},
		{"virtio:d00000002v*", "virtio:d00000001v00001AF4", false},
		{"acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"*", "", true},
		{"a*b*c", "aXbYbZ", false},
		{"a**c", "ac", true},
		{"[", "[", false},
		{"plain", "plainer", false},
	} {
		files := fstest.MapFS{"kernel/m.ko": module(t, "alias="+tt.alias)}
		x, err := kmod.Build(files)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(x.Match(tt.dev)) == 1; got != tt.want {
			t.Errorf("alias %s, device %s: %v", tt.alias, tt.dev, got)
		}
	}
}
