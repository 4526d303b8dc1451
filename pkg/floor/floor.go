// Package floor keeps machines from being taken back to an older release than the one they may go back to: a release with a
// known hole, validly signed once, is otherwise good for ever.
//
// The floor is a version. Stage 1 of init holds the release it is about to start against it, and raises it when a kept slot
// starts: to the older of the releases in both slots, so that the way back stays open. Then it closes it until the next restart,
// where the place can be closed. What each place holds against:
//
//   - A TPM's memory (TPM): an exchanged or overwritten disk, and, until the next restart, the running system itself, whoever
//     took it over. Not against whoever clears the TPM, which firmware menus offer and a system that was taken over can ask
//     for, nor whoever takes the TPM away: the floor is then gone, and begins anew.
//   - A variable of UEFI firmware (Variable): an exchanged or overwritten disk. Not against a running system that was taken
//     over, which can change it, nor whoever resets the firmware's variables.
//   - The data partition, on machines that have neither: mistakes. Whoever can write the disk can change it.
package floor

import (
	"errors"
	"fmt"

	"github.com/skerry-os/skerry/pkg/release"
)

// Place keeps a floor.
type Place interface {
	// Load gives the version; "" is none yet.
	Load() (string, error)
	// Raise stores a version.
	Raise(version string) error
	// Close keeps everybody, this program too, from changing it until the machine restarts, if the place can.
	Close() error
	// String names the place, as in "the TPM", and Reset says how a person clears it.
	String() string
	Reset() string
}

// Hold refuses a release that is older than the floor: its error is release.ErrRollback. kept says that it starts from a kept
// slot; other is the version of the release in the other slot, "" if there is none. It gives the floor as it is afterwards; an
// error beside it that is not ErrRollback means that the place cannot be read or written, which is no reason not to start.
func Hold(p Place, version, other string, kept bool) (floor string, err error) {
	if floor, err = p.Load(); err != nil {
		return "", fmt.Errorf("floor in %s: %w", p, err)
	}
	if floor != "" && release.CompareVersions(version, floor) < 0 {
		return floor, fmt.Errorf("release %s %w: the floor in %s is %s; start that one or a newer, or %s", version, release.ErrRollback, p, floor, p.Reset())
	}
	if to := least(version, other); kept && (floor == "" || release.CompareVersions(to, floor) > 0) {
		if err := p.Raise(to); err != nil {
			return floor, errors.Join(fmt.Errorf("floor in %s: raising it from %q to %s: %w", p, floor, to, err), p.Close())
		}
		floor = to
	}
	if err := p.Close(); err != nil {
		return floor, fmt.Errorf("floor in %s: closing it: %w", p, err)
	}
	return floor, nil
}

func least(version, other string) string {
	if other != "" && release.CompareVersions(other, version) < 0 {
		return other
	}
	return version
}
