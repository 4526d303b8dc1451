// Package image turns a board, a signed release and a node config into a disk, and reads a disk back.
//
// New is pure: it gives a Plan, which names every byte range of the disk and where its bytes come from, before anything is
// written. Build writes a plan in one pass, from the first byte to the last. Inspect reads a finished image into the plan it
// was made from and names every byte that is not as planned. The same inputs always give the same bytes.
package image

import (
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/datafs"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/size"
	"github.com/skerry-os/skerry/pkg/slot"
)

// ConfigName is the node config's name on the config partition, SignatureName its signature's, and ConfigLabel that volume's label.
const (
	ConfigName    = "config.yaml"
	SignatureName = ConfigName + machine.SignatureSuffix
	ConfigLabel   = "SKERRYCFG"
)

// edge is what lies before the first partition and behind the last: room for the tables, and alignment to flash blocks.
const edge = int64(size.MiB)

// blank is how much of the data partition is written, as zeros behind its mark, so that nobody finds a filesystem there.
const blank = 16 * int64(size.MiB)

// Config is a node config as it stands in a file. It may be empty where the board's platform tells the machine what to do.
type Config struct {
	Name   string // for messages
	Data   []byte
	Beside []File // what else is on the config partition, by name
}

// File is one of Besides.
type File struct {
	Name string
	Data []byte
}

// Besides are the names that files beside the node config may have. An image with a table of nodes needs no node config.
var Besides = []string{machine.TableName, seed.Name, SignatureName}

// Options are what a person decides about an image beyond board, release and config.
type Options struct {
	Size         size.Bytes // of the disk; 0 is the least the board needs
	NoSecureBoot bool       // leave out the keys that firmware in setup mode would enrol

	ConfigPolicy machine.Policy      // which node configs the machine takes; "" is what the release says
	ConfigKeys   []ed25519.PublicKey // that may sign node configs, besides the release's
	Trusted      []ed25519.PublicKey // the release's
}

// Plan is a whole disk on paper.
type Plan struct {
	Board      string      `json:"board"`
	Arch       string      `json:"arch"`
	Version    string      `json:"version"`          // of the release
	Debug      bool        `json:"debug,omitempty"`  // it has a shell
	Manifest   string      `json:"manifest"`         // sha256 of the release's manifest
	Config     string      `json:"config"`           // sha256 of the node config
	Beside     string      `json:"beside,omitempty"` // sha256 of what lies beside it, and its names
	Policy     string      `json:"configPolicy,omitempty"`
	SecureBoot bool        `json:"secureBoot"`
	Size       int64       `json:"size"`
	GUID       disk.GUID   `json:"guid"`
	Room       int         `json:"gptEntries,omitempty"` // of the partition table, if it is not 128
	MBR        int         `json:"mbr,omitempty"`        // number of the partition that stands in the MBR too
	BIOS       bool        `json:"bios,omitempty"`       // a boot sector's code is in front of the table
	Partitions []Partition `json:"partitions"`
	Extents    []Extent    `json:"extents"` // by offset; what none of them covers is free and stays a hole
}

// Partition is one partition of the disk.
type Partition struct {
	Name   string    `json:"name"`
	Kind   string    `json:"kind"`
	Start  int64     `json:"start"`
	Size   int64     `json:"size"`
	Type   disk.GUID `json:"type"`
	GUID   disk.GUID `json:"guid"`
	Serial string    `json:"serial,omitempty"` // of a FAT volume
}

// Extent is a range of bytes and its source.
type Extent struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Where  string `json:"where"`  // partition, or gpt, or raw
	What   string `json:"what"`   // such as /EFI/Linux/os-a.efi
	Source string `json:"source"` // "made here", "node config", "zeros", or "release " and the path there
	SHA256 string `json:"sha256,omitempty"`

	data []byte // the bytes, unless they are zeros or a file of the release
	file string // path in the release folder
}

// Sources that are no file of the release.
const (
	made  = "made here"
	typed = "node config"
	zeros = "zeros"
)

// New plans the disk of one machine. It refuses a release that is not for the board, a config with a fault and a size that
// is too small.
func New(b *boards.Board, rel *release.Release, config Config, o Options) (*Plan, error) {
	m := rel.Manifest()
	if m.Arch != b.Arch {
		return nil, fmt.Errorf("release %s: is for %s, board %s is %s; name one built with: skerry release build --arch %s", m.Version, m.Arch, b.ID, b.Arch, b.Arch)
	}
	if _, ok := m.Boards[b.ID]; !ok {
		how := ""
		if b.Platform != "" {
			how = "; name one built with: skerry release build --clouds"
		}
		return nil, fmt.Errorf("release %s: has nothing for board %s, only for %s%s", m.Version, b.ID, strings.Join(m.BoardIDs(), ", "), how)
	}
	switch none := len(config.Data) == 0 && len(config.Beside) == 0; {
	case none && b.Platform == "":
		return nil, fmt.Errorf("board %s: needs a node config; only a cloud tells its machines what to do", b.ID)
	case !none:
		if err := errors.Join(config.check(), checkSignature(config, o)); err != nil {
			return nil, err
		}
	}
	parts, total, err := partitions(b, o.Size)
	if err != nil {
		return nil, err
	}
	d := draft{
		rel: rel, board: b.ID, config: config.Data, beside: config.Beside, secureBoot: !o.NoSecureBoot && b.Slots == boards.UEFI, size: total, parts: parts,
		room: b.Disk.Entries,
	}
	d.bios = b.Disk.Table == boards.BIOS
	if b.Disk.Table == boards.Hybrid {
		d.mbr = 1 // what the firmware reads comes first
	}
	d.policy = string(o.ConfigPolicy)
	if d.configKeys, err = machine.MarshalKeys(o.ConfigKeys); err != nil {
		return nil, err
	}
	return d.plan()
}

