package keys

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/uki"
)

// TestMain is the signing command, too: it has the private keys of the folder that SKERRY_TEST_KEYS names.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SKERRY_TEST_KEYS"); dir != "" {
		if err := signFor(dir, os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func signFor(dir, form string, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%d arguments", len(args))
	}
	key, err := loadPrivate(filepath.Join(dir, args[0]+keyExt))
	if err != nil {
		return err
	}
	how, err := algorithm(key.Public())
	if err != nil || how != args[2] || KeyID(key.Public()) != args[1] {
		return fmt.Errorf("asked for %v of a key %s, %s: %w", args, KeyID(key.Public()), how, err)
	}
	message, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	opts := map[string]crypto.Hash{AlgorithmEd25519: 0, AlgorithmRSA: crypto.SHA256}[how]
	sig, err := crypto.SignMessage(key, rand.Reader, message, opts)
	if err != nil {
		return err
	}
	switch form {
	case "hex":
		fmt.Println(hex.EncodeToString(sig))
	case "base64":
		fmt.Println(base64.StdEncoding.EncodeToString(sig))
	case "raw":
		_, err = os.Stdout.Write(sig)
	case "wrong":
		_, err = os.Stdout.Write(bytes.Repeat([]byte{1}, len(sig)))
	}
	return err
}

// elsewhere takes the private keys out of a folder, and gives the command that signs with them.
func elsewhere(t *testing.T, dir, form string) Command {
	t.Helper()
	away := t.TempDir()
	files, err := filepath.Glob(filepath.Join(dir, "*"+keyExt))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Rename(f, filepath.Join(away, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SKERRY_TEST_KEYS", away)
	return ParseCommand(self + " " + form)
}

// signs says whether a set makes all signatures of a release.
func signs(s *Set) error {
	if err := s.CanBuild(); err != nil {
		return err
	}
	for _, k := range s.ReleaseSigners() {
		sig, err := crypto.SignMessage(k, rand.Reader, []byte("m"), crypto.Hash(0))
		if err != nil {
			return err
		}
		if !ed25519.Verify(k.Public().(ed25519.PublicKey), []byte("m"), sig) {
			return errors.New("a wrong signature")
		}
	}
	for _, p := range s.Pairs() {
		p.Enrol = nil
		if _, err := s.EnrolFile(p.Name, time.Now()); err != nil {
			return err
		}
	}
	_, err := uki.AddFile("db", s.GUID, nil, time.Now(), s.BootSigners()[0])
	return err
}

// A folder without private keys signs by a command, whatever form that answers in; without one it says so before the work begins.
func TestSigningCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := New(dir, "Test", Source{}); err != nil {
		t.Fatal(err)
	}
	with := elsewhere(t, dir, "")
	for _, form := range []string{"raw", "hex", "base64"} {
		s, err := Load(dir, ParseCommand(with[0]+" "+form))
		if err != nil {
			t.Fatal(err)
		}
		if err := signs(s); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	for want, with := range map[string]Command{
		"no signature by key": {with[0], "wrong"}, "exit status 1": {with[0], "raw", "more"}, "no such file": {filepath.Join(dir, "nothing")},
	} {
		s, err := Load(dir, with)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := crypto.SignMessage(s.Release, rand.Reader, nil, crypto.Hash(0)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "key release") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	s, err := Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{s.CanBuild(), s.CanSign(), signs(s)} {
		if !errors.Is(err, ErrElsewhere) || !strings.Contains(err.Error(), "release") || !strings.Contains(err.Error(), "--sign-with") {
			t.Errorf("nobody signs: %v", err)
		}
	}
	if err := s.CanBuild(); !strings.Contains(err.Error(), "db") || strings.Contains(err.Error(), "KEK") {
		t.Errorf("PK and KEK have signed all that a release takes of them: %v", err)
	}
}

// A folder is made for keys that are elsewhere from the start: it never holds a private one.
func TestNewOnToken(t *testing.T) {
	token, dir := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "keys")
	if _, err := New(token, "Test", Source{}); err != nil {
		t.Fatal(err)
	}
	public := t.TempDir()
	for _, name := range append([]string{releaseName}, SecureBoot...) {
		key, err := loadPrivate(filepath.Join(token, name+keyExt))
		if err != nil {
			t.Fatal(err)
		}
		data, err := MarshalPublic(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(public, name+pubExt), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with := elsewhere(t, token, "raw")
	pubs, err := LoadPublicDir(public)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(dir, "Test", Source{Public: pubs, Sign: with})
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(s); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+keyExt)); len(left) > 0 {
		t.Errorf("the folder holds %v", left)
	}
	for _, p := range s.Pairs() {
		if err := p.Cert.CheckSignatureFrom(p.Cert); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	pubs["db"] = pubs["release"]
	if _, err := New(filepath.Join(t.TempDir(), "keys"), "Test", Source{Public: pubs, Sign: with}); err == nil || !strings.Contains(err.Error(), "firmware checks RSA") {
		t.Errorf("an ed25519 key for firmware: %v", err)
	}
}
