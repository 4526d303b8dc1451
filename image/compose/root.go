package compose

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/initramfs"
	"github.com/skerry-os/skerry/image/oci"
	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
)

// mergedFolders are links into usr on every node.
func mergedFolders(arch string) []string {
	if arch == "amd64" {
		return []string{"bin", "sbin", "lib", "lib64"}
	}
	return []string{"bin", "sbin", "lib"}
}

// rootTree lays out the root of a node: one for all boards of an architecture, nothing node-specific in it.
func (b *build) rootTree() (*rootfs.Tree, error) {
	t := rootfs.New(mergedFolders(b.Arch)...)
	for _, layer := range []string{"all", "server", "agent"} {
		dir := filepath.Join(b.Source.Dir, "overlays", layer)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && layer != "all" {
			continue
		}
		if err := t.AddHost("", dir); err != nil {
			return nil, err
		}
	}
	if err := t.AddHost("usr", filepath.Join(b.programs, "usr")); err != nil {
		return nil, err
	}
	if err := serveImages(t); err != nil {
		return nil, err
	}
	if err := t.AddLink("usr/sbin/modprobe", "init"); err != nil { // the kernel calls it when a driver asks for another
		return nil, err
	}
	var parts []string
	if b.wifi() {
		parts = append(parts, wifi)
		if err := b.packages.addRegulatory(t); err != nil {
			return nil, err
		}
	}
	if err := b.packages.addPrograms(t, parts...); err != nil {
		return nil, err
	}
	if err := b.packages.addCertificates(t); err != nil {
		return nil, err
	}
	beside := []string{loaderPackage}
	if b.Arch == "amd64" {
		beside = append(beside, biosPackage)
	}
	for _, name := range beside { // no part of the root, but their licences are
		if err := b.packages.use(t, name); err != nil {
			return nil, err
		}
	}
	if err := b.addBoards(t); err != nil {
		return nil, err
	}
	if err := b.addIdentity(t); err != nil {
		return nil, err
	}
	if err := b.add(t); err != nil {
		return nil, err
	}
	if err := b.addArchives(t); err != nil || !b.Debug {
		return t, err
	}
	return t, b.addShell(t) // last: it hides nothing
}

// imagesDir holds the archives of images that a node imports, and the layers that it serves from its root.
const imagesDir = "usr/share/skerry/images"

// addedDir holds those that a person added to the release, and filesystems of what is in them. A node that cannot import one goes on
// without.
const addedDir = imagesDir + "/added"

