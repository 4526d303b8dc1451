package image

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/skerry-os/skerry/boards"
	"github.com/skerry-os/skerry/image/disk"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/verity"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/release"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/slot"
	"github.com/skerry-os/skerry/pkg/strictyaml"
)

// Fault is a place on a disk that is not as planned.
type Fault struct {
	Where  string // partition, or gpt
	Offset int64  // from the start of the disk
	Msg    string
}

func (f Fault) Error() string { return fmt.Sprintf("%s: offset %d: %s", f.Where, f.Offset, f.Msg) }

// Inspect reads a disk of size bytes as Build made it, and gives the plan it was made from. The image may lie on a larger
// medium. The error joins a Fault for
// every place where a byte that means something is not as planned; a disk that was booted or edited has such places. What
// cannot be read at all leaves the plan nil.
//
// Only the release's signature is taken on trust of keys. From the release and the node config on the disk the whole plan
// follows, and every range of it is compared.
func Inspect(ctx context.Context, r io.ReaderAt, size int64, keys []ed25519.PublicKey) (*Plan, error) {
	i := &inspection{ctx: ctx, r: r, parts: map[string]disk.Partition{}}
	size = disk.SizeOf(r, size)
	table, err := disk.Read(r, size)
	i.inner("gpt", 0, err)
	if table == nil {
		return nil, i.err()
	}
	d := &draft{size: size, guid: table.GUID, secureBoot: true, room: table.Room, mbr: table.MBR, bios: table.BIOS}
	for _, p := range table.Partitions {
		i.parts[p.Name] = p
		d.parts = append(d.parts, Partition{Name: p.Name, Kind: boards.KindOf(p.Name), Start: p.Start, Size: p.Size, Type: typeOf(p.Name)})
	}
	needed := []string{boards.ESP, slot.A.RootLabel(), slot.B.RootLabel(), boards.Config, boards.Data}
	if _, ok := i.parts[boards.Select]; ok {
		needed = append(needed[1:], slot.A.BootLabel(), slot.B.BootLabel())
	}
	missing := false
	for _, name := range needed {
		if _, ok := i.parts[name]; !ok {
			i.fault("gpt", 0, "there is no partition named %s", name)
			missing = true
		}
	}
	if missing {
		return nil, i.err()
	}
	if d.rel = i.release(keys); d.rel == nil {
		return nil, i.err()
	}
	var known bool
	if d.config, d.beside, known = i.config(); !known {
		return nil, i.err()
	}
	i.esp(d)
	if d.board == "" {
		return nil, i.err()
	}
	nodes := slices.ContainsFunc(d.beside, func(f File) bool { return f.Name == machine.TableName })
	if b, err := boards.Load(d.board); d.config == nil && !nodes && (err != nil || b.Platform == "") {
		i.fault(boards.Config, i.parts[boards.Config].Start, "holds no /%s", ConfigName)
		return nil, i.err()
	}
	p, err := d.plan()
	if err != nil {
		return nil, errors.Join(i.err(), err)
	}
	if want := p.guid(); want != p.GUID {
		i.fault(boards.Config, i.configAt, "/%s: was changed since the image was built, or the image was: its disk would be %v and is %v", ConfigName, want, p.GUID)
	}
	for _, e := range p.Extents {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		i.compare(d, e)
	}
	i.configSignature(d, keys)
	i.signatures(p)
	i.kernels(p, d.rel.Manifest().Root)
	return p, i.err()
}

type inspection struct {
	ctx      context.Context
	r        io.ReaderAt
	parts    map[string]disk.Partition
	configAt int64
	faults   []error
	badRoot  bool // a root's digest is wrong, or the tree was checked already
}

func (i *inspection) err() error { return errors.Join(i.faults...) }

func (i *inspection) fault(where string, at int64, format string, a ...any) {
	i.faults = append(i.faults, Fault{where, at, fmt.Sprintf(format, a...)})
}

