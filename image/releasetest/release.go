// Package releasetest makes a small release for tests: real signatures, a real filesystem with a real hash tree, EFI programs
// that are real PE files, and nothing in them that runs.
package releasetest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// Config is a node config that is good for it.
const Config = `apiVersion: skerry/v1alpha1
kind: NodeConfig
role: server
hostname: north-1
cluster: {token: 0123456789abcdef0123456789abcdef}
`

// Bench is a release folder, the keys it was signed with, and a node config.
type Bench struct {
	Keys    string // folder
	Release string // folder
	Config  string // file
	Set     *keys.Set
	Signed  *release.Release
}

// New makes a release for amd64 and board x86-uefi whose root holds about rootSize bytes.
func New(t testing.TB, rootSize int) *Bench {
	t.Helper()
	dir := t.TempDir()
	b := &Bench{Keys: filepath.Join(dir, "keys")}
	b.keys(t)
	return b.build(t, dir, rootSize)
}

// NewSigned does so with the keys of a folder.
func NewSigned(t testing.TB, rootSize int, folder string, set *keys.Set) *Bench {
	t.Helper()
	return (&Bench{Keys: folder, Set: set}).build(t, t.TempDir(), rootSize)
}

func (b *Bench) build(t testing.TB, dir string, rootSize int) *Bench {
	t.Helper()
	set := b.Set
	b.Release, b.Config = filepath.Join(dir, "release"), filepath.Join(dir, "node.yaml")
	check(t, os.WriteFile(b.Config, []byte(Config), 0o600))
	for _, sub := range []string{"boot", "secureboot"} {
		check(t, os.MkdirAll(filepath.Join(b.Release, sub), 0o755))
	}
	m := &release.Manifest{
		Schema: release.Schema, Version: "1.2.3", Commit: strings.Repeat("ab", 20), BuildTime: time.Unix(1_790_000_000, 0).UTC(),
		Arch: "amd64", Kubernetes: "v1.37.2",
	}
	b.root(t, m, rootSize)
	m.Boards = map[string]release.Board{"x86-uefi": b.kernel(t, m, "x86-uefi")}
	m.Files = append(m.Files, b.put(t, "boot/systemd-boot.efi", b.sign(t, program())))
	for _, p := range set.Pairs() {
		auth, err := set.EnrolFile(p.Name, m.BuildTime)
		check(t, err)
		m.Files = append(m.Files, b.put(t, "secureboot/"+p.Name+".auth", auth))
	}
	b.Sign(t, m)
	return b
}

// AddBoard makes the release one for another board of amd64, too.
func (b *Bench) AddBoard(t testing.TB, id string) {
	t.Helper()
	m := *b.Signed.Manifest()
	m.Boards = maps.Clone(m.Boards)
	m.Boards[id] = b.kernel(t, &m, id)
	b.Sign(t, &m)
}

// AddBIOS makes the release one for board x86-bios, too, which shares the kernel image; what is its boot loader is noise.
func (b *Bench) AddBIOS(t testing.TB) *Bench {
	t.Helper()
	m := *b.Signed.Manifest()
	m.Boards = maps.Clone(m.Boards)
	const id = "x86-bios"
	r := release.Board{Kernel: m.Boards["x86-uefi"].Kernel, Boot: m.Boards["x86-uefi"].Boot, Slots: slot.KindGRUB}
	kernel, err := os.Open(filepath.Join(b.Release, r.Boot.Path))
	check(t, err)
	defer kernel.Close() //nolint:errcheck // only read
	files, err := slot.GRUBFiles(id, kernel)
	check(t, err)
	check(t, os.MkdirAll(filepath.Join(b.Release, "boot", id), 0o755))
	add := func(name string, data []byte, f release.Firmware) {
		f.File = b.put(t, "boot/"+id+"/"+name, data)
		r.Firmware = append(r.Firmware, f)
	}
	add("boot.img", noise(disk.CodeSize), release.Firmware{})
	add("core.img", noise(100<<10), release.Firmware{At: 32 << 10})
	for _, name := range slices.Sorted(maps.Keys(files)) {
		add(path.Base(name), files[name], release.Firmware{To: name})
	}
	m.Boards[id] = r
	b.Sign(t, &m)
	return b
}

