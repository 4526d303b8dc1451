package secrets

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func ensure(t *testing.T, dir, token string) *Files {
	t.Helper()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, []byte("certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Ensure(dir, token, ca)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t *testing.T, name string) string {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %04o", name, info.Mode().Perm())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A server makes a token once; one that is given takes its place, and stays when it is no longer given.
func TestToken(t *testing.T) {
	dir := t.TempDir()
	made := ensure(t, dir, "").Token
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(made) {
		t.Errorf("the token made is %q", made)
	}
	if again := ensure(t, dir, "").Token; again != made {
		t.Errorf("a restart made another: %q, was %q", again, made)
	}
	if other := ensure(t, t.TempDir(), "").Token; other == made {
		t.Error("two clusters have one token")
	}
	for _, give := range []string{"given-to-the-server", ""} {
		if got := ensure(t, dir, give).Token; got != "given-to-the-server" {
			t.Errorf("given %q the token is %q", give, got)
		}
	}
	if got := read(t, filepath.Join(dir, "server/token")); got != "given-to-the-server\n" {
		t.Errorf("token is %q", got)
	}
	if got := read(t, filepath.Join(dir, "server/node-token")); !regexp.MustCompile(`^K10[0-9a-f]{64}::server:given-to-the-server\n$`).MatchString(got) {
		t.Errorf("node-token is %q", got)
	}
}

// The key that secrets are stored under is made once and never replaced, whatever happens to the file.
func TestEncryptionKeyIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	f := ensure(t, dir, "")
	first := read(t, f.EncryptionFile)
	if !strings.Contains(first, "secretbox") || strings.Contains(first, "identity") {
		t.Errorf("secrets are stored with\n%s", first)
	}
	if err := os.Chmod(f.EncryptionFile, 0o644); err != nil {
		t.Fatal(err)
	}
	ensure(t, dir, "")
	if again := read(t, f.EncryptionFile); again != first {
		t.Error("a restart changed the key")
	}
	if err := os.Truncate(f.EncryptionFile, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(dir, "", filepath.Join(dir, "ca.crt")); err == nil || !strings.Contains(err.Error(), f.EncryptionFile+": is empty; restore it") {
		t.Errorf("with an empty file: %v", err)
	}
}
