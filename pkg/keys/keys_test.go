package keys

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewLoadsBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	made, err := New(dir, "Test", Source{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.ReleaseID() != made.ReleaseID() || got.GUID != made.GUID || got.CanBuild() != nil || !got.Release.Here() {
		t.Errorf("release key %s and guid %s came back as %s and %s", made.ReleaseID(), made.GUID, got.ReleaseID(), got.GUID)
	}
	for i, p := range got.Pairs() {
		if want := made.Pairs()[i]; p.Key.ID() != want.Key.ID() || !p.Key.Here() || !p.Cert.Equal(want.Cert) || p.Name != want.Name {
			t.Errorf("%s came back as another", want.Name)
		}
		if err := p.Cert.CheckSignatureFrom(p.Cert); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	want := map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "release.key": 0o600, "PK.key": 0o600, "KEK.key": 0o600, "db.key": 0o600,
		"release.pub": 0o644, "PK.crt": 0o644, "KEK.crt": 0o644, "db.crt": 0o644, "guid": 0o644,
		"PK.auth": 0o644, "KEK.auth": 0o644, "db.auth": 0o644,
	}
	err = fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode() != want[p] {
			t.Errorf("%s has mode %v, want %v", p, info.Mode(), want[p])
		}
		delete(want, p)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("missing %v, %v", want, err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir() // empty: may become a key folder
	if _, err := New(dir, "Test", Source{}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "release.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir, "Test", Source{}); err == nil || !strings.Contains(err.Error(), "never overwritten") {
		t.Errorf("second time: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "release.key"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the release key changed (%v)", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*.tmp-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Each damage makes Load fail with an error that names the file and says what is wrong with it.
func TestDamageIsNamed(t *testing.T) {
	base, other := filepath.Join(t.TempDir(), "base"), filepath.Join(t.TempDir(), "other")
	for _, d := range []string{base, other} {
		if _, err := New(d, "Test", Source{}); err != nil {
			t.Fatal(err)
		}
	}
	take := func(dir, from, name, as string) error {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, as), data, 0o600)
	}
	files, err := filepath.Glob(filepath.Join(base, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		damage func(dir string) error
		want   []string
	}{
		"missing":    {func(d string) error { return os.Remove(filepath.Join(d, "db.crt")) }, []string{"db.crt", "no such file"}},
		"two":        {func(d string) error { _ = os.Remove(d + "/PK.crt"); return os.Remove(d + "/guid") }, []string{"PK.crt", "guid"}},
		"other auth": {func(d string) error { return take(d, other, "db.auth", "db.auth") }, []string{"db.auth", "parts of two"}},
		"cut auth":   {func(d string) error { return os.Truncate(d+"/db.auth", 90) }, []string{"db.auth"}},
		"open":       {func(d string) error { return os.Chmod(d+"/KEK.key", 0o644) }, []string{"KEK.key", "chmod 600"}},
		"empty":      {func(d string) error { return os.Truncate(d+"/release.key", 0) }, []string{"release.key", "holds no PEM"}},
		"kind":       {func(d string) error { return take(d, d, "db.key", "release.key") }, []string{"release.key", "parts of two"}},
		"kind2":      {func(d string) error { return take(d, d, "release.key", "db.key") }, []string{"db.key", "parts of two"}},
		"other pub":  {func(d string) error { return take(d, other, "release.pub", "release.pub") }, []string{"release.key", "parts of two"}},
		"other cert": {func(d string) error { return take(d, other, "db.crt", "db.crt") }, []string{"db.key", "parts of two"}},
		"bad guid":   {func(d string) error { return os.WriteFile(d+"/guid", []byte("x"), 0o600) }, []string{"guid", "not a GUID"}},
		"bad cert":   {func(d string) error { return os.WriteFile(d+"/PK.crt", []byte("x"), 0o600) }, []string{"PK.crt", "no PEM certificate"}},
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := take(dir, base, filepath.Base(f), filepath.Base(f)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.damage(dir); err != nil {
			t.Fatal(err)
		}
		_, err := Load(dir, nil)
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: got %v, want %q", name, err, w)
			}
		}
	}
	for _, dir := range []string{filepath.Join(base, "nowhere"), filepath.Join(base, "guid")} {
		if _, err := Load(dir, nil); err == nil || !strings.Contains(err.Error(), "skerry keys new") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// OpenSSL, where it is, reads the files and agrees that they belong together.
func TestOpenSSLAgrees(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := New(dir, "Test", Source{}); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.Command(tool, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("openssl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, n := range []string{"PK", "KEK", "db"} {
		if run("pkey", "-in", n+".key", "-pubout") != run("x509", "-in", n+".crt", "-noout", "-pubkey") {
			t.Errorf("%s: key and certificate differ", n)
		}
	}
	if run("pkey", "-in", "release.key", "-pubout") != run("pkey", "-pubin", "-in", "release.pub", "-pubout") {
		t.Error("release.key and release.pub differ")
	}
}

func FuzzParsePublic(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pub, err := ParsePublic(data); err == nil && len(pub) != 32 {
			t.Errorf("gave a key of %d bytes", len(pub))
		}
	})
}
