package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skerry-os/skerry/pkg/machine"
)

const serverConfig = "apiVersion: skerry/v1alpha1\nkind: NodeConfig\nrole: server\n"

// trust is what the signed kernel image hands over.
func trust(t *testing.T, policy string) (fs.FS, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"release.pub": {Data: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}}
	if policy != "" {
		files[machine.ReleasePolicyFile] = &fstest.MapFile{Data: []byte(policy + "\n")}
	}
	return files, key
}

// Which configs a machine takes, by what its image says and what lies beside the file.
func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, policy, sign string
		want               string // in the error; "" is good
	}{
		{"unsigned, any", "", "", ""},
		{"signed, any", "", "right", ""},
		{"changed after signing, any", "", "changed", "was changed after it was signed"},
		{"unsigned, signed only", "signed", "", "has no signature beside it"},
		{"signed, signed only", "signed", "right", ""},
		{"changed, signed only", "signed", "changed", "was changed after it was signed"},
		{"a stranger's, signed only", "signed", "stranger", "a signature of another key"},
	} {
		fsys, key := trust(t, tt.policy)
		p, err := readPolicy(fsys, nil)
		if err != nil {
			t.Fatal(err)
		}
		data := []byte(serverConfig)
		part := fstest.MapFS{configName: {Data: data}}
		if tt.sign != "" {
			if tt.sign == "stranger" {
				_, key, _ = ed25519.GenerateKey(nil)
			}
			sig, err := machine.SignConfig(data, key)
			if err != nil {
				t.Fatal(err)
			}
			part[configName+machine.SignatureSuffix] = &fstest.MapFile{Data: sig}
		}
		if tt.sign == "changed" {
			part[configName].Data = append(data, "# more\n"...)
		}
		got := readToldFrom(part, p)
		if (got.err == nil) != (tt.want == "") || got.err != nil && !strings.Contains(got.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, got.err, tt.want)
		}
	}
	if _, err := readPolicy(fstest.MapFS{machine.ReleasePolicyFile: {Data: []byte("signed")}}, nil); err == nil {
		t.Error("a policy of signed configs without a key to check them by lets nothing in, and should say so")
	}
	if _, err := readPolicy(fstest.MapFS{machine.ReleasePolicyFile: {Data: []byte("sometimes")}}, nil); err == nil {
		t.Error("a policy that is none was taken")
	}
}

// The image's own word counts where the release has none, and cannot soften the release's, nor add keys to it.
func TestPolicyOfImage(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := machine.MarshalKeys([]ed25519.PublicKey{pub})
	if err != nil {
		t.Fatal(err)
	}
	boot := func(policy string) fs.FS {
		return fstest.MapFS{machine.ImagePolicyFile: {Data: []byte(policy)}, machine.ImageKeysFile: {Data: pem}}
	}
	for _, tt := range []struct {
		release string
		image   fs.FS
		want    machine.Policy
		keys    int
	}{
		{"", nil, "", 1}, {"", boot("signed\n"), machine.PolicySigned, 2}, {"", boot("any"), machine.PolicyAny, 2}, {"", fstest.MapFS{}, "", 1},
		{"signed", boot("any"), machine.PolicySigned, 1}, {"any", boot("signed"), machine.PolicySigned, 2},
	} {
		fsys, _ := trust(t, tt.release)
		p, err := readPolicy(fsys, tt.image)
		if err != nil || p.Policy != tt.want || len(p.keys) != tt.keys {
			t.Errorf("release %q: %q with %d keys, %v; want %q with %d", tt.release, p.Policy, len(p.keys), err, tt.want, tt.keys)
		}
	}
}

func TestReadTold(t *testing.T) {
	if got := readToldFrom(fstest.MapFS{}, policy{Policy: machine.PolicyAny}); got.err == nil || !strings.Contains(got.err.Error(), "holds no config.yaml; write one") {
		t.Errorf("an empty partition: %v", got.err)
	}
}

// signedConfig is a config of the partition and its signature.
func signedConfig(t *testing.T, text string, key ed25519.PrivateKey) told {
	t.Helper()
	sig, err := machine.SignConfig([]byte(text), key)
	if err != nil {
		t.Fatal(err)
	}
	return told{data: []byte(text), sig: sig, config: decode(t, strings.TrimPrefix(text, serverConfig))}
}

