package fleet

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
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
	"github.com/skerry-os/skerry/image/patch"
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
	for _, id := range []string{machine.SerialID("a1"), machine.MACID("02:00:00:00:00:02")} {
		if n, err := table.Find(id); err != nil || n == nil || len(n.Seed) > 0 || len(n.Config) == 0 {
			t.Errorf("an agent on the card for all has the cluster's keys, or nothing: %v", err)
		}
	}
	b.forOwnerAlone()

	// A machine without a clock of its own begins at the release's time, and must find the authority valid.
	block, _ := pem.Decode(ca)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if made := b.Signed.Manifest().BuildTime; cert.NotBefore.After(made) {
		t.Errorf("the authority begins at %v, the machines' clocks at %v", cert.NotBefore, made)
	}
	lost := strings.Replace(three, ", serial: A1", "", 1)
	if _, err := Build(t.Context(), b.fleet(lost), b.out, Options{Generic: true, Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "a1: has neither serial nor mac") {
		t.Errorf("a node that cannot find itself: %v", err)
	}
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

// A build that does not end leaves nothing behind that is taken for what it is not, whatever the fleet's file says next.
func TestBuildThatDidNotEnd(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	before := b.partition("a1")
	stuck := filepath.Join(b.out, "nodes/a2.node")
	if err := os.Remove(stuck); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(stuck, 0o700); err != nil { // a card that cannot be written
		t.Fatal(err)
	}
	more := strings.ReplaceAll(three, "role: agent,", "role: agent, labels: [x=y],")
	for range 2 {
		if _, err := Build(t.Context(), b.fleet(more), b.out, Options{Now: time.Now()}); err == nil {
			t.Fatal("it ended")
		}
		if _, err := Open(b.out, nil); err == nil || !strings.Contains(err.Error(), "did not end") {
			t.Errorf("its cards can be written: %v", err)
		}
	}
	if err := os.Remove(stuck); err != nil {
		t.Fatal(err)
	}
	if r := b.build(three, Options{}); r.Same != 0 || len(r.Changed) != 3 || len(r.Bases) != 1 {
		t.Errorf("the next build: %s", r)
	}
	if after := b.partition("a1"); !bytes.Equal(before[image.ConfigName], after[image.ConfigName]) {
		t.Errorf("a1 has %s", after[image.ConfigName])
	}
	if r := b.build(three, Options{}); r.Same != 3 {
		t.Errorf("the one after that: %s", r)
	}
}

// What the folder says of itself is held against what is there.
func TestFolderThatWasChanged(t *testing.T) {
	b := newBench(t, 1<<20)
	b.build(three, Options{})
	index := filepath.Join(b.out, IndexName)
	good, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for old, tt := range map[string]struct{ change, says string }{
		`"schema": 1`:                 {`"schema": 2`, "is of form 2"},
		`"file": "nodes/a1.node"`:     {`"file": "../nodes/a1.node"`, "outside of its folder"},
		`"base": "base-x86-uefi.img"`: {`"base": "/dev/sda"`, "outside of its folder"},
		`"file": "base-x86-uefi.img"`: {`"file": "../base-x86-uefi.img"`, "outside of its folder"},
		`"bases": [`:                  {`"bases": [[`, "fleet.json"},
	} {
		bad := bytes.ReplaceAll(good, []byte(old), []byte(tt.change))
		write(index, bad)
		_, oerr := Open(b.out, nil)
		_, berr := Build(t.Context(), b.fleet(three), b.out, Options{Now: time.Now()})
		for _, err := range []error{oerr, berr} {
			if bytes.Equal(bad, good) || err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v", tt.change, err)
			}
		}
	}
	// A base of another make: the cards were made over it and are of no use over the new one.
	built, err := LoadIndex(b.out)
	if err == nil {
		t.Fatal(built)
	}
	write(index, good)
	if built, err = LoadIndex(b.out); err != nil {
		t.Fatal(err)
	}
	guid := built.Bases[0].GUID.String()
	write(index, bytes.Replace(good, []byte(guid), []byte("0"+guid[1:7]+"0"+guid[8:]), 1))
	if r := b.build(three, Options{}); len(r.Bases) != 1 || len(r.Changed) != 3 {
		t.Errorf("over another base: %s", r)
	}
	b.partition("a1")
	// A base that is not whole.
	if err := os.Truncate(filepath.Join(b.out, "base-x86-uefi.img"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if r := b.build(three, Options{}); len(r.Bases) != 1 {
		t.Errorf("a base that is not whole: %s", r)
	}
	b.partition("a1")
	// A card that would fill the memory.
	if err := os.Truncate(filepath.Join(b.out, "nodes/a1.node"), patch.MaxBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPatch(filepath.Join(b.out, "nodes/a1.node"), nil); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a card that is too large: %v", err)
	}
	// Secrets in a form of a later version are not written over.
	state := filepath.Join(b.dir, "fleet.secrets/secrets.json")
	data, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	later := bytes.Replace(data, []byte(`"schema": 1`), []byte(`"schema": 2`), 1)
	write(state, later)
	if _, err := Build(t.Context(), b.fleet(three), b.out, Options{Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "is of form 2") {
		t.Errorf("secrets of a later version: %v", err)
	}
	if data, err := os.ReadFile(state); err != nil || !bytes.Equal(data, later) {
		t.Errorf("the secrets were written over: %v", err)
	}
}

// Who is no recipient any more opens nothing that is built from then on; without encryption again, nothing is left of it.
func TestOtherRecipients(t *testing.T) {
	var ids []*age.X25519Identity
	for range 2 {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	first, second := ids[0].Recipient().String(), ids[1].Recipient().String()
	b := newBench(t, 1<<20)
	b.keys = &Keyring{Identities: []age.Identity{ids[1]}}
	sealed := []string{filepath.Join(b.dir, "fleet.secrets/secrets.age"), filepath.Join(b.out, "key.age")}
	opens := func(name string, id age.Identity) bool {
		t.Helper()
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&Keyring{Identities: []age.Identity{id}}).open(data)
		return err == nil
	}
	for _, to := range []string{first + ", " + second, second, first + ", " + second} {
		b.build(three+"secrets: {recipients: ["+to+"]}\n", Options{})
		b.forOwnerAlone()
		for _, name := range sealed {
			if opens(name, ids[0]) != strings.Contains(to, first) || !opens(name, ids[1]) {
				t.Errorf("%s: is not for %s alone", name, to)
			}
		}
	}
	locked := three + "secrets: {recipients: [" + first + ", " + second + "]}\n"
	if _, err := Build(t.Context(), b.fleet(locked), b.out, Options{Whole: true, Keys: b.keys, Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "cannot be encrypted") {
		t.Errorf("whole images of a fleet whose secrets are encrypted: %v", err)
	}
	for name, keys := range map[string]*Keyring{"no identity": {}, "no passphrase": {Ask: func(bool) (string, error) { return "", nil }}} {
		if _, err := keys.open([]byte("age-encryption.org/v1\n-> scrypt x\n")); err == nil {
			t.Errorf("%s: it opens", name)
		}
		if _, err := Build(t.Context(), b.fleet(locked), b.out, Options{Keys: keys, Now: time.Now()}); !errors.Is(err, ErrLocked) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Secrets{Passphrase: true}).seal(&Keyring{Ask: func(bool) (string, error) { return "", nil }}, nil); err == nil || !strings.Contains(err.Error(), "passphrase is empty") {
		t.Errorf("an empty passphrase: %v", err)
	}
	b.build(three, Options{})
	b.keys = nil
	b.partition("a1")
	for _, name := range sealed {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: is still there: %v", name, err)
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
	b.build(strings.ReplaceAll(three, "role: agent, serial: A1", "role: server, address: 192.0.2.11/24")+"  - {name: s3, board: x86-uefi, role: server}\n", Options{})
	s, err := seed.Parse(b.partition("s1")[seed.Name])
	if err != nil {
		t.Fatal(err)
	}
	servers := ""
	for _, token := range s.Tokens {
		if token.Server {
			servers += token.Node + " "
		}
	}
	if servers != "s1 a1 s3 " { // the first too, for when its card is written again
		t.Errorf("these may join as servers: %s", servers)
	}
	if got := strings.Join(s.Servers, " "); got != "https://192.0.2.11:6443" {
		t.Errorf("it asks %q whether there is a cluster", got)
	}
	first, _ := machine.Decode("s1", b.partition("s1")[image.ConfigName])
	second, _ := machine.Decode("a1", b.partition("a1")[image.ConfigName])
	if !first.Server.ClusterInit || second.Server.ClusterInit || second.Cluster.Server != "https://192.0.2.10:6443" || second.Cluster.Token == "" {
		t.Errorf("%+v %+v", first.Cluster, second.Cluster)
	}
	if third, _ := machine.Decode("s3", b.partition("s3")[image.ConfigName]); third.Cluster.Server != "https://192.0.2.10:6443,https://192.0.2.11:6443" {
		t.Errorf("the third joins through %s", third.Cluster.Server)
	}
}

// One cluster, however often the first server's card is written, and whoever the first is: only the first card that is written begins
// it, and another that would is one that joins. A person may say otherwise. One server has nobody who knows its cluster.
func TestOneCluster(t *testing.T) {
	b := newBench(t, 1<<20)
	servers := strings.ReplaceAll(strings.ReplaceAll(three, "role: agent", "role: server"), "serial: A1", "address: 192.0.2.11/24")
	servers = strings.ReplaceAll(servers, "{name: s1,", "{name: s0, board: x86-uefi, role: server, address: 192.0.2.20/24}\n  - {name: s1,")
	servers = strings.ReplaceAll(servers, "  - {name: a2,", "  - {name: a3, board: x86-uefi, role: server}\n  - {name: a2,")
	b.build(servers, Options{})
	b.forOwnerAlone()
	open := func() *Built {
		t.Helper()
		built, err := Open(b.out, b.keys)
		if err != nil {
			t.Fatal(err)
		}
		return built
	}
	first, err := open().Card("s0")
	if err != nil || first.Again == "" {
		t.Fatalf("%+v %v", first, err)
	}
	if open().Begun() {
		t.Error("begun before a card was written")
	}
	if err := open().Record(first, "/dev/sdb", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if built := open(); !built.Begun() || !built.Done(first) {
		t.Error("not begun by its card")
	}
	joins := func(name, server string) {
		t.Helper()
		built := open()
		card, err := built.Card(name)
		if err != nil {
			t.Fatal(err)
		}
		card = built.Join(card)
		files := b.card(card)
		c, err := machine.Decode(name, files[image.ConfigName])
		if err != nil {
			t.Fatal(err)
		}
		if _, has := files[seed.Name]; has || c.Server.ClusterInit || c.Cluster.Server != server || c.Cluster.Token == "" || c.Role != machine.RoleServer {
			t.Errorf("%s: a card that begins a cluster again: %+v, seed %v", name, c.Cluster, has)
		}
		if err := built.Record(card, "/dev/sdb", "", time.Now()); err != nil {
			t.Fatal(err)
		}
		if built := open(); !built.Begun() || !built.Done(card) {
			t.Errorf("%s: not done", name)
		}
	}
	joins("s0", "https://192.0.2.10:6443,https://192.0.2.11:6443")
	// The first is taken out of the file, and its file is gone.
	without := strings.Replace(servers, "{name: s0, board: x86-uefi, role: server, address: 192.0.2.20/24}\n  - ", "", 1)
	without = strings.Replace(without, "  - {name: a3, board: x86-uefi, role: server}\n", "", 1)
	b.build(without, Options{})
	if _, err := os.Stat(filepath.Join(b.out, first.Again)); err == nil {
		t.Error("a card of a node that is gone is still there")
	}
	joins("s1", "https://192.0.2.11:6443")
	if c, err := open().Card("a1"); err != nil || open().Join(c) != c {
		t.Errorf("a card that joins anyhow is another: %v", err)
	}
	b.build(three, Options{})
	if c, err := open().Card("s1"); err != nil || c.Again != "" {
		t.Errorf("the only server: %+v %v", c, err)
	}
}

// A file with secrets in it is for its owner alone, wherever in it they are; one without may be read by all.
func TestPrivateFile(t *testing.T) {
	b := newBench(t, 1<<20)
	for name, c := range map[string]struct{ text, says string }{
		"none":              {three, ""},
		"a passphrase":      {three + "wifi: {ssid: home, passphrase: \"long enough\", country: DE}\n", "10:20: passphrase: is a secret"},
		"a node's":          {three + "  - {name: a3, board: x86-uefi, role: agent, wifi: {ssid: x, passphrase: \"long enough\", country: DE}}\n", "passphrase: is a secret"},
		"a registry's":      {three + "config: {registries: {configs: {r.example.org: {auth: {username: u, password: p}}}}}\n", "password: is a secret"},
		"of S3":             {three + "config: {server: {s3: true, s3-bucket: b, s3-access-key: a, s3-secret-key: k}}\n", "is a secret"},
		"a private key":     {three + "config: {files: [{path: /etc/x, content: \"-----BEGIN EC PRIVATE KEY-----\"}]}\n", "a private key: is a secret"},
		"a passphrase's no": {three + "secrets: {passphrase: true}\n", ""},
	} {
		file := filepath.Join(b.dir, "private.yaml")
		_ = os.Remove(file)
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Load(file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := f.Check(); err != nil {
			t.Errorf("%s, for its owner alone: %v", name, err)
		}
		for _, mode := range []os.FileMode{0o640, 0o604} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			_, berr := Build(t.Context(), f, filepath.Join(b.dir, "none"), Options{Keys: b.keys, Now: time.Now()})
			for _, err := range []error{f.Check(), berr} {
				if c.says == "" && strings.Contains(fmt.Sprint(err), "secret, and") || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "chmod 600")) {
					t.Errorf("%s, %o: %v", name, mode, err)
				}
			}
		}
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
			before := map[string]*os.File{} // what they lead to stays when another takes the name
			for _, name := range []string{filepath.Join(b.out, "nodes", "s1.node"), filepath.Join(b.out, "nodes", "a1.node"), filepath.Join(b.dir, "fleet.secrets", "secrets.json")} {
				if before[name], err = os.Open(name); err != nil {
					t.Fatal(err)
				}
			}
			b.keys = c.right
			b.build(three+c.secrets, Options{})
			secret := []byte(plain.Tokens[0].Secret)
			for _, tmp := range []string{filepath.Join(b.dir, "fleet.secrets", "secrets.json"), filepath.Join(b.dir, "fleet.secrets", ".secrets.json.tmp-1"), filepath.Join(b.out, "nodes", ".a1.img.tmp-1")} {
				if err := os.WriteFile(tmp, secret, 0o600); err != nil { // what a build leaves that loses power after it has stored them encrypted
					t.Fatal(err)
				}
			}
			if r := b.build(three+c.secrets, Options{}); r.Same != 3 || len(r.Changes) > 0 {
				t.Errorf("built after the cut: %s", r)
			}
			for name, f := range before {
				was := make([]byte, 64<<10)
				n, err := f.ReadAt(was, 0)
				if n == 0 || len(bytes.Trim(was[:n], "\x00")) > 0 {
					t.Errorf("%s was not erased before another took its place: %d bytes, %v", name, n, err)
				}
				_ = f.Close()
			}
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
	b.forOwnerAlone()
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
