package repository

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/release"
)

// Status is what whoever publishes wants to know of a repository.
type Status struct {
	Where    string          `json:"where"`
	Roles    []RoleStatus    `json:"roles"`
	Releases []ReleaseStatus `json:"releases"` // by channel, architecture, version
	Faults   []Fault         `json:"faults,omitempty"`
}

// RoleStatus is the newest metadata of a role.
type RoleStatus struct {
	Name    string    `json:"name"`
	Version int64     `json:"version"`
	KeyIDs  []string  `json:"keyIDs"`
	Expires time.Time `json:"expires"`
}

// ReleaseStatus is a release and how far it went.
type ReleaseStatus struct {
	Notice
	Percent int       `json:"percent"`       // of the machines that may have it now
	Next    time.Time `json:"next,omitzero"` // when more may
	Bytes   int64     `json:"bytes"`         // of all its files
}

// Fault is something wrong with a repository.
type Fault struct {
	What string `json:"what"`
	Do   string `json:"do"`
}

func (f Fault) String() string { return f.What + "; " + f.Do }

// soon is how long before metadata expires it is named.
const soon = 7 * day

// maxMetadata bounds a file of metadata.
const maxMetadata = 8 << 20

// Examine looks at a repository as a machine would that trusts root, and goes on where a machine would stop. Without root it
// believes the repository's own first one, and says so. Every file is asked for, none is read. An error is the source's.
func Examine(ctx context.Context, src Source, root []byte, now time.Time) (*Status, error) {
	x := &examination{ctx: ctx, src: src, now: now, s: &Status{Where: src.String(), Releases: []ReleaseStatus{}}}
	return x.s, sound(func() error { return x.run(root) })
}

type examination struct {
	ctx  context.Context
	src  Source
	now  time.Time
	s    *Status
	root *metadata.Metadata[metadata.RootType]
}

func (x *examination) fault(do, format string, a ...any) {
	x.s.Faults = append(x.s.Faults, Fault{What: fmt.Sprintf(format, a...), Do: do})
}

const (
	doRefresh = "run: skerry update refresh"
	doRestore = "copy the repository again from where it was published, or publish the release again"
)

