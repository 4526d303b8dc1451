package fleet

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/fat"
	"github.com/skerry-os/skerry/image/releasetest"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/token"
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
	d, err := built.Image(card)
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	plan, err := image.Inspect(b.t.Context(), d, d.Size(), b.Trusted())
	if err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	if plan.GUID != card.GUID {
		b.t.Errorf("%s: its disk is %v; the index says %v", name, plan.GUID, card.GUID)
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

// Every card passes its inspection and tells its node what it must know, and the server what the others will ask with.
func TestBuild(t *testing.T) {
	b := newBench(t, 1<<20)
	r := b.build(three, Options{Generic: true})
	if len(r.New) != 3 || len(r.Bases) != 1 {
		t.Errorf("%+v", r)
	}
	files := b.partition("s1")
	s, err := seed.Parse(files[seed.Name])
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Certificate(s.Files[pki.ServerCAFile])
	if err != nil {
		t.Fatal(err)
	}
	if c, err := machine.Decode("s1", files[image.ConfigName]); err != nil || c.Cluster.Token != "" || c.Hostname != "s1" {
		t.Errorf("s1: %+v %v", c, err)
	}
	for i, name := range []string{"a1", "a2"} {
		files := b.partition(name)
		c, err := machine.Decode(name, files[image.ConfigName])
		if err != nil {
			t.Fatal(err)
		}
		tk, err := token.Parse(c.Cluster.Token)
		if err != nil || tk.Pin != token.Pin(ca) || tk.Secret != s.Tokens[i].Secret || s.Tokens[i].Node != name || s.Tokens[i].Server {
			t.Errorf("%s: token %+v %v; the server knows %+v", name, tk.Pin, err, s.Tokens[i].Node)
		}
		if c.Cluster.Server != "https://192.0.2.10:6443" || len(files) != 1 {
			t.Errorf("%s: %+v, %d files", name, c.Cluster, len(files))
		}
	}

	// One card for all: a machine finds its own.
	table, err := machine.ParseTable(b.partition("any-x86-uefi")[machine.TableName])
	if err != nil {
		t.Fatal(err)
	}
	n, err := table.Find(machine.SerialID("s1"))
	if err != nil || n == nil || !bytes.Equal(n.Seed, files[seed.Name]) || !bytes.Equal(n.Config, files[image.ConfigName]) {
		t.Errorf("s1 on the card for all: %v", err)
	}

	// Nothing is for others to read.
	for _, dir := range []string{b.out, filepath.Join(b.dir, "fleet.secrets")} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if info, _ := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: mode %v", path, info.Mode())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// A second build changes nothing; one with another node adds it; what is gone is gone; one whose config changed is made anew.
func TestBuildAgain(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	before := b.partition("s1")
	if r := b.build(three, Options{}); r.Same != 3 || len(r.Changes)+len(r.New)+len(r.Changed)+len(r.Bases) > 0 {
		t.Errorf("nothing changed: %s", r)
	}
	if after := b.partition("s1"); !bytes.Equal(before[seed.Name], after[seed.Name]) {
		t.Error("the cluster was made anew")
	}
	more := strings.Replace(three, "role: agent, serial: A1", "role: agent, labels: [x=y]", 1)
	more = strings.Replace(more, "name: a2", "name: a3", 1)
	r := b.build(more, Options{})
	// The server's card knows the new token, so it changes too.
	if fmt.Sprint(r.New, r.Changed, r.Gone, r.Same) != "[a3] [a1 s1] [a2] 0" {
		t.Errorf("got %v %v %v %v", r.New, r.Changed, r.Gone, r.Same)
	}
	s, err := seed.Parse(b.partition("s1")[seed.Name])
	old, _ := seed.Parse(before[seed.Name])
	if err != nil || !bytes.Equal(s.Files[pki.ServerCAFile], old.Files[pki.ServerCAFile]) || s.Tokens[0] != old.Tokens[0] || s.Tokens[1].Node != "a3" {
		t.Errorf("%v: CA or tokens were made anew", err)
	}
	if _, err := os.Stat(filepath.Join(b.out, "nodes/a2.node")); err == nil {
		t.Error("the card of a node that is gone is still there")
	}
	// A damaged or missing file is made again.
	if err := os.Remove(filepath.Join(b.out, "nodes/a1.node")); err != nil {
		t.Fatal(err)
	}
	if r := b.build(more, Options{}); fmt.Sprint(r.Changed, r.Same) != "[a1] 2" {
		t.Errorf("got %v %v", r.Changed, r.Same)
	}
	other := strings.Replace(three, "name: home", "name: away", 1)
	if _, err := Build(t.Context(), b.fleet(other), b.out, Options{Keys: b.keys, Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "holds fleet home") {
		t.Errorf("another fleet in the same folder: %v", err)
	}
}

// Three servers: the first begins the cluster, the others join it as servers.
func TestServers(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(strings.ReplaceAll(three, "role: agent", "role: server"), Options{})
	s, err := seed.Parse(b.partition("s1")[seed.Name])
	if err != nil || len(s.Tokens) != 2 || !s.Tokens[0].Server || !s.Tokens[1].Server {
		t.Errorf("%v %v", s, err)
	}
	first, _ := machine.Decode("s1", b.partition("s1")[image.ConfigName])
	second, _ := machine.Decode("a1", b.partition("a1")[image.ConfigName])
	if !first.Server.ClusterInit || second.Server.ClusterInit || second.Cluster.Server != "https://192.0.2.10:6443" || second.Cluster.Token == "" {
		t.Errorf("%+v %+v", first.Cluster, second.Cluster)
	}
}

// Encrypted at rest: nothing that was made can be read without the identity, or the passphrase; with it all is as before.
func TestSealed(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		secrets string
		right   *Keyring
		wrong   *Keyring
	}{
		"recipients": {"secrets: {recipients: [" + id.Recipient().String() + "]}\n", &Keyring{Identities: []age.Identity{id}}, new(Keyring)},
		"passphrase": {"secrets: {passphrase: true}\n", &Keyring{Ask: func(bool) (string, error) { return "a passphrase", nil }},
			&Keyring{Ask: func(bool) (string, error) { return "another", nil }}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1<<20)
			b.build(three, Options{}) // it was plain at first
			plain, err := seed.Parse(b.partition("s1")[seed.Name])
			if err != nil {
				t.Fatal(err)
			}
			b.keys = c.right
			b.build(three+c.secrets, Options{})
			secret := []byte(plain.Tokens[0].Secret)
			for _, dir := range []string{b.out, filepath.Join(b.dir, "fleet.secrets")} {
				if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() || strings.HasSuffix(path, ".img") {
						return err
					}
					data, err := os.ReadFile(path)
					if bytes.Contains(data, secret) || bytes.Contains(data, []byte("PRIVATE KEY")) {
						t.Errorf("%s: is not encrypted", path)
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := seed.Parse(b.partition("s1")[seed.Name]); err != nil || got.Tokens[0] != plain.Tokens[0] {
				t.Errorf("the tokens are others: %v", err)
			}
			if r := b.build(three+c.secrets, Options{}); r.Same != 3 {
				t.Errorf("built again: %s", r)
			}
			if _, err := Build(t.Context(), b.fleet(three+c.secrets), b.out, Options{Keys: c.wrong, Now: time.Now()}); err == nil {
				t.Error("built without the identity")
			}
			built, err := Open(b.out, c.wrong)
			if err == nil {
				err = built.Unlock()
			}
			if err == nil {
				t.Error("opened without the identity")
			}
		})
	}
}

// A release that is built again makes all cards new, for the same cluster.
func TestANewRelease(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	m := *b.Signed.Manifest()
	m.Version = "1.2.4"
	b.Sign(t, &m)
	r := b.build(three, Options{})
	if len(r.Changed) != 3 || len(r.Changes) != 0 || len(r.Bases) != 1 {
		t.Errorf("%s", r)
	}
	b.partition("a1")
}

// What the record says is not written twice, unless the card is another by now.
func TestCards(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	open := func() *Built {
		t.Helper()
		built, err := Open(b.out, nil)
		if err != nil {
			t.Fatal(err)
		}
		return built
	}
	built := open()
	if got := names(built.Next(2)); got != "s1 a1" {
		t.Errorf("the first two are %s", got)
	}
	card, err := built.Card("a1")
	if err != nil {
		t.Fatal(err)
	}
	if err := built.Record(card, "/dev/sdb", "/dev/sdb, 32GiB", time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := names(open().Next(5)); got != "s1 a2" || open().Left() != 2 {
		t.Errorf("left are %s", got)
	}
	b.build(strings.Replace(three, "role: agent, serial: A1", "role: agent, labels: [x=y]", 1), Options{})
	if got := names(open().Next(5)); got != "s1 a1 a2" {
		t.Errorf("after a change left are %s", got)
	}
	if _, err := built.Card("nobody"); err == nil {
		t.Error("a node that is none")
	}
}

func names(cards []Card) string {
	var out []string
	for _, c := range cards {
		out = append(out, c.Name)
	}
	return strings.Join(out, " ")
}

// Nodes with larger disks have an image of their own beneath them, and the one of before goes when nobody needs it.
func TestSizes(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	large := strings.ReplaceAll(three, "role:", "size: 2GiB, role:")
	if r := b.build(strings.Replace(large, "size: 2GiB, role: server", "role: server", 1), Options{}); len(r.Bases) != 1 || len(r.Changed) != 2 {
		t.Errorf("%s", r)
	}
	b.partition("a1")
	b.partition("s1")
	b.build(large, Options{})
	if _, err := os.Stat(filepath.Join(b.out, "base-x86-uefi.img")); err == nil {
		t.Error("an image that no node needs is still there")
	}
	b.partition("s1")
}

// Whole images, for those who write them with other programs.
func TestWhole(t *testing.T) {
	b := newBench(t, 1<<20)
	r := b.build(three, Options{Whole: true})
	if !r.Whole {
		t.Error("they are not whole")
	}
	b.partition("a1")
	if r := b.build(three, Options{Whole: true}); r.Same != 3 {
		t.Errorf("built again: %s", r)
	}
	b.build(three, Options{})
	b.partition("a1")
}
