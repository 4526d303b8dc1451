package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/skerry-os/skerry/pkg/release"
)

// served is a repository in memory.
type served map[string][]byte

func (s served) String() string { return "memory" }

func (s served) Open(_ context.Context, name string, at, size int64) (io.ReadCloser, error) {
	data, ok := s[name]
	if all, any := s[""]; any {
		data, ok = all, len(all) > 0
	}
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(io.LimitReader(bytes.NewReader(data[min(at, int64(len(data))):]), size)), nil
}

// Which file the fuzzer writes. All but the first are signed by the keys they must be signed by, so that what is behind the
// signatures is reached: an attacker may have a key.
const (
	partAny = iota // every file, as it is
	partTimestamp
	partSnapshot
	partTargets
	partRoot // the next one
	partNotice
	parts
)

var fuzzNow = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// sealed parses metadata, and signs it anew; what cannot be parsed stays as it is.
func sealed[T metadata.Roles](r *Roles, role string, empty *metadata.Metadata[T], data []byte) ([]byte, *metadata.Metadata[T]) {
	m, err := empty.FromBytes(data)
	if err != nil {
		return data, empty
	}
	m.ClearSignatures()
	if _, err := m.Sign(signer{r.keys[role]}); err != nil {
		return data, empty
	}
	out, err := m.ToBytes(false)
	if err != nil {
		return data, empty
	}
	return out, m
}

// repositoryOf makes a repository with one release, of which one file is data.
func repositoryOf(r *Roles, part byte, data []byte) served {
	must := func(b []byte, err error) []byte {
		if err != nil {
			panic(err)
		}
		return b
	}
	end := fuzzNow.Add(day)
	targets, snapshot, timestamp := metadata.Targets(end), metadata.Snapshot(end), metadata.Timestamp(end)
	notice := must(json.Marshal(Notice{Version: "1.2.3", Arch: "amd64", Boards: []string{"x86-uefi"}, Channel: "stable", Published: fuzzNow, Minimum: "1.0.0", Waves: []Wave{{time.Hour, 5}}}))
	if part == partNotice {
		notice = data
	}
	for _, name := range []string{release.ManifestName, release.SignatureName, "root.idx", "root.img", "root.img.zst", "x86-uefi.efi"} {
		t := metadata.TargetFile()
		t.Path, t.Length, t.Hashes = "amd64/1.2.3/"+name, 7, metadata.Hashes{"sha256": make([]byte, 32)}
		if raw := json.RawMessage(notice); name == release.ManifestName && json.Valid(raw) {
			t.Custom = &raw
		}
		targets.Signed.Targets[t.Path] = t
	}
	files := served{}
	text := map[byte][]byte{partTargets: must(targets.ToBytes(false)), partRoot: nil}
	if part == partTargets {
		text[partTargets] = data
	}
	text[partTargets], targets = sealed(r, metadata.TARGETS, targets, text[partTargets])
	snapshot.Signed.Meta["targets.json"] = metadata.MetaFile(targets.Signed.Version)
	text[partSnapshot] = must(snapshot.ToBytes(false))
	if part == partSnapshot {
		text[partSnapshot] = data
	}
	text[partSnapshot], snapshot = sealed(r, metadata.SNAPSHOT, snapshot, text[partSnapshot])
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(snapshot.Signed.Version)
	text[partTimestamp] = must(timestamp.ToBytes(false))
	if part == partTimestamp {
		text[partTimestamp] = data
	}
	text[partTimestamp], _ = sealed(r, metadata.TIMESTAMP, timestamp, text[partTimestamp])
	// Each under every name that the one before may ask for.
	name := func(m map[string]*metadata.MetaFiles, of string) string {
		if f := m[of]; f != nil {
			return versioned(f.Version, of)
		}
		return versioned(1, of)
	}
	files["metadata/timestamp.json"] = text[partTimestamp]
	asked := timestamp
	if m, err := metadata.Timestamp().FromBytes(text[partTimestamp]); err == nil {
		asked = m
	}
	files["metadata/"+name(asked.Signed.Meta, "snapshot.json")] = text[partSnapshot]
	files["metadata/"+name(snapshot.Signed.Meta, "targets.json")] = text[partTargets]
	if part == partRoot {
		files["metadata/2.root.json"], _ = sealed(r, metadata.ROOT, metadata.Root(end), data)
	}
	if part == partAny {
		files = served{"": data}
	}
	return files
}

func versioned(v int64, name string) string {
	data, _ := json.Marshal(v) // a number
	return string(data) + "." + name
}

// memory gives a folder in memory where there is one: a look makes what it saw durable, and the fuzzer would wait for the disk alone.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "skerry-fuzz-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Whatever a server answers, and even one that has keys, a look at it offers nothing but releases with a place of their own, and
// nobody falls over what they say.
func FuzzMetadata(f *testing.F) {
	roles, err := NewRoles(f.TempDir(), fuzzNow)
	if err != nil {
		f.Fatal(err)
	}
	root, err := roles.Root()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(partRoot), root)
	f.Fuzz(func(t *testing.T, part byte, data []byte) {
		part %= parts
		src := repositoryOf(roles, part, data)
		_, _ = Examine(t.Context(), src, root, fuzzNow)
		k, err := (&Client{Source: src, Root: root, Dir: memory(t), Now: fuzzNow}).Look(t.Context())
		if err != nil {
			return
		}
		if part == partAny {
			t.Errorf("believed, and offered %v", k.Offers)
		}
		for _, o := range k.Offers {
			if o.base != path.Join(o.Arch, o.Version) {
				t.Errorf("%s is offered as %s for %s", o.base, o.Version, o.Arch)
			}
			n := o.Notice
			n.reached(fuzzNow)
			if _, err := k.Package(t.Context(), o, func(_, _ []byte) (*release.Release, error) { return nil, errors.New("not signed") }); err == nil {
				t.Error("a package of a release that is not signed")
			}
		}
		for _, m := range []Machine{{Arch: "amd64", Board: "x86-uefi", Version: "1.1.0", Seed: "s"}, {Arch: "amd64", Board: "x86-uefi", Want: "1.2.3", Force: true}} {
			o, err := Choose(k.Offers, m, fuzzNow)
			if err == nil && (o.Arch != m.Arch || release.CompareVersions(o.Version, m.Version) <= 0) {
				t.Errorf("chose %+v", o)
			}
		}
	})
}

// The fuzzer reaches what is behind the signatures: the repository that it begins with is believed.
func TestFuzzReaches(t *testing.T) {
	roles, err := NewRoles(t.TempDir(), fuzzNow)
	if err != nil {
		t.Fatal(err)
	}
	root, err := roles.Root()
	if err != nil {
		t.Fatal(err)
	}
	whole := repositoryOf(roles, parts, nil)
	for part, data := range map[byte][]byte{
		partTimestamp: whole["metadata/timestamp.json"], partSnapshot: whole["metadata/1.snapshot.json"], partTargets: whole["metadata/1.targets.json"],
		partNotice: []byte(`{"version":"1.2.3","arch":"amd64","channel":"beta"}`),
	} {
		k, err := (&Client{Source: repositoryOf(roles, part, data), Root: root, Dir: memory(t), Now: fuzzNow}).Look(t.Context())
		if err != nil || len(k.Offers) != 1 || part == partNotice && k.Offers[0].Channel != "beta" {
			t.Errorf("part %d: %+v, %v", part, k, err)
		}
	}
}
