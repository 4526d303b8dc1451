package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/skerry-os/skerry/pkg/seed"
)

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