// serveImages lays the component images out as files, so that containers run from the root, which is verified and takes no second copy
// on the data partition (see pkg/agent). It also lets little travel when a component changes: what is packed changes as a whole.
func serveImages(t *rootfs.Tree) error {
	for _, e := range t.Entries() {
		if path.Dir(e.Path) != imagesDir || path.Ext(e.Path) != ".tar" {
			continue
		}
		f, err := os.Open(e.Host)
		if err != nil {
			return err
		}
		rest, layers, err := oci.Apart(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", e.Host, err)
		}
		t.Remove(e.Path)
		if err := t.AddBytes(e.Path, rest, 0o644); err != nil {
			return err
		}
		for diffID, files := range layers {
			for name, f := range files {
				if err := t.AddBytes(path.Join(imagesDir, "layers", strings.TrimPrefix(diffID, "sha256:"), name), f.Data, fs.FileMode(f.Mode)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addBoards adds the modules of all boards, by kernel, and their firmware.
func (b *build) addBoards(t *rootfs.Tree) error {
	wanted := map[kernelName][]string{}
	for _, board := range b.Boards {
		name := kernelOf(board)
		wanted[name] = append(append(wanted[name], board.Modules.Boot.All()...), board.Modules.Node.All()...)
		wanted[name] = append(wanted[name], b.Modules...)
		if b.WiFi {
			wanted[name] = append(wanted[name], wifiModules...)
		}
		load := strings.Join(board.Modules.Node.Load, "\n") + "\n"
		if len(b.Archives) > 0 {
			wanted[name] = append(wanted[name], servedModules...)
			load += strings.Join(servedModules, "\n") + "\n"
		}
		if err := t.AddBytes(path.Join("usr/share/skerry/boards", board.ID, "modules.load"), []byte(load), 0o644); err != nil {
			return err
		}
		if err := b.packages.addFirmware(t, board); err != nil {
			return err
		}
		for _, name := range bootPackages(board) {
			if err := b.packages.use(t, name); err != nil {
				return fmt.Errorf("board %s: %w", board.ID, err)
			}
		}
	}
	for name, modules := range wanted {
		k, x, err := b.kernel(name)
		if err != nil {
			return err
		}
		sub, err := x.Subset(modules...)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", k.release, err)
		}
		if err := initramfs.AddModules(t, k.release, sub, k.modules); err != nil {
			return err
		}
		// Debian's kernels do not tell it themselves; check-config reads it at each start.
		if err := t.AddFile(path.Join(initramfs.ModulesDir, k.release, "config"), k.config, 0o644); err != nil {
			return err
		}
		for _, p := range k.pkgs {
			if err := b.packages.use(t, p.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// wifiModules are what drivers of most makers build upon, and the ciphers that it asks the kernel for.
var wifiModules = []string{"mac80211", "ccm", "cmac", "gcm"}

// wifi says whether the release holds what WiFi takes.
func (b *build) wifi() bool {
	return b.WiFi || slices.ContainsFunc(b.Boards, func(board *boards.Board) bool { return board.WiFi })
}

// kernelName is a kernel as boards name it.
type kernelName struct{ pkg, suite string }

func kernelOf(board *boards.Board) kernelName {
	return kernelName{board.Kernel.Package, board.Kernel.Suite}
}

// kernel unpacks a kernel and indexes its modules, once.
func (b *build) kernel(name kernelName) (*kernel, *kmod.Index, error) {
	if k, ok := b.kernels[name]; ok {
		return k.kernel, k.index, nil
	}
	k, err := b.packages.kernel(name.pkg, name.suite)
	if err != nil {
		return nil, nil, err
	}
	x, err := b.moduleIndex(k)
	if err != nil {
		return nil, nil, err
	}
	b.kernels[name] = indexedKernel{k, x}
	return k, x, nil
}

// moduleIndex reads all modules of a kernel, which takes seconds, or what it read of the same package before.
func (b *build) moduleIndex(k *kernel) (*kmod.Index, error) {
	const format = 1 // rises when pkg/kmod reads something more out of a module
	key := k.pkgs[0].SHA256
	for _, p := range k.pkgs[1:] {
		key += p.SHA256[:8]
	}
	cached := filepath.Join(b.Cache, "modules", fmt.Sprintf("%s-%d.json", key, format))
	if f, err := os.Open(cached); err == nil {
		x, err := kmod.Read(f)
		_ = f.Close()
		if err == nil {
			return x, nil
		}
	}
	x, err := kmod.Build(os.DirFS(k.modules))
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", k.release, err)
	}
	if err := os.MkdirAll(filepath.Dir(cached), 0o755); err != nil {
		return nil, err
	}
	return x, writeWith(cached, 0o644, x.Write)
}

// addIdentity says what this root is.
func (b *build) addIdentity(t *rootfs.Tree) error {
	id, err := json.Marshal(machine.Release{
		Version: b.Source.Version, Commit: b.Source.Commit, BuildTime: b.Source.Time, Arch: b.Arch, Kubernetes: b.kubernetes, Debug: b.Debug,
	})
	if err != nil {
		return err
	}
	if err := t.AddBytes(machine.ReleaseFile, append(id, '\n'), 0o644); err != nil {
		return err
	}
	return t.AddBytes("usr/lib/os-release", osRelease(b.Source.Version, b.Debug), 0o644)
}

// osRelease is what kubelet tells of the node, too: who asks for nodes sees which of them run a debug release.
func osRelease(version string, debug bool) []byte {
	name, more := "Skerry "+version, ""
	if debug {
		name, more = name+" (debug)", "VARIANT=Debug\nVARIANT_ID=debug\n"
	}
	return fmt.Appendf(nil, "ID=skerry\nNAME=Skerry\nVERSION=%q\nVERSION_ID=%q\nPRETTY_NAME=%q\n%s", version, version, name, more)
}

// erofs are the options of every root: a higher level or larger clusters take twice the time to save one or two percent.
var erofs = struct {
	compress string
	cluster  int
}{"lz4hc,9", 32768}

// packRoot makes root.img: EROFS and behind it the hash tree. A tree that did not change since the last build is not packed
// again.
func (b *build) packRoot(t *rootfs.Tree) (*release.Root, error) {
	img, stamp := b.staged(".img"), b.staged(".json")
	digest, err := t.Digest()
	if err != nil {
		return nil, err
	}
	inputs := sha256.Sum256(fmt.Appendf(nil, "%s %s %v %d", digest, toolDigest("mkfs.erofs"), erofs, b.Source.Time.Unix()))
	want := hex.EncodeToString(inputs[:])
	if root, err := readStamp(stamp, want, img); err == nil {
		b.Log.Say("root: unchanged")
		return root, nil
	}
	done := b.Log.Stage("root: EROFS " + erofs.compress)
	_ = os.Remove(stamp)
	b.dropStaging()
	tmp := img + ".tmp"
	defer func() { _ = os.Remove(tmp) }()
	o := rootfs.EROFSOptions{Time: b.Source.Time, UUID: uuidFrom(digest), Compress: erofs.compress, Cluster: erofs.cluster}
	if err := t.EROFS(b.ctx, tmp, o); err != nil {
		return nil, err
	}
	root, err := appendTree(tmp)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, img); err != nil {
		return nil, err
	}
	done(megabytes(root.Size))
	data, err := json.Marshal(rootStamp{Inputs: want, Root: *root})
	if err != nil {
		return nil, err
	}
	return root, atomicfile.Write(stamp, data, 0o644)
}

// dropStaging removes what a killed build left; the lock says that nobody uses it.
func (b *build) dropStaging() {
	left, _ := filepath.Glob(filepath.Join(b.work, ".stage-*"))
	for _, dir := range left {
		_ = os.RemoveAll(dir)
	}
}

type rootStamp struct {
	Inputs string
	Root   release.Root
}

func readStamp(stamp, want, img string) (*release.Root, error) {
	data, err := os.ReadFile(stamp)
	if err != nil {
		return nil, err
	}
	var s rootStamp
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	if s.Inputs != want {
		return nil, errors.New("was made from something else")
	}
	f, err := os.Open(img)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return &s.Root, s.Root.Check(f)
}

// appendTree puts the hash tree behind the filesystem. The salt comes from the content, so that a build can be repeated.
func appendTree(img string) (*release.Root, error) {
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	h.Write([]byte("skerry verity salt\n"))
	size, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	salt := h.Sum(nil)
	tree, err := verity.Build(f, size, salt)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if _, err := f.WriteAt(tree.Bytes, size); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	file, err := release.Describe("root.img", f)
	if err != nil {
		return nil, err
	}
	return &release.Root{File: file, DataSize: size, RootHash: hex.EncodeToString(tree.RootHash), Salt: hex.EncodeToString(salt)}, f.Close()
}

// uuidFrom makes a UUID of the custom kind (version 8) out of a digest.
func uuidFrom(digest string) string {
	b := sha256.Sum256([]byte("skerry root uuid\n" + digest))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// writeWith writes a file that gets its name only when it is whole.
func writeWith(name string, perm fs.FileMode, write func(io.Writer) error) error {
	var buf bytes.Buffer
	if err := write(&buf); err != nil {
		return err
	}
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, buf.Bytes()) {
		return nil
	}
	return atomicfile.Write(name, buf.Bytes(), perm)
}
