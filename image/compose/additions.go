package compose

import (
	"errors"
	"fmt"
	"os"
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
	Archives   []string // container images in Docker's or OCI's archive format, imported when a node starts
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
	for _, file := range a.Archives {
		if err := t.AddFile(path.Join(addedDir, filepath.Base(file)), file, 0o644); err != nil {
			return fmt.Errorf("image archive %s: %w; give it another name", file, err)
		}
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