// checkSignature refuses a config that the machine would refuse.
func checkSignature(config Config, o Options) error {
	if err := o.ConfigPolicy.Check(); err != nil {
		return err
	}
	return config.checkSignature(o.ConfigPolicy, slices.Concat(o.ConfigKeys, o.Trusted))
}

// checkSignature refuses a config without a signature where the policy wants one, and one whose signature is not right anyhow.
func (c Config) checkSignature(policy machine.Policy, trusted []ed25519.PublicKey) error {
	var sig []byte
	for _, f := range c.Beside {
		if f.Name == SignatureName {
			sig = f.Data
		}
	}
	switch {
	case policy != machine.PolicySigned && sig == nil:
		return nil
	case c.Data == nil:
		return errors.New("a table of nodes has no signature; images that take signed configs only are made for one node each")
	}
	if _, err := machine.VerifyConfig(c.Data, sig, trusted); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

func (c Config) check() error {
	table := false
	for _, f := range c.Beside {
		if !slices.Contains(Besides, f.Name) {
			return fmt.Errorf("%s: is no file that goes beside the node config; known are %s", f.Name, strings.Join(Besides, ", "))
		}
		table = table || f.Name == machine.TableName
	}
	if table && c.Data == nil {
		return nil
	}
	_, err := machine.Decode(c.Name, c.Data)
	return err
}

// partitions lays the board's partitions out one behind the other; the last takes what a larger disk leaves.
func partitions(b *boards.Board, want size.Bytes) ([]Partition, int64, error) {
	var out []Partition
	at := int64(b.Disk.First())
	add := func(name string, p boards.Partition) {
		out = append(out, Partition{Name: name, Kind: p.Kind, Start: at, Size: int64(p.Size), Type: typeOf(name)})
		at += int64(p.Size)
	}
	for _, p := range b.Disk.Partitions {
		if !p.Slots {
			add(p.Name, p)
			continue
		}
		for _, id := range slot.IDs {
			add(p.Name+"-"+string(id), p)
		}
	}
	used := at + edge
	round := cmp.Or(int64(b.Disk.Round), int64(size.MiB))
	least := (used + round - 1) / round * round
	total := cmp.Or(int64(want), least)
	if total < least {
		return nil, 0, fmt.Errorf("image size %v: is too small for board %s; it takes %v or more", want, b.ID, size.Bytes(least))
	}
	if total%round != 0 {
		return nil, 0, fmt.Errorf("image size %v: is not a whole number of %v, which board %s asks for", want, size.Bytes(round), b.ID)
	}
	out[len(out)-1].Size += total - used
	return out, total, nil
}

func typeOf(name string) disk.GUID {
	switch name {
	case boards.ESP:
		return disk.TypeESP
	case boards.Config, boards.Select, slot.A.BootLabel(), slot.B.BootLabel():
		return disk.TypeBasic // so that every PC shows it
	}
	return disk.TypeLinux
}

// draft is what a plan follows from: for New, layout and inputs; for Inspect, what was found on the disk.
type draft struct {
	rel        *release.Release
	board      string
	config     []byte
	beside     []File
	policy     string // of node configs; "" for none of the image's own
	configKeys []byte // PEM
	secureBoot bool
	size       int64
	parts      []Partition
	guid       disk.GUID // zero: derived
	room, mbr  int       // of the table
	bios       bool
}

// plan fills in every byte.
func (d *draft) plan() (*Plan, error) {
	m := d.rel.Manifest()
	manifest, _ := d.rel.Bytes()
	p := &Plan{
		Board: d.board, Arch: m.Arch, Version: m.Version, Debug: m.Debug, SecureBoot: d.secureBoot, Size: d.size, Policy: d.policy,
		Manifest: digest(manifest), Config: digest(d.config), Beside: digestAll(d.beside), GUID: d.guid, Room: d.room, MBR: d.mbr, BIOS: d.bios,
	}
	if p.GUID == (disk.GUID{}) {
		p.GUID = p.guid()
	}
	for _, part := range d.parts {
		part.GUID = disk.GUID(derive(p.GUID, "partition "+part.Name))
		stampV4((*[16]byte)(&part.GUID))
		p.Partitions = append(p.Partitions, part)
	}
	var errs []error
	for i := range p.Partitions {
		part := &p.Partitions[i]
		var err error
		switch part.Name {
		case boards.ESP:
			err = d.esp(p, part)
		case boards.Select:
			err = d.selectVolume(p, part)
		case slot.A.BootLabel(), slot.B.BootLabel():
			err = d.kernelVolume(p, part)
		case boards.Config:
			err = d.configVolume(p, part)
		case boards.Data:
			fresh := datafs.Fresh()
			p.made(part.Start, part.Name, "mark: fresh", fresh)
			p.add(Extent{Offset: part.Start + int64(len(fresh)), Size: min(part.Size, blank) - int64(len(fresh)), Where: part.Name, What: "no filesystem yet", Source: zeros})
		case slot.A.RootLabel(), slot.B.RootLabel():
			err = d.root(p, part)
		default:
			err = fmt.Errorf("partition %s: is not one that images have", part.Name)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	head, tail, err := p.table().Encode()
	if err != nil {
		return nil, err
	}
	for _, f := range d.firmware() {
		if f.To == "" {
			p.release(f.At, "raw", path.Base(f.Path), f.File)
		}
	}
	mbr, at := "protective MBR", 0
	if d.mbr > 0 {
		mbr = "hybrid MBR"
	}
	if d.bios {
		at = disk.CodeSize
	}
	p.made(int64(at), "gpt", mbr+" and first table", head[at:])
	p.made(d.size-int64(len(tail)), "gpt", "second table", tail)
	slices.SortFunc(p.Extents, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	for i, e := range p.Extents[1:] {
		if before := p.Extents[i]; before.Offset+before.Size > e.Offset {
			return nil, fmt.Errorf("%s: %s: starts at %d, inside %s of %s, which ends at %d", e.Where, e.What, e.Offset, before.What, before.Where, before.Offset+before.Size)
		}
	}
	return p, nil
}

func (d *draft) root(p *Plan, part *Partition) error {
	root := d.rel.Manifest().Root
	if room := part.Size - release.TailSize; root.Size > room {
		return fmt.Errorf("partition %s: the release's root is %d bytes and %d fit; the board must give it more", part.Name, root.Size, room)
	}
	tail, err := d.rel.Tail()
	if err != nil {
		return err
	}
	p.release(part.Start, part.Name, "filesystem and hash tree", root.File)
	p.made(part.Start+part.Size-release.TailSize, part.Name, "manifest and signature", tail)
	return nil
}

func (p *Plan) table() *disk.Table {
	t := &disk.Table{Size: p.Size, GUID: p.GUID, Room: p.Room, MBR: p.MBR, BIOS: p.BIOS}
	for _, part := range p.Partitions {
		t.Partitions = append(t.Partitions, disk.Partition{Name: part.Name, Type: part.Type, GUID: part.GUID, Start: part.Start, Size: part.Size})
	}
	return t
}

func (p *Plan) add(e Extent) { p.Extents = append(p.Extents, e) }

func (p *Plan) made(at int64, where, what string, data []byte) {
	p.add(Extent{Offset: at, Size: int64(len(data)), Where: where, What: what, Source: made, SHA256: digest(data), data: data})
}

func (p *Plan) release(at int64, where, what string, f release.File) {
	p.add(Extent{Offset: at, Size: f.Size, Where: where, What: what, Source: "release " + f.Path, SHA256: f.SHA256, file: f.Path})
}

// Written is how many bytes of the disk have a source; the rest are holes.
func (p *Plan) Written() (n int64) {
	for _, e := range p.Extents {
		n += e.Size
	}
	return n
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// digestAll is "" for no files.
func digestAll(files []File) string {
	if len(files) == 0 {
		return ""
	}
	h := sha256.New()
	for _, f := range files {
		_, _ = fmt.Fprintf(h, "%s %s\n", f.Name, digest(f.Data)) // never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// guidFor derives the disk's GUID from all that makes one image differ from another; partition GUIDs and volume serials
// follow from it. Two machines have two configs, so they have two GUIDs.
func guidFor(manifest, config, board string) disk.GUID {
	sum := sha256.Sum256([]byte("skerry image v1\n" + manifest + "\n" + config + "\n" + board + "\n"))
	g := disk.GUID(sum[:16])
	stampV4((*[16]byte)(&g))
	return g
}

func (p *Plan) guid() disk.GUID {
	if p.Beside == "" {
		return guidFor(p.Manifest, p.Config, p.Board)
	}
	return guidFor(p.Manifest, p.Config+" "+p.Beside, p.Board)
}

func derive(g disk.GUID, name string) [16]byte {
	mac := hmac.New(sha256.New, g[:])
	_, _ = mac.Write([]byte(name)) // never fails
	return [16]byte(mac.Sum(nil)[:16])
}

// stampV4 marks the bytes as a random GUID, which is what they look like.
func stampV4(b *[16]byte) { b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 }

func serialFor(g disk.GUID, name string) uint32 {
	b := derive(g, "serial "+name)
	return binary.LittleEndian.Uint32(b[:])
}

// fatTime is the time of every file: the release's, within what FAT can say.
func fatTime(m *release.Manifest) time.Time {
	if least := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC); m.BuildTime.Before(least) {
		return least
	}
	return m.BuildTime
}
