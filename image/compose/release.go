package compose

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/atomicfile"
	"github.com/skerry-os/skerry/pkg/debian"
	"github.com/skerry-os/skerry/pkg/keys"
	"github.com/skerry-os/skerry/pkg/kmod"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
)

// Options are what a person decides about a build.
type Options struct {
	Source  *Source
	Arch    string
	Keys    *keys.Set
	Out     string   // the release folder: new, or a release to replace
	Work    string   // staging; what did not change is taken from there
	Cache   string   // downloads
	Mirrors []string // base addresses of Debian archives
	Log     Log

	Clouds bool // boards of clouds and hypervisors, too: each costs a kernel image, and who flashes cards needs none

	Debug bool // a shell on every console, and SSH

	Additions

	ConfigPolicy machine.Policy      // which node configs every machine of this release takes; "" leaves it to the image
	ConfigKeys   []ed25519.PublicKey // that may sign node configs, besides the release's
}

// configTrust is what the initramfs says of node configs.
func (o *Options) configTrust() (map[string][]byte, error) {
	out := map[string][]byte{}
	if err := o.ConfigPolicy.Check(); err != nil {
		return nil, err
	}
	if o.ConfigPolicy != "" {
		out[machine.ReleasePolicyFile] = []byte(o.ConfigPolicy + "\n")
	}
	if len(o.ConfigKeys) == 0 {
		return out, nil
	}
	data, err := machine.MarshalKeys(o.ConfigKeys)
	out[machine.ReleaseKeysFile] = data
	return out, err
}

// trust is what lies beside the release key in the initramfs. While machines go over to new keys, that is the release key of before
// and what teaches firmware the new ones.
func (o *Options) trust(uefi bool) (map[string][]byte, error) {
	out, err := o.configTrust()
	if err != nil {
		return nil, err
	}
	if o.Keys.Before != nil {
		if out["release-old.pub"], err = keys.MarshalPublic(o.Keys.Before.Public()); err != nil {
			return nil, err
		}
	}
	for _, p := range o.Keys.Pairs() {
		if uefi && p.Update != nil {
			out[p.Name+machine.FirmwareUpdate] = p.Update
		}
	}
	return out, nil
}

// Summary is what a build made.
type Summary struct {
	Dir        string         `json:"dir"`
	Version    string         `json:"version"`
	Arch       string         `json:"arch"`
	Kubernetes string         `json:"kubernetes"`
	Debug      bool           `json:"debug,omitempty"`
	Commit     string         `json:"commit"`
	Files      []release.File `json:"files"`
	Bytes      int64          `json:"bytes"`
	Seconds    float64        `json:"seconds"`
}

type indexedKernel struct {
	*kernel
	index *kmod.Index
}

// build is one run of Build.
type build struct {
	Options
	ctx        context.Context
	Boards     []*boards.Board
	programs   string // mirrors the node's root
	work       string
	kubernetes string
	packages   *packages
	kernels    map[kernelName]indexedKernel
	bootImages map[string]release.File // by board
}

