package repository

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skerry-os/skerry/pkg/release"
)

// ErrUpToDate means that there is nothing newer for this machine.
var ErrUpToDate = errors.New("there is nothing newer")

// Machine is what a choice depends on.
type Machine struct {
	Arch, Board, Channel, Version string
	Seed                          string          // which wave the machine is in: the same for its life, and unlike others'
	Failed                        map[string]bool // versions that are not tried again
	Force                         bool            // failed ones too, and without waiting for the wave
	Want                          string          // the version to come to, in whatever channel and wave; "" is the newest
}

// Choose picks the release the machine should run next: the newest it may have, or the next on the way to the one it wants. An
// error is ErrUpToDate, with a reason.
func Choose(offers []Offer, m Machine, now time.Time) (Offer, error) {
	if m.Channel == "" {
		m.Channel = DefaultChannel
	}
	var newer []Offer
	for _, o := range offers {
		fits := o.Channel == m.Channel
		if m.Want != "" {
			fits = release.CompareVersions(o.Version, m.Want) <= 0
		}
		if o.Arch == m.Arch && slices.Contains(o.Boards, m.Board) && fits && release.CompareVersions(o.Version, m.Version) > 0 {
			newer = append(newer, o)
		}
	}
	slices.SortFunc(newer, func(a, b Offer) int { return release.CompareVersions(a.Version, b.Version) })
	// Nothing leads past a stepping stone but the stone.
	if i := slices.IndexFunc(newer, func(o Offer) bool { return o.Stone }); i >= 0 {
		newer = newer[:i+1]
	}
	why := ""
	for _, o := range slices.Backward(newer) {
		switch {
		case o.Minimum != "" && release.CompareVersions(m.Version, o.Minimum) < 0:
			why = fmt.Sprintf("%s needs %s first", o.Version, o.Minimum)
		case m.Failed[o.Version] && !m.Force:
			why = fmt.Sprintf("%s was tried and failed", o.Version)
		case m.Want == "" && !o.reached(m.Seed, now) && !m.Force:
			why = fmt.Sprintf("%s has not reached this machine's wave", o.Version)
		default:
			return o, nil
		}
	}
	if why != "" {
		return Offer{}, fmt.Errorf("%w: %s", ErrUpToDate, why)
	}
	if m.Want != "" {
		return Offer{}, fmt.Errorf("%w than %s on the way to %s", ErrUpToDate, m.Version, m.Want)
	}
	return Offer{}, fmt.Errorf("%w than %s in channel %s", ErrUpToDate, m.Version, m.Channel)
}

// reached says whether the wave of a machine has come.
func (o Offer) reached(seed string, now time.Time) bool {
	if len(o.Waves) == 0 {
		return true
	}
	sum := sha256.Sum256([]byte(seed + "\n" + o.Version))
	place := int(binary.BigEndian.Uint32(sum[:]) % 100)
	for _, w := range o.Waves {
		if place < w.Percent {
			return !now.Before(o.Published.Add(w.After))
		}
	}
	return false
}
