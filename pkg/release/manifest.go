// Package release is what a signed version of the OS for one architecture is held to: the manifest, its canonical bytes, its
// signature, and the copy of both that travels at the end of a root partition.
//
// Parties: whoever builds holds an ed25519 private key (pkg/keys); every image carries the public key inside its initramfs,
// which Secure Boot covers where it is on. A Release exists only after Verify, so code that holds one need not ask.
package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/skerry-os/skerry/image/disk"
)

// Schema is the manifest version this code writes and the only one it reads.
const Schema = 1

// MaxManifestBytes bounds a manifest before anything of it is parsed.
const MaxManifestBytes = 48 << 10

// Arches that releases are made for, in Debian's and Go's common spelling; "arm" is ARMv7 (GOARM=7).
var Arches = []string{"amd64", "arm64", "arm"}

// Manifest names every byte of a release. Its canonical form is Go's JSON of this struct, no indentation, one newline at
// the end; fields are only ever added at the end of a struct.
type Manifest struct {
	Schema     int              `json:"schema"`
	Version    string           `json:"version"`    // git describe, without the leading v
	Commit     string           `json:"commit"`     // full git commit
	BuildTime  time.Time        `json:"buildTime"`  // the commit's time, UTC, whole seconds
	Arch       string           `json:"arch"`       // one of Arches
	Kubernetes string           `json:"kubernetes"` // such as v1.37.2
	Root       Root             `json:"root"`
	Boards     map[string]Board `json:"boards"` // by board id
	Files      []File           `json:"files"`  // every other file of the release folder, sorted by path
	// Debug says that the root has a shell, which init offers on every console and, to the node config's keys, over SSH.
	Debug bool `json:"debug,omitempty"`
}

// Root is the root filesystem: EROFS, then its dm-verity hash tree, in one file.
type Root struct {
	File
	DataSize int64  `json:"dataSize"` // bytes of EROFS, a multiple of 4096; the hash tree starts here
	RootHash string `json:"rootHash"` // hex sha256, the verity root
	Salt     string `json:"salt"`     // hex, 32 bytes
}

// Board is what one board boots.
type Board struct {
	Kernel string `json:"kernel"` // kernel release, as in uname -r
	Boot   File   `json:"boot"`   // the signed unified kernel image, or what the board's firmware has in its place
	// Slots is the kind of firmware; empty for UEFI.
	Slots    string     `json:"slots,omitempty"`
	Firmware []Firmware `json:"firmware,omitempty"` // what an image brings for the firmware beside it, sorted by path
}

// Firmware is a file for the board's firmware.
type Firmware struct {
	File
	To string `json:"to,omitempty"` // where it lies on the partition that the firmware reads
	At int64  `json:"at,omitempty"` // or, outside of all partitions, the byte of the disk where it starts; 0 is a boot sector's code
}

// File is one file of a release folder.
type File struct {
	Path   string `json:"path"`   // slash-separated, below the release folder
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hex
}

// Marshal gives the canonical bytes.
func (m *Manifest) Marshal() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("release manifest: %w", err)
	}
	data = append(data, '\n')
	if len(data) > MaxManifestBytes {
		return nil, fmt.Errorf("release manifest: is %d bytes; at most %d fit", len(data), MaxManifestBytes)
	}
	return data, nil
}

// parse reads canonical bytes and refuses any others, so that a signature covers all that a reader sees.
func parse(data []byte) (*Manifest, error) {
	if len(data) > MaxManifestBytes {
		return nil, fmt.Errorf("release manifest: is %d bytes; at most %d are read", len(data), MaxManifestBytes)
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("release manifest: is not JSON: %w", err)
	}
	if head.Schema != Schema {
		return nil, fmt.Errorf("release manifest: has schema %d; this program reads schema %d: use the program of that release", head.Schema, Schema)
	}
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("release manifest: %w", err)
	}
	again, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, errors.New("release manifest: is not in canonical form; it was edited after signing")
	}
	return m, nil
}