// Beside makes a release of another architecture and its boards, signed with the same keys, in a folder of that name beside the bench's.
func (b *Bench) Beside(t testing.TB, name, arch string, ids ...string) *Bench {
	t.Helper()
	next := &Bench{Keys: b.Keys, Release: filepath.Join(filepath.Dir(b.Release), name), Config: b.Config, Set: b.Set, Signed: b.Signed}
	check(t, os.CopyFS(next.Release, os.DirFS(b.Release)))
	m := *b.Signed.Manifest()
	m.Arch, m.Boards = arch, map[string]release.Board{}
	for _, id := range ids {
		board, err := boards.Load(id)
		check(t, err)
		m.Boards[id] = next.Board(t, board)
	}
	next.Sign(t, &m)
	return next
}

// Board is what a release has for a board: the kernel image of x86-uefi, and small files where its firmware has its own.
func (b *Bench) Board(t testing.TB, board *boards.Board) release.Board {
	t.Helper()
	r := b.Signed.Manifest().Boards["x86-uefi"]
	if board.Slots == boards.UEFI {
		return r
	}
	r.Slots = board.Slots
	put := func(name string, data []byte) release.File {
		name = "boot/" + board.ID + "/" + name
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(b.Release, name)), 0o755))
		return b.put(t, name, data)
	}
	add := func(name string, f release.Firmware) {
		f.File = put(name, []byte("firmware "+name+strings.Repeat(" ", 70_000)))
		r.Firmware = append(r.Firmware, f)
	}
	for _, f := range board.Boot.Files {
		for _, name := range f.Files {
			add(name, release.Firmware{To: name})
		}
	}
	for _, text := range board.Boot.Texts {
		add(text.Name, release.Firmware{To: text.Name})
	}
	for _, raw := range board.Boot.Raw {
		add(filepath.Base(raw.File), release.Firmware{At: int64(raw.At)})
	}
	if board.Slots == boards.GRUB {
		r.Firmware = append(r.Firmware, release.Firmware{File: put("boot.img", bytes.Repeat([]byte{0xeb}, disk.CodeSize))})
		add("core.img", release.Firmware{At: 32 << 10})
		for _, name := range []string{"grub.cfg", "EFI/Linux/os-a.env", "EFI/Linux/os-b.env"} {
			add(path.Base(name), release.Firmware{To: name})
		}
	}
	return r
}

// Relinked makes the release one of another version that differs from it as two builds of one program do: in a byte here and there,
// and so in every block of the root.
func (b *Bench) Relinked(t testing.TB, version string) *Bench {
	t.Helper()
	next := &Bench{Keys: b.Keys, Release: filepath.Join(t.TempDir(), "release"), Config: b.Config, Set: b.Set}
	check(t, os.CopyFS(next.Release, os.DirFS(b.Release)))
	m := *b.Signed.Manifest()
	m.Version = version
	data, err := os.ReadFile(filepath.Join(b.Release, m.Root.Path))
	check(t, err)
	data = data[:m.Root.DataSize]
	for i := 8192; i < len(data); i += 1000 {
		data[i]++
	}
	next.rootOf(t, &m, data)
	m.Boards = maps.Clone(m.Boards)
	for id := range m.Boards {
		m.Boards[id] = next.kernel(t, &m, id)
	}
	next.Sign(t, &m)
	return next
}

// kernel makes what a board boots.
func (b *Bench) kernel(t testing.TB, m *release.Manifest, board string) release.Board {
	t.Helper()
	kernel, err := uki.Assemble(uki.Parts{
		Stub: program(), OSRelease: []byte("ID=skerry\n"), Uname: "6.12.0-test", Linux: noise(40_000), Initrd: noise(90_000),
		Cmdline: "skerry.board=" + board + " skerry.roothash=" + m.Root.RootHash,
	})
	check(t, err)
	return release.Board{Kernel: "6.12.0-test", Boot: b.put(t, "boot/"+board+".efi", b.sign(t, kernel))}
}

// made is the content of a key folder. RSA keys take seconds to make, so all tests of a process share one.
var made = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "skerry-test-keys-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if _, err := keys.New(filepath.Join(dir, "keys"), "Test", keys.Source{}); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, "keys", e.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
})

// keys puts the shared keys into the bench's folder.
func (b *Bench) keys(t testing.TB) {
	t.Helper()
	files, err := made()
	check(t, err)
	check(t, os.Mkdir(b.Keys, 0o700))
	for name, data := range files {
		check(t, os.WriteFile(filepath.Join(b.Keys, name), data, 0o600))
	}
	b.Set, err = keys.Load(b.Keys, nil)
	check(t, err)
}

