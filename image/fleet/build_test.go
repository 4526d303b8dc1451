package fleet

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image"
	"github.com/skerry-os/skerry/image/patch"
	"github.com/skerry-os/skerry/pkg/machine"
	"github.com/skerry-os/skerry/pkg/pki"
	"github.com/skerry-os/skerry/pkg/seed"
	"github.com/skerry-os/skerry/pkg/token"
)

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