// Build makes a release. The folder appears whole, or not at all.
func Build(ctx context.Context, o Options) (*Summary, error) {
	begin := time.Now()
	if err := o.Keys.CanBuild(); err != nil { // before minutes of compiling, not after
		return nil, err
	}
	b, err := newBuild(ctx, o)
	if err != nil {
		return nil, err
	}
	unlock, err := lockFolder(b.work)
	if err != nil {
		return nil, err
	}
	defer unlock()

	if b.kubernetes, err = Programs(ctx, o.Source, o.Arch, b.programs, o.Debug, b.packages.store, o.Log); err != nil {
		return nil, err
	}
	done := o.Log.Stage("root: collect files")
	tree, err := b.rootTree()
	if err != nil {
		return nil, err
	}
	done()
	root, err := b.packRoot(tree)
	if err != nil {
		return nil, err
	}
	out, err := newFolder(o.Out)
	if err != nil {
		return nil, err
	}
	defer out.abort()
	if err := out.copy(root.Path, b.staged(".img")); err != nil {
		return nil, err
	}
	m := &release.Manifest{
		Schema: release.Schema, Version: o.Source.Version, Commit: o.Source.Commit, BuildTime: o.Source.Time, Arch: o.Arch,
		Kubernetes: b.kubernetes, Root: *root, Boards: map[string]release.Board{}, Debug: o.Debug,
	}
	for _, board := range b.Boards {
		if m.Boards[board.ID], err = b.board(out, board, root.RootHash); err != nil {
			return nil, fmt.Errorf("board %s: %w", board.ID, err)
		}
	}
	if m.Files, err = b.otherFiles(out); err != nil {
		return nil, err
	}
	if err := out.sign(m, o.Keys); err != nil {
		return nil, err
	}
	if err := out.commit(); err != nil {
		return nil, err
	}
	s := &Summary{
		Dir: o.Out, Version: m.Version, Arch: m.Arch, Kubernetes: m.Kubernetes, Debug: m.Debug, Commit: m.Commit, Files: m.AllFiles(),
		Seconds: time.Since(begin).Seconds(),
	}
	for _, f := range s.Files {
		s.Bytes += f.Size
	}
	return s, nil
}

// boards are those that the release is for.
func (o *Options) boards() ([]*boards.Board, error) {
	if !slices.Contains(release.Arches, o.Arch) {
		return nil, fmt.Errorf("architecture %q: is not one of %s", o.Arch, strings.Join(release.Arches, ", "))
	}
	all, err := boards.All()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(b *boards.Board) bool { return b.Arch != o.Arch || b.Platform != "" && !o.Clouds })
	if len(all) == 0 {
		return nil, fmt.Errorf("architecture %s: no board has it yet", o.Arch)
	}
	return all, nil
}

func newBuild(ctx context.Context, o Options) (*build, error) {
	lock, err := Lock()
	if err != nil {
		return nil, err
	}
	all, err := o.boards()
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("mkfs.erofs"); err != nil { // before minutes of compiling, not after
		return nil, errors.New("mkfs.erofs is not installed: apt-get install erofs-utils")
	}
	if err := o.check(o.Arch); err != nil {
		return nil, err
	}
	if o.Debug {
		if _, err := lock.Find(o.Arch, shellPackage); err != nil {
			return nil, fmt.Errorf("debug release for %s: %w", o.Arch, err)
		}
	}
	if err := checkReplaceable(o.Out); err != nil {
		return nil, err
	}
	b := &build{
		Options: o, ctx: ctx, Boards: all, kernels: map[kernelName]indexedKernel{}, bootImages: map[string]release.File{},
		programs: filepath.Join(o.Work, o.Arch), work: filepath.Join(o.Work, "work", o.Arch),
		packages: &packages{
			ctx: ctx, lock: lock, arch: o.Arch, log: o.Log, used: map[string]debian.Package{},
			store: &debian.Store{Dir: o.Cache, Mirrors: o.Mirrors, Retry: 5 * time.Second},
		},
	}
	if b.wifi() {
		if ok, err := b.packages.hasPart(wifi); err != nil || !ok {
			return nil, errors.Join(err, fmt.Errorf("WiFi: image/compose/debian.yaml has its packages for other architectures than %s; add it there and run `make lock`", o.Arch))
		}
	}
	return b, os.MkdirAll(b.work, 0o755)
}

// staged names a file of the root's stage. A debug release has its own, so that the two kinds do not pack each other's anew.
func (b *build) staged(ext string) string {
	name := "root"
	if b.Debug {
		name += "-debug"
	}
	return filepath.Join(b.work, name+ext)
}

// loaderPackage has the boot loader and the EFI stub. They are beside the root, their licence is in it.
const loaderPackage = "systemd-boot-efi"