// Sign writes the manifest and its signature.
func (b *Bench) Sign(t testing.TB, m *release.Manifest) {
	t.Helper()
	slices.SortFunc(m.Files, func(x, y release.File) int { return strings.Compare(x.Path, y.Path) })
	manifest, sig, err := release.Sign(m, b.Set.ReleaseSigners()...)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(b.Release, release.ManifestName), manifest, 0o644))
	check(t, os.WriteFile(filepath.Join(b.Release, release.SignatureName), sig, 0o644))
	b.Signed, err = release.Verify(manifest, sig, b.Trusted())
	check(t, err)
}

// Trusted is the key the release is signed with.
func (b *Bench) Trusted() []ed25519.PublicKey { return b.Set.Trusted() }

// DBCert writes the Secure Boot certificate as sbverify wants it, and gives its name.
func (b *Bench) DBCert(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "db.pem")
	check(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Set.DB.Cert.Raw}), 0o644))
	return name
}

func (b *Bench) put(t testing.TB, path string, data []byte) release.File {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(b.Release, path), data, 0o644))
	f, err := release.Describe(path, bytes.NewReader(data))
	check(t, err)
	return f
}

func (b *Bench) sign(t testing.TB, efi []byte) []byte {
	t.Helper()
	signed, err := uki.Sign(efi, b.Set.BootSigners()...)
	check(t, err)
	return signed
}

// root makes root.img: EROFS where mkfs.erofs is installed, else noise, and the hash tree behind it.
func (b *Bench) root(t testing.TB, m *release.Manifest, size int) {
	t.Helper()
	data := noise(size &^ 4095)
	if mkfs, err := exec.LookPath("mkfs.erofs"); err == nil {
		tree, img := t.TempDir(), filepath.Join(t.TempDir(), "erofs")
		check(t, os.WriteFile(filepath.Join(tree, "noise"), data, 0o644))
		out, err := exec.Command(mkfs, "-T0", "-U00000000-0000-0000-0000-000000000000", img, tree).CombinedOutput()
		if err != nil {
			t.Fatalf("mkfs.erofs: %v\n%s", err, out)
		}
		data, err = os.ReadFile(img)
		check(t, err)
	}
	b.rootOf(t, m, data)
}

func (b *Bench) rootOf(t testing.TB, m *release.Manifest, data []byte) {
	t.Helper()
	salt := noise(32)
	tree, err := verity.Build(bytes.NewReader(data), int64(len(data)), salt)
	check(t, err)
	m.Root = release.Root{
		File: b.put(t, "root.img", append(data, tree.Bytes...)), DataSize: int64(len(data)),
		RootHash: hex.EncodeToString(tree.RootHash), Salt: hex.EncodeToString(salt),
	}
}

// noise is the same bytes every time.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}), b) // never fails
	return b
}

// program is the smallest PE32+ file that has room for more sections: headers of 1 KiB and one section.
func program() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	coff := b[0x84:]
	le.PutUint16(coff, 0x8664)
	le.PutUint16(coff[2:], 1)
	le.PutUint16(coff[16:], 240)
	le.PutUint16(coff[18:], 0x206)
	opt := coff[20:]
	le.PutUint16(opt, 0x20b)
	for at, v := range map[int]uint32{16: 0x1000, 32: 0x1000, 36: 0x200, 56: 0x2000, 60: 0x400, 68: 10, 108: 16} {
		le.PutUint32(opt[at:], v)
	}
	s := opt[240:]
	copy(s, ".text")
	for at, v := range map[int]uint32{8: 0x10, 12: 0x1000, 16: 0x200, 20: 0x400, 36: 0x60000020} {
		le.PutUint32(s[at:], v)
	}
	return append(b, bytes.Repeat([]byte{0xf4}, 0x200)...)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(fmt.Errorf("test release: %w", err))
	}
}

// Unsigned puts an EFI program without a signature into the release folder.
func (b *Bench) Unsigned(t testing.TB, path string) release.File {
	t.Helper()
	return b.put(t, path, program())
}

// Netboot adds what machines need that start over the network.
func (b *Bench) Netboot(t testing.TB) *Bench {
	t.Helper()
	m := *b.Signed.Manifest()
	check(t, os.MkdirAll(filepath.Join(b.Release, "netboot"), 0o755))
	m.Files = append(slices.Clone(m.Files), b.put(t, "netboot/x86-uefi.cpio.zst", noise(350_007)), b.put(t, "netboot/undionly.kpxe", noise(80_000)))
	b.Sign(t, &m)
	return b
}
