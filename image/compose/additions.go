package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/image/oci"
	"github.com/skerry-os/skerry/image/rootfs"
)

// Additions are what a person adds to a release of their own. They are part of what is signed and checked, so they belong to the
// release and not to the image of one machine.
type Additions struct {
	Overlays   []string // folders of the host, laid over the root; they add files, and change none of the release's
	Modules    []string // kernel modules to carry, besides those of the boards; a node config's modules loads them
	KernelArgs []string // words for the kernel's command line, behind the board's
	Archives   []string // container images in Docker's or OCI's archive format, served from the root
	WiFi       bool     // wpa_supplicant and the rules for radios, though no board of the release asks for them
}

var kernelArg = regexp.MustCompile(`^[A-Za-z0-9_.-]+(=[!-~]*)?$`)

// kernelOwn are words by which stage 1 and the kernel find and check what they boot.
var kernelOwn = []string{"skerry.", "init", "rdinit", "root", "initrd", "panic", "dm-mod.", "module.sig_enforce", "lockdown"}

// check refuses what would be found out only after minutes, or on the machine.
func (a Additions) check(arch string) error {
	var errs []error
	for _, arg := range a.KernelArgs {
		name, _, _ := strings.Cut(arg, "=")
		if !kernelArg.MatchString(arg) {
			errs = append(errs, fmt.Errorf("kernel argument %q: is not one word of letters, as in mitigations=off", arg))
		} else if slices.ContainsFunc(kernelOwn, func(own string) bool {
			return name == own || strings.HasSuffix(own, ".") && strings.HasPrefix(name, own)
		}) {
			errs = append(errs, fmt.Errorf("kernel argument %q: decides what is booted, which the release does", arg))
		}
	}
	for _, dir := range a.Overlays {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			errs = append(errs, fmt.Errorf("overlay %s: is not a folder", dir))
		}
	}
	if _, err := exec.LookPath("mksquashfs"); err != nil && len(a.Archives) > 0 {
		errs = append(errs, errors.New("mksquashfs is not installed: apt-get install squashfs-tools"))
	}
	for _, file := range a.Archives {
		if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() || filepath.Ext(file) != ".tar" {
			errs = append(errs, fmt.Errorf("image archive %s: is not a file that ends in .tar", file))
		} else if err := checkArchive(file, arch); err != nil {
			errs = append(errs, fmt.Errorf("image archive %s: %w", file, err))
		}
	}
	return errors.Join(errs...)
}

// add puts them into the root.
func (a Additions) add(t *rootfs.Tree) error {
	for _, dir := range a.Overlays {
		if err := t.AddHost("", dir); err != nil {
			return fmt.Errorf("overlay %s: %w", dir, err)
		}
	}
	return nil
}

// servedModules are what a node needs to serve images as they are in the root.
var servedModules = []string{"loop", "squashfs"}

// addArchives lays the images of persons' archives out as component images are: a node has them when it starts, runs their containers
// from the root, which is verified, and neither reads nor writes them before. What is in them may belong to anybody, have
// capabilities or be a device, so each becomes a filesystem of its own that holds all that a tar archive does.
func (b *build) addArchives(t *rootfs.Tree) error {
	if len(b.Archives) == 0 {
		return nil
	}
	done := b.Log.Stage("root: images of archives")
	dir := filepath.Join(b.work, "images")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for _, file := range b.Archives {
		if err := addArchive(b.ctx, t, file, b.Arch, dir); err != nil {
			return fmt.Errorf("image archive %s: %w", file, err)
		}
	}
	done()
	return nil
}

func addArchive(ctx context.Context, t *rootfs.Tree, file, arch, dir string) error {
	name := filepath.Base(file)
	if _, ok := t.Get(path.Join(addedDir, name)); ok {
		return errors.New("another has the same file name; give it a different one")
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var trees map[string]string
	rest := filepath.Join(dir, name)
	err = writeWith(rest, 0o644, func(w io.Writer) (err error) {
		trees, err = oci.Flatten(f, arch, dir, w)
		return err
	})
	if err != nil {
		return err
	}
	if err := t.AddFile(path.Join(addedDir, name), rest, 0o644); err != nil {
		return err
	}
	for chain, tree := range trees {
		out := filepath.Join(dir, chain+servedExt)
		if err := errors.Join(squash(ctx, tree, out), os.Remove(tree)); err != nil {
			return err
		}
		if err := t.AddFile(path.Join(addedDir, chain+servedExt), out, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// servedExt ends the name of an image's filesystem; before it stands the chain ID of the image's layers.
const servedExt = ".squashfs"

// squash makes a filesystem of a tar archive, the same bytes for the same archive.
func squash(ctx context.Context, tree, out string) error {
	in, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	cmd := exec.CommandContext(ctx, "mksquashfs", "-", out, "-tar", "-noappend", "-no-progress", "-quiet", "-no-exports", "-comp", "zstd", "-mkfs-time", "0")
	cmd.Stdin = in
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") { // it contradicts the time above
			cmd.Env = append(cmd.Env, v)
		}
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("mksquashfs: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}

// checkArchive refuses what a node could not import: all nodes of the release would lack it.
func checkArchive(file, arch string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return oci.CheckArchive(f, arch)
}