// inner brings the faults of a format at base to places on the disk.
func (i *inspection) inner(where string, base int64, err error) {
	if err == nil {
		return
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			i.inner(where, base, e)
		}
		return
	}
	var df disk.Fault
	var ff fat.Fault
	var vf verity.Fault
	switch {
	case errors.As(err, &df):
		i.fault(where, base+df.Offset, "%s", df.Msg)
	case errors.As(err, &ff):
		i.fault(where, base+ff.Offset, "%s", ff.Msg)
	case errors.As(err, &vf):
		i.fault(where, base+vf.Offset, "%s", vf.Msg)
	default:
		i.fault(where, base, "%v", err)
	}
}

func (i *inspection) section(name string) *io.SectionReader {
	p := i.parts[name]
	return io.NewSectionReader(i.r, p.Start, p.Size)
}

// release gives the first slot's release whose signature holds. What is wrong with the other slot's shows when it is compared.
func (i *inspection) release(keys []ed25519.PublicKey) *release.Release {
	var errs []Fault
	for _, id := range slot.IDs {
		p := i.parts[id.RootLabel()]
		rel, err := release.ReadTail(i.section(id.RootLabel()), p.Size, keys)
		if err == nil {
			return rel
		}
		errs = append(errs, Fault{id.RootLabel(), p.Start + p.Size - release.TailSize, err.Error()})
	}
	for _, f := range errs {
		i.faults = append(i.faults, f)
	}
	return nil
}

// config gives the node config, which images for clouds need not have, and what is beside it.
func (i *inspection) config() (config []byte, beside []File, ok bool) {
	p := i.parts[boards.Config]
	v, err := fat.Read(i.section(boards.Config), p.Size)
	i.inner(boards.Config, p.Start, err)
	if err != nil {
		return nil, nil, false
	}
	i.configAt = p.Start
	for _, name := range append([]string{ConfigName}, Besides...) {
		n := slices.IndexFunc(v.Files, func(f fat.Found) bool { return f.Path == name })
		if n < 0 {
			continue
		}
		at := p.Start + v.Files[n].Offset()
		if v.Files[n].Size > maxBeside[name] {
			i.fault(boards.Config, at, "/%s: is %d bytes; at most %d are read", name, v.Files[n].Size, maxBeside[name])
			return nil, nil, false
		}
		data, err := io.ReadAll(v.Files[n].Open())
		if err != nil {
			i.fault(boards.Config, at, "/%s: %v", name, err)
			return nil, nil, false
		}
		if name != ConfigName {
			beside = append(beside, File{name, data})
			continue
		}
		config, i.configAt = data, at
		if _, err := machine.Decode("/"+ConfigName, data); err != nil {
			i.inner(boards.Config, at, err)
		}
	}
	return config, beside, true
}

var maxBeside = map[string]int64{ConfigName: strictyaml.MaxBytes, machine.TableName: machine.MaxTableBytes, seed.Name: seed.MaxBytes, SignatureName: release.MaxSignatureBytes}

// small reads a file that says something of the machine; the plan has what it holds.
func (i *inspection) small(where string, f fat.Found) []byte {
	data, err := io.ReadAll(io.LimitReader(f.Open(), strictyaml.MaxBytes))
	if err != nil {
		i.fault(where, i.parts[where].Start+f.Offset(), "/%s: %v", f.Path, err)
	}
	return data
}

// configSignature says whether the machine would take the config.
func (i *inspection) configSignature(d *draft, keys []ed25519.PublicKey) {
	more, err := machine.ParseKeys(d.configKeys)
	if err == nil && len(d.config)+len(d.beside) > 0 {
		err = Config{Name: "/" + ConfigName, Data: d.config, Beside: d.beside}.checkSignature(machine.Policy(d.policy), slices.Concat(more, keys))
	}
	if err != nil {
		i.fault(boards.Config, i.configAt, "%v", err)
	}
}

