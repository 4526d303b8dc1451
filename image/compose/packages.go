package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/rootfs"
	"github.com/skerry-os/skerry/pkg/debian"
)

// debianPrograms are the files that the root takes from packages; libraries come along by themselves.
var debianPrograms = map[string][]string{
	"nftables":  {"usr/sbin/nft"},
	"e2fsprogs": {"sbin/mke2fs", "sbin/mkfs.ext4", "sbin/e2fsck", "sbin/fsck.ext4", "sbin/resize2fs", "etc/mke2fs.conf"},
	"mount":     {"bin/mount", "bin/umount"},
}

// wifi is a part of releases: for those of a board that has it, and those whose builder asks for it.
const wifi = "wifi"

// wifiPrograms are debianPrograms of releases with WiFi.
var wifiPrograms = map[string][]string{"wpasupplicant": {"sbin/wpa_supplicant"}}

// regulatory has the rules for radios by country. Debian's kernels know Debian's signature of them.
const regulatory = "wireless-regdb"

var regulatoryFiles = map[string]string{"regulatory.db": "regulatory.db-debian", "regulatory.db.p7s": "regulatory.db.p7s-debian"}

// packages is what a build has of Debian: the locked packages, unpacked as they are asked for.
type packages struct {
	ctx   context.Context
	store *debian.Store
	lock  *debian.Lock
	arch  string
	log   Log
	used  map[string]debian.Package // by name: what the release holds something of
}

// dir unpacks a package and gives its folder.
func (p *packages) dir(name string) (string, debian.Package, error) {
	pkg, err := p.lock.Find(p.arch, name)
	if err != nil {
		return "", pkg, err
	}
	if p.store.Unpacked(pkg) {
		dir, err := p.store.Unpack(p.ctx, pkg)
		return dir, pkg, err
	}
	done := p.log.Stage("fetch " + pkg.Name + " " + pkg.Version)
	dir, err := p.store.Unpack(p.ctx, pkg)
	if err == nil {
		done(megabytes(pkg.Size))
	}
	return dir, pkg, err
}

// hasPart says whether the list has packages of a part for the architecture.
func (p *packages) hasPart(part string) (bool, error) {
	own, err := Wanted()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(own.Packages, func(w debian.WantedItem) bool {
		return w.Part == part && (len(w.Arches) == 0 || slices.Contains(w.Arches, p.arch))
	}), nil
}

// addPrograms puts Debian's programs and their libraries into the tree, those of parts too.
func (p *packages) addPrograms(t *rootfs.Tree, parts ...string) error {
	l := &libraries{tree: t, triplet: triplet(p.arch), dirs: map[string]string{}, used: map[string]bool{}, done: map[string]bool{}}
	own, err := Wanted()
	if err != nil {
		return err
	}
	for _, w := range own.Packages {
		switch {
		case w.Part != "":
			if !slices.Contains(parts, w.Part) || len(w.Arches) > 0 && !slices.Contains(w.Arches, p.arch) {
				continue
			}
		case w.Follow != nil || len(w.Arches) > 0: // a board's kernel or firmware, or for building
			continue
		}
		dir, pkg, err := p.dir(w.Name)
		if err != nil {
			return err
		}
		l.dirs[dir] = pkg.Name
	}
	programs := maps.Clone(debianPrograms)
	if slices.Contains(parts, wifi) {
		maps.Copy(programs, wifiPrograms)
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		dir, _, err := p.dir(name)
		if err != nil {
			return err
		}
		for _, file := range programs[name] {
			if err := p.addProgram(t, l, name, dir, file); err != nil {
				return err
			}
		}
	}
	for name := range l.used {
		if err := p.use(t, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *packages) addProgram(t *rootfs.Tree, l *libraries, name, dir, file string) error {
	host := filepath.Join(dir, file)
	st, err := os.Lstat(host)
	if err != nil {
		return fmt.Errorf("package %s has no %s: %w", name, file, err)
	}
	l.used[name] = true
	if err := t.AddHost(file, host); err != nil {
		return err
	}
	if st.Mode().Type() == fs.ModeSymlink || st.Mode()&0o111 == 0 {
		return nil
	}
	return l.resolve(host)
}

// addFirmware puts the files that a board's drivers ask for into the tree.
func (p *packages) addFirmware(t *rootfs.Tree, b *boards.Board) error {
	for _, fw := range b.Firmware {
		dir, pkg, err := p.dir(fw.Package)
		if err != nil {
			return fmt.Errorf("board %s: firmware: %w", b.ID, err)
		}
		top := filepath.Join(dir, "lib/firmware")
		if _, err := os.Stat(top); err != nil {
			top = filepath.Join(dir, "usr/lib/firmware")
		}
		for _, pattern := range fw.Files {
			names, err := fs.Glob(os.DirFS(top), pattern)
			if err != nil || len(names) == 0 {
				return fmt.Errorf("board %s: firmware %q: matches no file of %s %s (%w)", b.ID, pattern, pkg.Name, pkg.Version, errors.Join(err, fs.ErrNotExist))
			}
			for _, n := range names {
				if err := t.AddHost(path.Join("usr/lib/firmware", n), filepath.Join(top, n)); err != nil {
					return err
				}
			}
		}
		if err := p.use(t, fw.Package); err != nil {
			return err
		}
	}
	return nil
}

// addRegulatory puts the rules for radios into the tree, where the kernel asks for them.
func (p *packages) addRegulatory(t *rootfs.Tree) error {
	dir, _, err := p.dir(regulatory)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(regulatoryFiles)) {
		if err := t.AddHost(path.Join("usr/lib/firmware", name), filepath.Join(dir, "lib/firmware", regulatoryFiles[name])); err != nil {
			return err
		}
	}
	return p.use(t, regulatory)
}

// addCertificates puts the CA certificates of the web into the tree as the one file that every program reads.
func (p *packages) addCertificates(t *rootfs.Tree) error {
	dir, _, err := p.dir("ca-certificates")
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("ca-certificates: holds no certificates (%w)", errors.Join(err, fs.ErrNotExist))
	}
	var bundle bytes.Buffer
	for _, f := range files { // Glob sorts
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimSpace(data))
		bundle.WriteByte('\n')
	}
	if err := t.AddBytes("etc/ssl/certs/ca-certificates.crt", bundle.Bytes(), 0o644); err != nil {
		return err
	}
	return p.use(t, "ca-certificates")
}

