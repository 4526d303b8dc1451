package fleet

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/releasetest"
)

const three = `apiVersion: skerry/v1alpha1
kind: Fleet
name: home
keys: keys
releases: {amd64: release}
nodes:
  - {name: s1, board: x86-uefi, role: server, address: 192.0.2.10/24, serial: S1}
  - {name: a1, board: x86-uefi, role: agent, serial: A1}
  - {name: a2, board: x86-uefi, role: agent, mac: "02:00:00:00:00:02"}
`

// bench is a fleet's file beside a release and its keys.
type bench struct {
	*releasetest.Bench
	t    testing.TB
	dir  string
	out  string
	keys *Keyring
}

func newBench(t testing.TB, rootSize int) *bench {
	t.Helper()
	r := releasetest.New(t, rootSize)
	dir := filepath.Dir(r.Release)
	return &bench{Bench: r, t: t, dir: dir, out: filepath.Join(dir, "cards"), keys: new(Keyring)}
}

func (b *bench) fleet(text string) *Fleet {
	b.t.Helper()
	name := filepath.Join(b.dir, "fleet.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	f, err := Load(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

func (b *bench) build(text string, o Options) *Report {
	b.t.Helper()
	o.Keys, o.Now = b.keys, time.Unix(1_800_000_000, 0)
	r, err := Build(b.t.Context(), b.fleet(text), b.out, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// partition reads the files on a card's config partition.
func (b *bench) partition(name string) map[string][]byte {
	b.t.Helper()
	built, err := Open(b.out, b.keys)
	if err != nil {
		b.t.Fatal(err)
	}
	card, err := built.Card(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.card(card)
}

func (b *bench) card(card Card) map[string][]byte {
	b.t.Helper()
	built, err := Open(b.out, b.keys)
	if err != nil {
		b.t.Fatal(err)
	}
	d, err := built.Image(card)
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	plan, err := image.Inspect(b.t.Context(), d, d.Size(), b.Trusted())
	if err != nil {
		b.t.Fatalf("%s: %v", card.Name, err)
	}
	if plan.GUID != card.GUID {
		b.t.Errorf("%s: its disk is %v; the index says %v", card.Name, plan.GUID, card.GUID)
	}
	out := map[string][]byte{}
	for _, p := range plan.Partitions {
		if p.Name != "config" {
			continue
		}
		v, err := fat.Read(io.NewSectionReader(d, p.Start, p.Size), p.Size)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, f := range v.Files {
			if out[f.Path], err = io.ReadAll(f.Open()); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	return out
}

// forOwnerAlone says of what others may read.
func (b *bench) forOwnerAlone() {
	b.t.Helper()
	for _, dir := range []string{b.out, filepath.Join(b.dir, "fleet.secrets")} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if info, _ := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				b.t.Errorf("%s: mode %v", path, info.Mode())
			}
			return err
		}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func names(cards []Card) string {
	var out []string
	for _, c := range cards {
		out = append(out, c.Name)
	}
	return strings.Join(out, " ")
}
