package machine

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"time"

	"github.com/skerry-os/skerry/pkg/slot"
)

// The files that Identity is read from, below the node's root.
const (
	ReleaseFile = "usr/share/skerry/release.json" // written when the release is built
	BootFile    = "run/skerry/boot.json"          // written by stage 1 at every boot
)

// Release is what release.json says of the root it stands in.
type Release struct {
	Version    string    `json:"version"`
	Commit     string    `json:"commit"`
	BuildTime  time.Time `json:"buildTime"`
	Arch       string    `json:"arch"`
	Kubernetes string    `json:"kubernetes"`
	Debug      bool      `json:"debug,omitempty"`
}

// DebugNotice is what a debug release says of itself, everywhere.
const DebugNotice = "debug release: a shell on every console"

// OpenShells is a folder that has a file for each console on which somebody uses the shell of a debug release.
const OpenShells = "/run/skerry/shells"

// Boot is what stage 1 hands to stage 2: where this boot came from. Everything in it was checked against the signature.
type Boot struct {
	Board   string  `json:"board"`
	Slot    slot.ID `json:"slot"`
	Trial   bool    `json:"trial"`
	Version string  `json:"version"`           // of the signed release in the slot
	Disk    string  `json:"disk"`              // the whole disk, such as /dev/vda
	Root    string  `json:"root"`              // the slot's partition, such as /dev/vda2
	Secure  bool    `json:"secureBoot"`        // the firmware started only what was signed
	Netboot bool    `json:"netboot,omitempty"` // the root is in memory; Disk has the data partition, if there is one
	Floor   string  `json:"floor,omitempty"`   // no older release starts; "" for none but the record's
	FloorIn string  `json:"floorIn,omitempty"` // where that is kept
	Left    string  `json:"left,omitempty"`    // why the machine left the other slot, if it just did
	Note    string  `json:"note,omitempty"`    // why the slot is not the one the firmware named, if so
}

// Identity is what this image is and how it was booted.
type Identity struct {
	Release Release
	Boot    Boot
}

// ReadIdentity reads the identity of the root fsys, and refuses a root that is not the one whose signature was checked.
func ReadIdentity(fsys fs.FS) (Identity, error) {
	var id Identity
	if err := readJSON(fsys, ReleaseFile, &id.Release); err != nil {
		return id, err
	}
	if err := readJSON(fsys, BootFile, &id.Boot); err != nil {
		return id, err
	}
	if id.Boot.Version != id.Release.Version {
		return id, fmt.Errorf("%s: is version %s; the manifest of slot %s is signed for %s", ReleaseFile, id.Release.Version, id.Boot.Slot, id.Boot.Version)
	}
	return id, nil
}

func readJSON(fsys fs.FS, name string, v any) error {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