func TestLastGoodConfig(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config", "last-good.yaml")
	fsys, key := trust(t, "signed")
	signed, err := readPolicy(fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	loads := func(what string, p policy, want string) {
		t.Helper()
		c, err := loadGood(name, p)
		if want == "" && (err != nil || c == nil || c.Role != machine.RoleServer) || want != "" && (err == nil || c != nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %+v, %v; want %q", what, c, err, want)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := loadGood(name, policy{}); c != nil || err != nil {
		t.Errorf("before the first: %v, %v", c, err)
	}
	good := signedConfig(t, serverConfig+"hostname: north-1\n", key)
	for _, c := range []told{{data: []byte(serverConfig)}, good, good} {
		if err := keepGood(name, c); err != nil {
			t.Fatal(err)
		}
		loads("kept", policy{}, "")
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("it holds the token: %v", err)
	}
	loads("signed", signed, "")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := machine.Decode(name, text); err != nil {
		t.Errorf("older releases cannot read it: %v", err)
	}

	// Whoever has the disk in hand writes what they like.
	_, stranger, _ := ed25519.GenerateKey(nil)
	write(strings.Replace(string(text), "north-1", "north-2", 1))
	loads("changed", signed, "was changed after it was signed")
	write(serverConfig)
	loads("of an older release, or a stranger's", signed, "has no signature beside it")
	loads("of an older release", policy{}, "")
	if err := keepGood(name, signedConfig(t, serverConfig, stranger)); err != nil {
		t.Fatal(err)
	}
	loads("a stranger's", signed, "a signature of another key")
	write(goodMark + "{\n" + serverConfig)
	loads("a damaged signature", signed, "cannot be read")
	write("role: chief\n")
	loads("a damaged one", policy{}, "last-good.yaml:1")
}

// A machine that takes signed configs alone goes back to no network config that somebody wrote onto its data.
func TestSignedNetwork(t *testing.T) {
	fsys, key := trust(t, "signed")
	p, err := readPolicy(fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &system{policy: p}
	n := signedNetwork{s, filepath.Join(t.TempDir(), "network", "signed.yaml")}
	if err := n.Keep(machine.Network{}); err != nil {
		t.Error(err)
	}
	if got, err := n.Last(); got != nil || err != nil {
		t.Errorf("nothing was told yet: %v, %v", got, err)
	}
	told := signedConfig(t, serverConfig+"network: {nameservers: [192.0.2.1]}\n", key)
	s.inForce.Store(&told)
	if err := errors.Join(n.Keep(machine.Network{}), n.Keep(told.config.Network)); err != nil {
		t.Error(err)
	}
	if got, err := n.Last(); err != nil || got == nil || len(got.Nameservers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(n.file, []byte(serverConfig+"network: {nameservers: [192.0.2.66]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Last(); err == nil || got != nil {
		t.Errorf("believed what was written there: %+v, %v", got, err)
	}
}

// The page says what is wrong and where, and holds nothing that a person typed.
func TestWaitingPage(t *testing.T) {
	p := &waitingPage{identity: machine.Identity{Release: machine.Release{Version: "1.2.3", Kubernetes: "v1.37.2"}, Boot: machine.Boot{Slot: "a", Board: "x86-uefi"}}}
	_, err := machine.Decode(configName, []byte(serverConfig+"hostname: \"Hunter 2\"\nserver: {debug: hunter3}\nhunter4: 5\n"))
	p.set("a node config", err.Error(), editConfig)
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	body := w.Body.String()
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(body, "config.yaml:6:1: unknown key") || !strings.Contains(body, "waits for a node config") || !strings.Contains(body, "SKERRYCFG") {
		t.Errorf("%d\n%s", w.Code, body)
	}
	if strings.Contains(strings.ToLower(body), "hunter") {
		t.Errorf("the page tells what was typed:\n%s", body)
	}
	w = httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x")))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

func decode(t *testing.T, more string) *machine.Config {
	t.Helper()
	c, err := machine.Decode(configName, []byte(serverConfig+more))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a running machine takes up, and what it says needs a restart; what was taken back needs none.
func TestDifferences(t *testing.T) {
	for _, tt := range []struct{ before, after, differs, restart string }{
		{"", "", "", ""},
		{"", "sysctls: {a.b: 1}\n", "sysctls", ""},
		{"", "hostname: n\nserver: {debug: true}\n", "hostname server", "hostname server"},
		{"", "network: {nameservers: [192.0.2.1]}\nntp: {servers: []}\n", "network ntp", ""},
		{"", "network: {proxy: {http: \"http://p:1\"}}\n", "network", "network.proxy"},
		{"", "files: [{path: /var/x, content: a}]\n", "files", ""},
		{"", "files: [{path: /etc/motd, content: a}]\n", "files", "files below /etc"},
		{"cluster: {token: abcdefghijklmnop}\n", "cluster: {token: abcdefghijklmnoq}\n", "cluster", "cluster"},
		{"data: {size: 2GiB}\n", "data: {size: 3GiB}\nmounts: [{device: /dev/sdb1, path: /var/mnt/x}]\n", "data mounts", "data mounts"},
	} {
		a, b := decode(t, tt.before), decode(t, tt.after)
		if got := strings.Join(differences(a, b), " "); got != tt.differs {
			t.Errorf("%q: %q differ, want %q", tt.after, got, tt.differs)
		}
		if got := strings.Join(needRestart(a, b), " "); got != tt.restart {
			t.Errorf("%q: %q need a restart, want %q", tt.after, got, tt.restart)
		}
	}
}

// A config that changed while the machine runs: what can be taken up is, the rest is said, and a refused one changes nothing.
func TestTakeUp(t *testing.T) {
	c, read := pipeConsole(t)
	s := &system{console: c, time: newTimekeeper(), config: decode(t, "")}
	kept := changes
	t.Cleanup(func() { changes = kept })
	var did []string
	changes = []change{{"sysctls", func(_ context.Context, _ *system, c *machine.Config) error {
		did = append(did, c.Sysctls["a.b"])
		return nil
	}}}
	next := s.takeUp(t.Context(), s.config, decode(t, "sysctls: {a.b: 7}\nhostname: n\n"))
	if !slices.Equal(did, []string{"7"}) || s.notes["restart"] != "the config's hostname changed; restart the machine for it" {
		t.Errorf("did %v, notes %v", did, s.notes)
	}
	s.takeUp(t.Context(), next, decode(t, "sysctls: {a.b: 7}\n"))
	if len(did) != 1 || s.notes["restart"] != "" {
		t.Errorf("taken back: did %v, notes %v", did, s.notes)
	}
	want := "skerry: config: changed and in force: sysctls\nskerry: config: changed, and needs a restart of the machine: hostname\n"
	if got := read(false); got != want {
		t.Errorf("says\n%swant\n%s", got, want)
	}
}

// Files that the config brings are there, with their modes; those that it brings no more are not, and nobody else's are touched.
func TestFilesOnData(t *testing.T) {
	root := t.TempDir()
	if err := makeDirs(root); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(root, name) }
	is := func(name, content string, mode fs.FileMode) {
		t.Helper()
		data, err := os.ReadFile(at(name))
		if err != nil || content != "" && string(data) != content {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if st, err := os.Stat(at(name)); err == nil && st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v", name, st.Mode(), mode)
		}
	}
	gone := func(name string) {
		t.Helper()
		if _, err := os.Stat(at(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := os.MkdirAll(at("/var/lib/skerry/server/manifests"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("/var/lib/skerry/server/manifests/mine.yaml"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := decode(t, `files:
  - {path: /var/lib/app/a.conf, content: one}
  - {path: /etc/skerry/b.conf, content: two, mode: "0600"}
  - {path: /etc/motd, content: three}
manifests: {hello: "apiVersion: v1\nkind: Namespace\n"}
registries: {mirrors: {docker.io: {endpoint: ["https://m.example"]}}}
`)
	for range 2 {
		if err := writeKept(root, first); err != nil {
			t.Fatal(err)
		}
	}
	is("/var/lib/app/a.conf", "one", 0o644)
	is("/var/lib/skerry/etc/b.conf", "two", 0o600)
	is("/var/lib/skerry/server/manifests/config-hello.yaml", "apiVersion: v1\nkind: Namespace\n", 0o600)
	is("/var/lib/skerry/etc/registries.yaml", "", 0o600)
	gone("/etc/motd")
	if l := layered(first); len(l) != 1 || string(l["/etc/motd"].data) != "three" {
		t.Errorf("over /etc: %v", l)
	}
	if err := writeKept(root, decode(t, "files: [{path: /var/lib/app/a.conf, content: four}]\n")); err != nil {
		t.Fatal(err)
	}
	is("/var/lib/app/a.conf", "four", 0o644)
	is("/var/lib/skerry/server/manifests/mine.yaml", "x", 0o600)
	gone("/var/lib/skerry/etc/b.conf")
	gone("/var/lib/skerry/server/manifests/config-hello.yaml")
	gone("/var/lib/skerry/etc/registries.yaml")
}

// Everything on data goes when the word is a new one, once, and never because a config is missing or silent.
func TestWipeWord(t *testing.T) {
	root := t.TempDir()
	word := func(w string) dataOptions { return dataOptions{true, machine.Data{Wipe: w}} }
	step := func(d dataOptions, want bool) {
		t.Helper()
		got, err := d.wipes(root)
		if err != nil || got != want {
			t.Errorf("%q: wipes %v, %v; want %v", d.Wipe, got, err, want)
		}
		if err := d.keepWord(root); err != nil {
			t.Error(err)
		}
	}
	step(word("one"), false) // the first start finds nothing
	step(word("one"), false)
	step(dataOptions{}, false)
	step(word("two"), true)
	step(word("two"), false)
	step(word(""), false)
	old := t.TempDir() // a machine of before there was the word
	root = old
	if err := makeDirs(root); err != nil {
		t.Fatal(err)
	}
	step(word(""), false)
	step(word("one"), true)
	step(word("one"), false)
}

func TestVolumes(t *testing.T) {
	if got := strings.Join(kept([]string{"noatime", "data=ordered", "rw"}), ","); got != "data=ordered" {
		t.Errorf("options %s", got)
	}
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if blank, err := isBlank(name); err != nil || !blank {
		t.Errorf("an empty disk: %v, %v", blank, err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 1<<20-1); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if blank, err := isBlank(name); err != nil || blank {
		t.Errorf("one with a byte on it: %v, %v", blank, err)
	}
}