var (
	hex64    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versions = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+~-]{0,63}$`)
)

func (m *Manifest) validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("release manifest: "+format, a...)) }
	if m.Schema != Schema {
		bad("schema is %d, want %d", m.Schema, Schema)
	}
	if !versions.MatchString(m.Version) {
		bad("version %q is not a version", m.Version)
	}
	if !slices.Contains(Arches, m.Arch) {
		bad("arch %q is not one of %v", m.Arch, Arches)
	}
	if m.BuildTime.Nanosecond() != 0 || m.BuildTime.Location() != time.UTC {
		bad("buildTime %v is not in whole seconds UTC", m.BuildTime)
	}
	if !hex64.MatchString(m.Root.RootHash) || !hex64.MatchString(m.Root.Salt) {
		bad("root.rootHash and root.salt must be 64 hex digits")
	}
	if m.Root.DataSize <= 0 || m.Root.DataSize%4096 != 0 || m.Root.DataSize >= m.Root.Size || m.Root.Size%4096 != 0 {
		bad("root: %d bytes of data in a file of %d is not a filesystem with a hash tree behind it", m.Root.DataSize, m.Root.Size)
	}
	if len(m.Boards) == 0 {
		bad("has no boards")
	}
	seen := map[string]bool{}
	for _, f := range m.AllFiles() {
		if f.Path == "." || f.Path == "" || path.Clean("/" + f.Path)[1:] != f.Path {
			bad("path %q is not a clean path below the release", f.Path)
		}
		if seen[f.Path] {
			bad("%s: is listed twice", f.Path)
		}
		seen[f.Path] = true
		if f.Size < 0 || !hex64.MatchString(f.SHA256) {
			bad("%s: size %d, sha256 %q", f.Path, f.Size, f.SHA256)
		}
	}
	for id, b := range m.Boards {
		for _, f := range b.Firmware {
			if f.At < 0 || f.To != "" && (f.At != 0 || path.Clean("/" + f.To)[1:] != f.To) {
				bad("board %s: %s: is to be either a file %q or at byte %d", id, f.Path, f.To, f.At)
			}
			if f.To == "" && f.At == 0 && f.Size > disk.CodeSize {
				bad("board %s: %s: is %d bytes at the start of the disk; %d are in front of the partition table", id, f.Path, f.Size, disk.CodeSize)
			}
		}
	}
	if !slices.IsSortedFunc(m.Files, func(a, b File) int { return cmpString(a.Path, b.Path) }) {
		bad("files are not sorted by path")
	}
	return errors.Join(errs...)
}

// AllFiles lists the root, the boards' files and the rest, each once, in a stable order. Boards may share a kernel image.
func (m *Manifest) AllFiles() []File {
	out := []File{m.Root.File}
	for _, id := range m.BoardIDs() {
		if boot := m.Boards[id].Boot; !slices.Contains(out, boot) {
			out = append(out, boot)
		}
		for _, f := range m.Boards[id].Firmware {
			out = append(out, f.File)
		}
	}
	return append(out, m.Files...)
}

// BoardIDs lists the boards this release boots, sorted.
func (m *Manifest) BoardIDs() []string {
	ids := make([]string, 0, len(m.Boards))
	for id := range m.Boards {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Describe reads r to its end and gives the File for it.
func Describe(path string, r io.Reader) (File, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return File{Path: path, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// Check reads r to its end and says whether it is the file named.
func (f File) Check(r io.Reader) error {
	got, err := Describe(f.Path, io.LimitReader(r, f.Size+1))
	if err != nil {
		return err
	}
	if got.Size != f.Size {
		return fmt.Errorf("%s: is %s than the %d bytes the release says", f.Path, map[bool]string{true: "longer", false: "shorter"}[got.Size > f.Size], f.Size)
	}
	if got.SHA256 != f.SHA256 {
		return fmt.Errorf("%s: sha256 is %.8s; the release says %.8s", f.Path, got.SHA256, f.SHA256)
	}
	return nil
}