// efiFile reads one of systemd-boot's programs: "linux" or "systemd-boot", in the name of the machine type.
func (b *build) efiFile(name, suffix string) ([]byte, error) {
	dir, _, err := b.packages.dir(loaderPackage)
	if err != nil {
		return nil, err
	}
	machine := map[string]string{"amd64": "x64", "arm64": "aa64", "arm": "arm"}[b.Arch]
	return os.ReadFile(filepath.Join(dir, "usr/lib/systemd/boot/efi", name+machine+suffix))
}

// otherFiles makes the boot loader, the Secure Boot variables and the SBOM.
func (b *build) otherFiles(out *folder) ([]release.File, error) {
	var files []release.File
	put := func(name string, data []byte) error {
		f, err := out.write(name, data)
		files = append(files, f)
		return err
	}
	loader, err := b.efiFile("systemd-boot", ".efi")
	if err != nil {
		return nil, err
	}
	if loader, err = uki.Sign(loader, b.Keys.BootSigners()...); err != nil {
		return nil, fmt.Errorf("systemd-boot: %w", err)
	}
	if err := put("boot/systemd-boot.efi", loader); err != nil {
		return nil, err
	}
	for _, p := range b.Keys.Pairs() {
		auth, err := b.Keys.EnrolFile(p.Name, b.Source.Time)
		if err != nil {
			return nil, err
		}
		if err := put("secureboot/"+p.Name+".auth", auth); err != nil {
			return nil, err
		}
	}
	if err := b.netbootFiles(put); err != nil {
		return nil, err
	}
	bom, err := b.sbom()
	if err != nil {
		return nil, err
	}
	if err := put("sbom.spdx.json", bom); err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(x, y release.File) int { return strings.Compare(x.Path, y.Path) })
	return files, nil
}

// folder is a release folder that gets its name only by commit.
type folder struct{ dir, tmp string }

// checkReplaceable refuses a folder that is neither new nor empty nor a release.
func checkReplaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, release.ManifestName)); err != nil {
		return fmt.Errorf("%s: holds files that are no release; name a new folder", dir)
	}
	return nil
}

func newFolder(dir string) (*folder, error) {
	dir = filepath.Clean(dir)
	f := &folder{dir: dir, tmp: dir + ".tmp"}
	if err := os.RemoveAll(f.tmp); err != nil { // of an interrupted build
		return nil, err
	}
	return f, os.MkdirAll(f.tmp, 0o755)
}

func (f *folder) abort() { _ = os.RemoveAll(f.tmp) }

func (f *folder) write(name string, data []byte) (release.File, error) {
	to := filepath.Join(f.tmp, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return release.File{}, err
	}
	if err := atomicfile.Write(to, data, 0o644); err != nil {
		return release.File{}, err
	}
	return release.Describe(name, bytes.NewReader(data))
}

func (f *folder) copy(name, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := atomicfile.Create(filepath.Join(f.tmp, name), 0o644)
	if err != nil {
		return err
	}
	defer dst.Abort()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return dst.Commit()
}

func (f *folder) sign(m *release.Manifest, k *keys.Set) error {
	manifest, sig, err := release.Sign(m, k.ReleaseSigners()...)
	if err != nil {
		return err
	}
	if _, err := f.write(release.ManifestName, manifest); err != nil {
		return err
	}
	_, err = f.write(release.SignatureName, sig)
	return err
}

// commit gives the folder its name; an older release there is exchanged in one step and then removed.
func (f *folder) commit() error {
	err := os.Rename(f.tmp, f.dir) // also over an empty folder
	if err != nil {
		if err = exchange(f.tmp, f.dir); err != nil {
			return fmt.Errorf("%s: %w", f.dir, err)
		}
		if err := os.RemoveAll(f.tmp); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Dir(f.dir))
}

// lockFolder keeps two builds from staging in the same folder.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: another build is running there; wait for it, or stage elsewhere with --work", dir)
	}
	return func() { _ = f.Close(); runtime.KeepAlive(f) }, nil
}

// toolDigest tells one version of a tool from another.
func toolDigest(name string) string {
	p, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