// use notes that the release holds something of a package, and adds the package's licence.
func (p *packages) use(t *rootfs.Tree, name string) error {
	dir, pkg, err := p.dir(name)
	if err != nil {
		return err
	}
	if _, ok := p.used[pkg.Name]; ok {
		return nil
	}
	p.used[pkg.Name] = pkg
	file := path.Join("usr/share/doc", pkg.Name, "copyright")
	host := filepath.Join(dir, file)
	if _, err := os.Stat(host); err != nil {
		return nil //nolint:nilerr // a package may share the folder of another of the same source
	}
	return t.AddFile(file, host, 0o644)
}

// kernel is an unpacked kernel.
type kernel struct {
	release string // uname -r
	image   string // the kernel, a file of the host
	modules string // folder of lib/modules/<release>
	trees   string // folder of device trees; may not exist
	config  string // what it was built with
	pkgs    []debian.Package
}

// kernel unpacks the kernel that a meta package stands for. Debian keeps its parts in one package or in several, in one of
// two ways.
func (p *packages) kernel(name, suite string) (*kernel, error) {
	pkgs, err := p.lock.Followed(p.arch, name, suite)
	if err != nil {
		return nil, err
	}
	for _, pkg := range pkgs {
		if _, _, err := p.dir(pkg.Name); err != nil { // says what it fetches
			return nil, err
		}
	}
	dir, err := p.store.UnpackAll(p.ctx, pkgs...)
	if err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinu[xz]-*"))
	if err == nil && len(images) == 0 {
		images, err = filepath.Glob(filepath.Join(dir, "usr/lib/modules/*/vmlinuz"))
	}
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("package %s of %s: has %d kernels, want one", name, suite, len(images))
	}
	_, release, ok := strings.Cut(filepath.Base(images[0]), "-")
	if !ok {
		release = filepath.Base(filepath.Dir(images[0]))
	}
	k := &kernel{release: release, image: images[0], modules: filepath.Join(dir, "lib/modules", release), pkgs: pkgs}
	if _, err := os.Stat(k.modules); err != nil {
		k.modules = filepath.Join(dir, "usr/lib/modules", release)
	}
	if _, err := os.Stat(filepath.Join(k.modules, "kernel")); err != nil {
		return nil, fmt.Errorf("package %s of %s: has no modules for its kernel: %w", name, suite, err)
	}
	k.config = filepath.Join(dir, "boot/config-"+release)
	if _, err := os.Stat(k.config); err != nil {
		k.config = filepath.Join(k.modules, "config")
	}
	k.trees = filepath.Join(dir, "usr/lib/linux-image-"+release)
	if _, err := os.Stat(filepath.Join(k.modules, "dtb")); err == nil {
		k.trees = filepath.Join(k.modules, "dtb")
	}
	return k, nil
}

// tree reads one of its device trees.
func (k *kernel) tree(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(k.trees, name))
	if err != nil {
		return nil, fmt.Errorf("kernel %s: device tree %s: %w", k.release, name, err)
	}
	return data, nil
}
