// Package compose makes a release: Debian packages pinned by a lock file, programs built from Go modules and files of our own
// become a signed folder that `image` turns into disks. Build reads downward; each stage needs only what stood above it, and
// what did not change since the last build is taken from there.
package compose

import (
	_ "embed"

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

// Wanted gives the list that the lock is made from.
func Wanted() (*debian.Want, error) { return debian.ParseWant("image/compose/debian.yaml", wantFile) }
