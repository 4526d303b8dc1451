// Package compose makes a release: Debian packages pinned by a lock file, programs built from Go modules and files of our own
// become a signed folder that `image` turns into disks. Build reads downward; each stage needs only what stood above it, and
// what did not change since the last build is taken from there.
package compose

import (
	_ "embed"
	"slices"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/pkg/debian"
)

//go:embed debian.lock.yaml
var lockFile []byte

//go:embed debian.yaml
var wantFile []byte

// LockName is where the lock file lies in the source.
const LockName = "image/compose/debian.lock.yaml"

// Lock gives the packages that releases are made from.
func Lock() (*debian.Lock, error) { return debian.ParseLock(LockName, lockFile) }

// Wanted gives the list that the lock is made from: ours, and what the boards name.
func Wanted() (*debian.Want, error) {
	w, err := debian.ParseWant("image/compose/debian.yaml", wantFile)
	if err != nil {
		return nil, err
	}
	all, err := boards.All()
	if err != nil {
		return nil, err
	}
	for _, b := range all {
		add(w, debian.WantedItem{Name: b.Kernel.Package, Suite: b.Kernel.Suite, Follow: kernelParts, Arches: []string{b.Arch}})
		for _, f := range b.Firmware {
			add(w, debian.WantedItem{Name: f.Package, Suite: f.Suite, Arches: []string{b.Arch}})
		}
		for _, f := range b.Boot.Files {
			add(w, debian.WantedItem{Name: f.Package, Suite: f.Suite, Arches: []string{b.Arch}})
		}
		for _, f := range b.Boot.Raw {
			add(w, debian.WantedItem{Name: f.Package, Suite: f.Suite, Arches: []string{b.Arch}})
		}
	}
	return w, nil
}

// kernelParts are what a kernel's meta package leads to: one package, or with newer kernels one for the image, one for the
// modules and one for the rest.
var kernelParts = []string{"linux-image-", "linux-binary-", "linux-modules-", "linux-base-"}

func add(w *debian.Want, item debian.WantedItem) {
	same := func(o debian.WantedItem) bool {
		return o.Name == item.Name && (o.Suite == item.Suite || item.Follow == nil) && slices.Equal(o.Arches, item.Arches)
	}
	if slices.Contains(w.Arches, item.Arches[0]) && !slices.ContainsFunc(w.Packages, same) {
		w.Packages = append(w.Packages, item)
	}
}
