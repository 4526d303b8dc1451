package compose

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/ed25519"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/debian"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/slot"
)

// TestBuiltRelease looks at a release that was built before, with other programs than those that made it: SKERRY_RELEASE is its
// folder, SKERRY_KEYS the keys it was signed with (make test sets both).
func TestBuiltRelease(t *testing.T) {
	dir := os.Getenv("SKERRY_RELEASE")
	if dir == "" {
		t.Skip("set SKERRY_RELEASE to a release folder and SKERRY_KEYS to its keys")
	}
	k, err := keys.Load(os.Getenv("SKERRY_KEYS"), nil)
	if err != nil {
		t.Fatal(err)
	}
	checkRelease(t, dir, k)
}

// TestBuildTwice builds a whole release twice, in different folders. It takes minutes, a mirror and a C compiler: set
// SKERRY_LONG=1.
func TestBuildTwice(t *testing.T) {
	if os.Getenv("SKERRY_LONG") == "" {
		t.Skip("takes minutes and a Debian mirror; set SKERRY_LONG=1")
	}
	src, err := FindSource(t.Context(), ".")
	if err != nil {
		t.Fatal(err)
	}
	mirrors, err := debian.HostMirrors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, err := keys.New(filepath.Join(t.TempDir(), "keys"), "Test", keys.Source{})
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("SKERRY_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "skerry")
	}
	build := func(work string) string {
		out := filepath.Join(t.TempDir(), "release")
		s, err := Build(t.Context(), Options{
			Source: src, Arch: "amd64", Keys: k, Out: out, Work: work, Cache: cache, Mirrors: mirrors.All(), Log: NewLog(t.Output()),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes in %.0f s", s.Version, s.Bytes, s.Seconds)
		return out
	}
	first := build(t.TempDir())
	work := t.TempDir()
	second := build(work)
	if out, err := exec.Command("diff", "-r", first, second).CombinedOutput(); err != nil {
		t.Errorf("two builds differ: %s", out)
	}
	begin := time.Now()
	if out, err := exec.Command("diff", "-r", second, build(work)).CombinedOutput(); err != nil {
		t.Errorf("a build that reuses the last one differs: %s", out)
	}
	t.Logf("a build that reuses the last one takes %v", time.Since(begin))

	checkRelease(t, first, k)
}

func checkRelease(t *testing.T, dir string, k *keys.Set) {
	fsys := os.DirFS(dir)
	r, err := release.Open(fsys, []ed25519.PublicKey{k.ReleasePublic()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.CheckFiles(fsys); err != nil {
		t.Error(err)
	}
	m := r.Manifest()
	t.Run("root", func(t *testing.T) { checkRoot(t, filepath.Join(dir, m.Root.Path), m) })
	t.Run("boot", func(t *testing.T) { checkBoot(t, dir, m, k) })
	t.Run("sbom", func(t *testing.T) {
		checkSBOM(t, filepath.Join(dir, "sbom.spdx.json"), m)
		checkShellSBOM(t, filepath.Join(dir, "sbom.spdx.json"), m.Debug)
	})
}

func checkRoot(t *testing.T, img string, m *release.Manifest) {
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := verity.Verify(f, m.Root.DataSize, m.Root.RootHash, m.Root.Salt); err != nil {
		t.Error(err)
	}
	ask(t, "veritysetup", "verify", "--no-superblock", "--format=1", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096",
		fmt.Sprintf("--data-blocks=%d", m.Root.DataSize/4096), fmt.Sprintf("--hash-offset=%d", m.Root.DataSize), "--salt="+m.Root.Salt, img, img, m.Root.RootHash)
	top := filepath.Join(t.TempDir(), "root")
	if !ask(t, "fsck.erofs", "--extract="+top, img) {
		return
	}
	root := os.DirFS(top)
	checkLinksAndLibraries(t, root, m.Arch)
	checkModules(t, root, m)
	checkShell(t, root, m)
	for id := range m.Boards {
		b, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"usr/sbin/wpa_supplicant", "usr/lib/firmware/regulatory.db", "usr/lib/firmware/regulatory.db.p7s"} {
			if _, err := fs.Stat(root, name); b.WiFi && err != nil {
				t.Errorf("board %s has WiFi: %v", id, err)
			}
		}
	}
	if m.Arch == runtime.GOARCH {
		out, err := exec.Command(filepath.Join(top, "usr/bin/skerryd"), "version").CombinedOutput()
		if err != nil || !strings.Contains(string(out), m.Version) {
			t.Errorf("skerryd version: %v: %s", err, out)
		}
	}
	var id machine.Release
	data, err := fs.ReadFile(root, "usr/share/skerry/release.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &id); err != nil || id.Version != m.Version || id.Arch != m.Arch || id.Kubernetes != m.Kubernetes || id.Debug != m.Debug {
		t.Errorf("release.json: %s, %v", data, err)
	}
}

// checkLinksAndLibraries finds links that lead nowhere and programs whose libraries or loader are not there.
func checkLinksAndLibraries(t *testing.T, root fs.FS, arch string) {
	// Links into what only a running node has.
	atRuntime := []string{"/run/", "/proc/", "/var/", "/etc/skerry"}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 || info.Mode().Perm()&0o022 != 0 && d.Type() != fs.ModeSymlink {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		switch d.Type() {
		case fs.ModeSymlink:
			to, err := fs.ReadLink(root, p)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(atRuntime, func(s string) bool { return strings.HasPrefix(to, s) }) {
				return nil
			}
			if !path.IsAbs(to) {
				to = path.Join("/", path.Dir(p), to)
			}
			if _, err := lookUp(root, arch, to); err != nil {
				t.Errorf("%s -> %s: %v", p, to, err)
			}
		case 0:
			if info.Mode().Perm()&0o111 != 0 {
				checkProgram(t, root, arch, p)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// lookUp follows links inside the root.
func lookUp(root fs.FS, arch, name string) (fs.FileInfo, error) {
	name = path.Clean(name)[1:]
	for _, m := range mergedFolders(arch) {
		if strings.HasPrefix(name, m+"/") {
			name = "usr/" + name
		}
	}
	info, err := fs.Lstat(root, name)
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		return info, err
	}
	to, err := fs.ReadLink(root, name)
	if err != nil {
		return nil, err
	}
	if !path.IsAbs(to) {
		to = path.Join("/", path.Dir(name), to)
	}
	return lookUp(root, arch, to)
}

func checkProgram(t *testing.T, root fs.FS, arch, name string) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		t.Error(err)
		return
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return // a script, or a library's text
	}
	needs, err := f.ImportedLibraries()
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	for _, so := range needs {
		if _, err := lookUp(root, arch, "/lib/"+triplet(arch)+"/"+so); err != nil {
			t.Errorf("%s needs %s: %v", name, so, err)
		}
	}
	if in := interpreter(f); in != "" {
		if _, err := lookUp(root, arch, in); err != nil {
			t.Errorf("%s needs loader %s: %v", name, in, err)
		}
	}
}

// checkModules sees that what a board loads can be resolved from the index on the root, and that every file is there.
func checkModules(t *testing.T, root fs.FS, m *release.Manifest) {
	for id, board := range m.Boards {
		dir := "usr/lib/modules/" + board.Kernel
		sub, err := fs.Sub(root, dir)
		if err != nil {
			t.Fatal(err)
		}
		x, err := kmod.ReadFile(sub)
		if err != nil {
			t.Fatal(err)
		}
		if config, err := fs.ReadFile(sub, "config"); err != nil || !bytes.Contains(config, []byte("\nCONFIG_MEMCG=y\n")) {
			t.Errorf("board %s: check-config cannot tell what its kernel was built with: %v", id, err)
		}
		b, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		mods, err := x.Resolve(slices.Concat(b.Modules.Boot.All(), b.Modules.Node.All())...)
		if err != nil || len(mods) < 50 {
			t.Errorf("board %s: %d modules, %v", id, len(mods), err)
		}
		for _, mod := range mods {
			if _, err := fs.Stat(sub, mod.File); err != nil {
				t.Error(err)
			}
		}
	}
}

func checkBoot(t *testing.T, dir string, m *release.Manifest, k *keys.Set) {
	crt := filepath.Join(t.TempDir(), "db.crt")
	if err := os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.DB.Cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	files := []string{"boot/systemd-boot.efi"}
	for id, board := range m.Boards {
		checkFirmware(t, dir, m, id)
		if board.Slots == boards.Pi {
			continue // not an EFI program
		}
		files = append(files, board.Boot.Path)
		data, err := os.ReadFile(filepath.Join(dir, board.Boot.Path))
		if err != nil {
			t.Fatal(err)
		}
		sections, err := uki.Sections(data)
		if err != nil {
			t.Fatal(err)
		}
		of, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if of.Slots == boards.GRUB { // its boot loader says the rest
			id = of.Base
		}
		for _, want := range []string{"skerry.board=" + id, "skerry.roothash=" + m.Root.RootHash, "panic=5"} {
			if !slices.Contains(strings.Fields(string(sections[".cmdline"])), want) {
				t.Errorf("%s: the command line lacks %s: %s", id, want, sections[".cmdline"])
			}
		}
		if string(sections[".uname"]) != board.Kernel {
			t.Errorf("%s: .uname is %q, the manifest says %q", id, sections[".uname"], board.Kernel)
		}
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if err := uki.Verify(data, k.DB.Cert); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		ask(t, "sbverify", "--cert", crt, filepath.Join(dir, f))
	}
}

// checkFirmware holds what lies beside the kernels to what their readers check: boot ROMs, the Raspberry Pi's firmware, U-Boot.
func checkFirmware(t *testing.T, dir string, m *release.Manifest, id string) {
	b, err := boards.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	r := m.Boards[id]
	var trees bytes.Buffer
	for _, f := range r.Firmware {
		data, err := os.ReadFile(filepath.Join(dir, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		at := func(i int) uint32 { return binary.LittleEndian.Uint32(data[i:]) }
		switch name := path.Base(f.Path); {
		case strings.HasSuffix(name, ".dtb"):
			if string(data[:4]) != "\xd0\x0d\xfe\xed" {
				t.Errorf("%s: %s is no device tree", id, name)
			}
			trees.Write(data)
		case strings.HasPrefix(name, "start"):
			if string(data[:4]) != "\x7fELF" {
				t.Errorf("%s: %s is no program", id, name)
			}
		case name == "u-boot-sunxi-with-spl.bin": // https://linux-sunxi.org/EGON: a mark, and a sum over all words with its own place as this constant
			sum, length := uint32(0x5f0a6c39)-at(12), int(at(16))
			for i := 0; i < length; i += 4 {
				sum += at(i)
			}
			if string(data[4:12]) != "eGON.BT0" || sum != at(12) || f.At != 8192 || length > 32<<10 {
				t.Errorf("%s: the boot ROM will not take %s: sum %#x, its header says %#x", id, name, sum, at(12))
			}
		case name == "MLO": // AM335x TRM, 26.1.11: a table of contents, then size and place of the image
			if !bytes.Contains(data[:512], []byte("CHSETTINGS")) || int(at(512)) > 109<<10 || at(516) != 0x402f0400 || f.At != 128<<10 {
				t.Errorf("%s: the boot ROM will not take %s: %d bytes for %#x", id, name, at(512), at(516))
			}
		case name == "boot.img": // GRUB's boot sector: a jump, and where the core image starts
			if data[0] != 0xeb || len(data) != disk.CodeSize || f.At != 0 || at(0x5c)*512 != 32<<10 {
				t.Errorf("%s: a BIOS will not take %s: %d bytes, which lead to sector %d", id, name, len(data), at(0x5c))
			}
		case name == "core.img": // and its core image: where the rest of it is, and how many sectors
			if f.At != 32<<10 || int64(at(500))*512 != f.At+512 || int(at(508)&0xffff)*512 != len(data)-512 || f.At+int64(len(data)) > 512<<10 {
				t.Errorf("%s: %s of %d bytes is at %d and says that its rest is %d sectors from %d on", id, name, len(data), f.At, at(508)&0xffff, at(500))
			}
		case name == slot.GRUBConfig:
			ask(t, "grub-script-check", filepath.Join(dir, f.Path))
		case strings.HasSuffix(name, ".env"):
			ask(t, "grub-editenv", filepath.Join(dir, f.Path), "list")
		case name == "boot.scr":
			ask(t, "mkimage", "-l", filepath.Join(dir, f.Path))
		case len(data) == 0:
			t.Errorf("%s: %s is empty", id, name)
		}
	}
	if r.Slots == boards.Pi {
		checkRamdisk(t, filepath.Join(dir, r.Boot.Path), b, m)
		return
	}
	if len(b.Boot.DeviceTrees) > 0 {
		for _, compatible := range b.Match {
			if !bytes.Contains(trees.Bytes(), append([]byte(compatible), 0)) {
				t.Errorf("%s: no device tree is for %s", id, compatible)
			}
		}
	}
}

// TestBuiltImages holds images of boards (SKERRY_IMAGES are files, <board>.img each, with spaces between) to the release they were built of and to what
// the boards' firmware asks of a disk, file by file.
func TestBuiltImages(t *testing.T) {
	dir, images := os.Getenv("SKERRY_RELEASE"), os.Getenv("SKERRY_IMAGES")
	if dir == "" || images == "" {
		t.Skip("set SKERRY_IMAGES to images, SKERRY_RELEASE to the release they were built of, and SKERRY_KEYS to its keys")
	}
	k, err := keys.Load(os.Getenv("SKERRY_KEYS"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := release.Open(os.DirFS(dir), []ed25519.PublicKey{k.ReleasePublic()})
	if err != nil {
		t.Fatal(err)
	}
	for image := range strings.FieldsSeq(images) {
		id := strings.TrimSuffix(filepath.Base(image), ".img")
		if board, of := rel.Manifest().Boards[id]; of {
			t.Run(id, func(t *testing.T) { checkImage(t, image, dir, id, board) })
		}
	}
}

func checkImage(t *testing.T, image, dir, id string, r release.Board) {
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	table, err := disk.ReadFirst(f, disk.SizeOf(f, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	first := table.Partitions[0]
	v, err := fat.Read(io.NewSectionReader(f, first.Start, first.Size), first.Size)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	for _, file := range v.Files {
		if content[file.Path], err = io.ReadAll(file.Open()); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range r.Firmware {
		want, err := os.ReadFile(filepath.Join(dir, file.Path))
		if err != nil {
			t.Fatal(err)
		}
		got := content[file.To]
		if file.To == "" {
			got = make([]byte, len(want))
			if _, err := f.ReadAt(got, file.At); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the release has: %d bytes, want %d", cmp.Or(file.To, fmt.Sprintf("byte %d", file.At)), len(got), len(want))
		}
	}
	b, err := boards.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	if b.Slots == boards.UBoot {
		kernel, err := os.ReadFile(filepath.Join(dir, r.Boot.Path))
		if err != nil || !bytes.Equal(content["EFI/Linux/os-a.efi"], kernel) {
			t.Errorf("slot a's kernel image is not the release's: %d bytes, %v", len(content["EFI/Linux/os-a.efi"]), err)
		}
	}
	if config, ok := content["config.txt"]; ok && b.Slots == boards.UBoot {
		checkPi(t, f, b, string(config), content)
	}
}

// checkPi is what bootcode.bin and start.elf do with a boot partition, in their order.
// https://www.raspberrypi.com/documentation/computers/configuration.html#boot-folder-contents
func checkPi(t *testing.T, f io.ReaderAt, b *boards.Board, config string, content map[string][]byte) {
	mbr := make([]byte, 512)
	if _, err := f.ReadAt(mbr, 0); err != nil {
		t.Fatal(err)
	}
	if kind := mbr[446+4]; mbr[510] != 0x55 || mbr[511] != 0xaa || kind != 0x0b && kind != 0x0c && kind != 0x0e {
		t.Errorf("the boot ROM finds no FAT partition first in the MBR: it is of type %#x", kind)
	}
	need := []string{"bootcode.bin", "start.elf", "fixup.dat"}
	if b.ID == "rpi4" { // its boot loader is in an EEPROM
		need = []string{"start4.elf", "fixup4.dat"}
	}
	for _, name := range need {
		if len(content[name]) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	section, settings := "all", map[string]string{}
	for line := range strings.Lines(config) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > 98 {
			t.Errorf("config.txt: the firmware reads 98 characters of %q", line)
		}
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		if key, value, ok := strings.Cut(line, "="); ok && section == "all" && !strings.HasPrefix(line, "#") {
			settings[key] = value
		}
	}
	kernel := content[settings["kernel"]]
	if settings["arm_64bit"] != "1" || len(kernel) < 100<<10 || bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		t.Errorf("config.txt: starts %q, of %d bytes, which is no 64-bit program as it stands in memory", settings["kernel"], len(kernel))
	}
	if settings["upstream_kernel"] == "1" {
		for _, tree := range b.Boot.DeviceTrees {
			if data := content[tree.Name()]; len(data) < 4 || string(data[:4]) != "\xd0\x0d\xfe\xed" || strings.Contains(tree.Name(), "/") {
				t.Errorf("the firmware finds no device tree %s", tree.Name())
			}
		}
	}
}

// checkRamdisk reads a Raspberry Pi's boot.img as the firmware does.
func checkRamdisk(t *testing.T, file string, b *boards.Board, m *release.Manifest) {
	ask(t, "fsck.vfat", "-n", file)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	v, err := fat.Read(f, m.Boards[b.ID].Boot.Size)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	for _, file := range v.Files {
		if content[file.Path], err = io.ReadAll(file.Open()); err != nil {
			t.Fatal(err)
		}
	}
	if c := string(content["config.txt"]); !strings.Contains(c, "kernel=kernel8.img\n") || !strings.Contains(c, "initramfs initramfs followkernel\n") || !strings.Contains(c, "arm_64bit=1\n") || !strings.Contains(c, "kernel_watchdog_timeout=15\n") {
		t.Errorf("%s: config.txt is %q", b.ID, c)
	}
	z, err := gzip.NewReader(bytes.NewReader(content["kernel8.img"]))
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 64)
	if _, err := io.ReadFull(z, head); err != nil || string(head[56:60]) != "ARM\x64" {
		t.Errorf("%s: kernel8.img is no arm64 kernel: %v", b.ID, err)
	}
	if line := string(content["cmdline.txt"]); !strings.Contains(line, "skerry.board="+b.ID+" ") || !strings.Contains(line, "skerry.roothash="+m.Root.RootHash+" ") || strings.Count(line, "\n") != 1 {
		t.Errorf("%s: cmdline.txt is %q", b.ID, line)
	}
	for _, tree := range b.Boot.DeviceTrees {
		if data := content[tree.Name()]; !bytes.Contains(data, append([]byte(b.Match[0]), 0)) {
			t.Errorf("%s: %s is not for %s", b.ID, tree.Name(), b.Match[0])
		}
	}
	if len(content["initramfs"]) < 1<<20 {
		t.Errorf("%s: initramfs is %d bytes", b.ID, len(content["initramfs"]))
	}
}

func checkSBOM(t *testing.T, file string, m *release.Manifest) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	ids, names := map[string]bool{}, map[string]string{}
	for _, p := range doc.Packages {
		if ids[p.ID] {
			t.Errorf("%s is there twice", p.ID)
		}
		ids[p.ID], names[p.Name] = true, p.Version
	}
	for _, r := range doc.Relationships {
		if r.From != doc.ID && !ids[r.From] || !ids[r.To] {
			t.Errorf("a relationship of what is not there: %+v", r)
		}
	}
	checkTerms(t, doc, m)
	for _, want := range []string{"nftables", "libc6", "systemd-boot-efi", "k8s.io/kubernetes", "github.com/opencontainers/runc", "github.com/coredns/coredns", "stdlib"} {
		if names[want] == "" || names[want] == "(devel)" {
			t.Errorf("%s is listed with version %q", want, names[want])
		}
	}
}

// checkTerms looks for the terms, word by word, of every package of a board that is not free: they come with the files.
func checkTerms(t *testing.T, doc spdxDocument, m *release.Manifest) {
	t.Helper()
	texts, licences := map[string]string{}, map[string]string{}
	for _, l := range doc.Licences {
		texts[l.ID] = l.Text
	}
	for _, p := range doc.Packages {
		licences[p.Name] = p.Declared
	}
	for id := range m.Boards {
		b, err := boards.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		areas := map[string]string{}
		for _, f := range b.Firmware {
			areas[f.Package] = f.Area
		}
		for _, f := range b.Boot.Files {
			areas[f.Package] = f.Area
		}
		for _, f := range b.Boot.Raw {
			areas[f.Package] = f.Area
		}
		for name, area := range areas {
			if area == "main" {
				continue
			}
			if text := texts[licences[name]]; len(text) < 500 || !strings.Contains(strings.ToLower(text), "redistribut") {
				t.Errorf("board %s: package %s of %s has licence %q, whose text is %.80q", id, name, area, licences[name], text)
			}
		}
	}
}

// ask runs a program that was not written here; it is false when the program is not installed or says no.
func ask(t *testing.T, name string, args ...string) bool {
	t.Helper()
	tool, err := exec.LookPath(name)
	if err != nil {
		t.Logf("%s is not installed: not asked", name)
		return false
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", name, err, out)
		return false
	}
	return true
}