// esp finds out for which of the release's boards the disk is, and whether it brings Secure Boot keys.
func (i *inspection) esp(d *draft) {
	m := d.rel.Manifest()
	where := []string{boards.ESP}
	if _, ok := i.parts[boards.ESP]; !ok {
		where = []string{boards.Select, slot.A.BootLabel(), slot.B.BootLabel()}
	}
	d.secureBoot = false
	for _, name := range where {
		p := i.parts[name]
		v, err := fat.Read(i.section(name), p.Size)
		i.inner(name, p.Start, err)
		if err != nil {
			d.secureBoot = name == boards.ESP
			continue
		}
		for _, f := range v.Files {
			switch f.Path {
			case machine.ImagePolicyFile:
				d.policy = strings.TrimSpace(string(i.small(name, f)))
			case machine.ImageKeysFile:
				d.configKeys = i.small(name, f)
			}
			d.secureBoot = d.secureBoot || f.Path == "loader/keys/auto/PK.auth"
			if d.board != "" || f.Path != KernelPath(slot.A) && f.Path != KernelPath(slot.B) && f.Path != slot.PiKernel {
				continue
			}
			for _, id := range m.BoardIDs() {
				if m.Boards[id].Slots == boards.GRUB != d.bios { // boards with a BIOS and with UEFI share kernel images
					continue
				}
				if boot := m.Boards[id].Boot; boot.Size == f.Size && boot.Check(f.Open()) == nil {
					d.board = id
					break
				}
			}
		}
	}
	if d.board != "" {
		return
	}
	ids := slices.DeleteFunc(m.BoardIDs(), func(id string) bool { return m.Boards[id].Slots == boards.GRUB != d.bios })
	if len(ids) == 1 {
		d.board = ids[0] // whatever is wrong with its kernel shows when it is compared
		return
	}
	i.fault(where[0], i.parts[where[0]].Start, "neither slot's kernel is that of one of the release's boards")
}

// compare holds a range of the disk against the plan.
func (i *inspection) compare(d *draft, e Extent) {
	section := io.NewSectionReader(i.r, e.Offset, e.Size)
	if e.file == "" {
		if at, err := differs(section, e); err != nil {
			i.fault(e.Where, e.Offset, "%s: %v", e.What, err)
		} else if at >= 0 {
			i.fault(e.Where, e.Offset+at, "%s: is not what belongs here", e.What)
		}
		return
	}
	h := sha256.New()
	if _, err := io.Copy(h, section); err != nil {
		i.fault(e.Where, e.Offset, "%s: %v", e.What, err)
		return
	}
	m := d.rel.Manifest()
	isRoot := e.file == m.Root.Path
	got := hex.EncodeToString(h.Sum(nil))
	if got == e.SHA256 && (!isRoot || i.badRoot) {
		return
	}
	if !isRoot {
		i.fault(e.Where, e.Offset, "%s: sha256 is %.8s; the release says %.8s", e.What, got, e.SHA256)
		return
	}
	// The tree tells which block of a root is wrong, and also whether a right root was released with a wrong tree.
	err := verity.Verify(section, m.Root.DataSize, m.Root.RootHash, m.Root.Salt)
	i.inner(e.Where, e.Offset, err)
	if err == nil && got != e.SHA256 {
		i.fault(e.Where, e.Offset+m.Root.DataSize, "behind the hash tree: sha256 of the whole is %.8s; the release says %.8s", got, e.SHA256)
	}
	i.badRoot = i.badRoot || got == e.SHA256
}

// differs gives the place of the first byte that is not the extent's, or -1.
func differs(r io.Reader, e Extent) (int64, error) {
	buf := make([]byte, block)
	for at := int64(0); at < e.Size; {
		b := buf[:min(block, e.Size-at)]
		if _, err := io.ReadFull(r, b); err != nil {
			return -1, err
		}
		want := zeroBlock[:len(b)]
		if e.Source != zeros {
			want = e.data[at : at+int64(len(b))]
		}
		if !bytes.Equal(b, want) {
			n := 0
			for b[n] == want[n] {
				n++
			}
			return at + int64(n), nil
		}
		at += int64(len(b))
	}
	return -1, nil
}