func (x *examination) read(name string) ([]byte, error) {
	r, err := x.src.Open(x.ctx, path.Join("metadata", name), 0, maxMetadata+1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err == nil && len(data) > maxMetadata {
		err = fmt.Errorf("%s: is larger than %d bytes", name, maxMetadata)
	}
	return data, err
}

func (x *examination) run(trusted []byte) error {
	if err := x.roots(trusted); err != nil || x.root == nil {
		return err
	}
	timestamp, snapshot, targets := metadata.Timestamp(), metadata.Snapshot(), metadata.Targets()
	next := &metadata.MetaFiles{}
	for _, role := range []struct {
		name string
		load func([]byte) (version int64, expires time.Time, err error)
		next func() *metadata.MetaFiles
	}{
		{metadata.TIMESTAMP, func(data []byte) (int64, time.Time, error) {
			m, err := timestamp.FromBytes(data)
			if err != nil {
				return 0, time.Time{}, err
			}
			timestamp = m
			return m.Signed.Version, m.Signed.Expires, x.root.VerifyDelegate(metadata.TIMESTAMP, m)
		}, func() *metadata.MetaFiles { return timestamp.Signed.Meta["snapshot.json"] }},
		{metadata.SNAPSHOT, func(data []byte) (int64, time.Time, error) {
			m, err := snapshot.FromBytes(data)
			if err != nil {
				return 0, time.Time{}, err
			}
			snapshot = m
			return m.Signed.Version, m.Signed.Expires, x.root.VerifyDelegate(metadata.SNAPSHOT, m)
		}, func() *metadata.MetaFiles { return snapshot.Signed.Meta["targets.json"] }},
		{metadata.TARGETS, func(data []byte) (int64, time.Time, error) {
			m, err := targets.FromBytes(data)
			if err != nil {
				return 0, time.Time{}, err
			}
			targets = m
			return m.Signed.Version, m.Signed.Expires, x.root.VerifyDelegate(metadata.TARGETS, m)
		}, func() *metadata.MetaFiles { return nil }},
	} {
		file := role.name + ".json"
		if role.name != metadata.TIMESTAMP {
			if next == nil {
				x.fault(doRefresh, "the metadata names no %s", role.name)
				return nil
			}
			file = fmt.Sprintf("%d.%s.json", next.Version, role.name)
		}
		data, err := x.read(file)
		if errors.Is(err, fs.ErrNotExist) {
			x.fault(doRestore, "metadata/%s: is missing", file)
			return nil
		}
		if err != nil {
			return err
		}
		version, expires, err := role.load(data)
		if version == 0 && err != nil {
			x.fault(doRestore, "metadata/%s: cannot be read: %v", file, err)
			return nil
		}
		if err != nil {
			x.fault("if its key was changed by `skerry keys rotate`, "+doRefresh+"; if not, somebody else wrote it", "metadata/%s: is not signed by the key of %s: %v", file, role.name, err)
		}
		if role.name != metadata.TIMESTAMP && (version != next.Version || next.VerifyLengthHashes(data) != nil) {
			x.fault(doRestore, "metadata/%s: is not the one that was signed for: files of different days", file)
		}
		x.role(role.name, version, expires)
		next = role.next()
	}
	return x.releases(targets)
}

// roots follows the chain of root metadata from the trusted one to the newest.
func (x *examination) roots(trusted []byte) error {
	if len(trusted) == 0 {
		data, err := x.read("1.root.json")
		if errors.Is(err, fs.ErrNotExist) {
			x.fault("name the folder that `skerry update publish --repo` made", "%s: holds no repository (metadata/1.root.json is missing)", x.src)
			return nil
		}
		if err != nil {
			return err
		}
		trusted = data
		x.fault("name the key folder by --keys, or its root.json by --root", "signatures were checked by the repository's own first root alone, not by yours")
	}
	root, err := parseRoot(trusted)
	if err != nil {
		return fmt.Errorf("root metadata to trust: %w", err)
	}
	for {
		name := fmt.Sprintf("%d.root.json", root.Signed.Version+1)
		data, err := x.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		next, err := parseRoot(data)
		if err == nil {
			err = root.VerifyDelegate(metadata.ROOT, next)
		}
		if err == nil && next.Signed.Version != root.Signed.Version+1 {
			err = fmt.Errorf("says that it is version %d", next.Signed.Version)
		}
		if err != nil {
			x.fault(doRestore, "metadata/%s: machines do not follow it: %v", name, err)
			break
		}
		root = next
	}
	x.root = root
	x.role(metadata.ROOT, root.Signed.Version, root.Signed.Expires)
	for v := int64(1); v <= root.Signed.Version; v++ { // who was made with an old one needs all that came after
		name := fmt.Sprintf("%d.root.json", v)
		if data, err := x.read(name); errors.Is(err, fs.ErrNotExist) {
			x.fault(doRefresh, "metadata/%s: is missing: machines with an older root cannot follow", name)
		} else if err != nil {
			return err
		} else if v == root.Signed.Version && !same(data, root) {
			x.fault("name the key folder that this repository belongs to; machines with the other root refuse it", "metadata/%s: is not the root of your keys", name)
		}
	}
	return nil
}

func same(data []byte, root *metadata.Metadata[metadata.RootType]) bool {
	other, err := metadata.Root().FromBytes(data)
	if err != nil {
		return false
	}
	a, errA := other.ToBytes(false)
	b, errB := root.ToBytes(false)
	return errors.Join(errA, errB) == nil && bytes.Equal(a, b)
}

func (x *examination) role(name string, version int64, expires time.Time) {
	x.s.Roles = append(x.s.Roles, RoleStatus{Name: name, Version: version, KeyIDs: x.root.Signed.Roles[name].KeyIDs, Expires: expires})
	do := doRefresh
	if name == metadata.ROOT {
		do = "run: skerry keys rotate DIR root, then skerry update refresh"
	}
	switch left := expires.Sub(x.now); {
	case left <= 0:
		x.fault(do, "%s: expired %s: machines refuse the repository", name, expires.UTC().Format(time.RFC3339))
	case left < soon:
		x.fault(do, "%s: expires %s: machines refuse the repository then", name, expires.UTC().Format(time.RFC3339))
	}
}

func (x *examination) releases(targets *metadata.Metadata[metadata.TargetsType]) error {
	all := targets.Signed.Targets
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t := all[name]
		if t == nil {
			x.fault("publish the release again", "targets/%s: nothing is said of it", name)
			continue
		}
		sum := t.Hashes["sha256"].String()
		if err := x.there(path.Join("targets", path.Dir(name), sum+"."+path.Base(name)), t.Length); err != nil {
			if !errors.Is(err, errDamaged) {
				return err
			}
			x.fault(doRestore, "targets/%s: %v", name, err)
		}
		if path.Base(name) != release.ManifestName || t.Custom == nil {
			continue
		}
		r := ReleaseStatus{}
		if err := json.Unmarshal(*t.Custom, &r.Notice); err != nil {
			x.fault("publish the release again", "targets/%s: what is said of it cannot be read: %v", name, err)
			continue
		}
		if path.Dir(name) != path.Join(r.Arch, r.Version) {
			x.fault("publish the release again", "targets/%s: says that it is %s for %s", name, r.Version, r.Arch)
		}
		for file, t := range all {
			if t != nil && path.Dir(file) == path.Dir(name) {
				r.Bytes += t.Length
			}
		}
		r.Percent, r.Next = r.reached(x.now)
		x.s.Releases = append(x.s.Releases, r)
	}
	if len(x.s.Releases) == 0 {
		x.fault("publish one: skerry update publish", "holds no release")
	}
	slices.SortFunc(x.s.Releases, func(a, b ReleaseStatus) int {
		return cmp.Or(strings.Compare(a.Channel, b.Channel), strings.Compare(a.Arch, b.Arch), release.CompareVersions(a.Version, b.Version))
	})
	for _, r := range x.s.Releases {
		if r.Minimum == "" {
			continue
		}
		if !slices.ContainsFunc(x.s.Releases, func(o ReleaseStatus) bool {
			return o.Channel == r.Channel && o.Arch == r.Arch && o.Version != r.Version && release.CompareVersions(o.Version, r.Minimum) >= 0 && release.CompareVersions(o.Version, r.Version) < 0
		}) {
			x.fault("publish "+r.Minimum+" or newer in the channel, too", "%s for %s in channel %s: can be had from %s on, and nothing leads machines there that run something older", r.Version, r.Arch, r.Channel, r.Minimum)
		}
	}
	return nil
}

// reached gives the share of machines that may have a release, and when the next share may.
func (n *Notice) reached(now time.Time) (percent int, next time.Time) {
	if len(n.Waves) == 0 {
		return 100, time.Time{}
	}
	for _, w := range n.Waves {
		at := n.Published.Add(w.After)
		if at.After(now) {
			return percent, at
		}
		percent = w.Percent
	}
	return percent, time.Time{}
}

var errDamaged = errors.New("machines cannot fetch it")

// there asks for the last byte of a file.
func (x *examination) there(name string, size int64) error {
	if size == 0 {
		return nil
	}
	r, err := x.src.Open(x.ctx, name, size-1, 1)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("is missing: %w", errDamaged)
	}
	if unreachable := (*url.Error)(nil); errors.As(err, &unreachable) {
		return err
	}
	if err != nil { // a server that has less answers that the range is not there
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != 1 {
		return errors.Join(x.ctx.Err(), fmt.Errorf("is shorter than %d bytes: %w", size, errDamaged))
	}
	return nil
}
