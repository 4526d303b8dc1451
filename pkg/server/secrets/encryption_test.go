package secrets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A rotation goes through its stages and no others, whatever happens between two of them, and never loses the key in use.
func TestRotation(t *testing.T) {
	name := filepath.Join(t.TempDir(), "encryption.yaml")
	if err := ensureEncryption(name); err != nil {
		t.Fatal(err)
	}
	load := func() *Encryption {
		t.Helper()
		e, err := ReadEncryption(name)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := load()
	first := e.Keys[0]
	if e.Stage() != StageStart || e.Plain != PlainNever || first.Name != "key1" {
		t.Fatalf("at first: %s, %v", e.Stage(), e.Plain)
	}
	if err := e.Rotate(); err == nil {
		t.Error("rotated without a new key")
	}
	for round := range 12 { // key9 and key10 are in the order of numbers, not of letters
		if err := e.Prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(name); err != nil {
			t.Fatal(err)
		}
		if e = load(); e.Stage() != StagePrepare || e.Keys[0] != first {
			t.Fatalf("round %d prepared: %s", round, e.Stage())
		}
		if err := e.Prepare(); err == nil {
			t.Error("prepared twice")
		}
		if err := e.Rotate(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(name); err != nil {
			t.Fatal(err)
		}
		if e = load(); e.Stage() != StageRotate || e.Keys[1] != first || e.Keys[0].Secret == first.Secret {
			t.Fatalf("round %d rotated: %s", round, e.Stage())
		}
		e.Finish()
		digest, err := e.Write(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Digest(name); err != nil || got != digest {
			t.Errorf("digest %s, %v; want %s", got, err, digest)
		}
		e = load()
		first = e.Keys[0]
	}
	if first.Name != "key13" || e.Stage() != StageStart {
		t.Errorf("in the end: %s at %s", first.Name, e.Stage())
	}
	for _, plain := range []PlainText{PlainRead, PlainWritten, PlainNever} {
		e.Plain = plain
		if _, err := e.Write(name); err != nil {
			t.Fatal(err)
		}
		if e = load(); e.Plain != plain || e.Keys[0] != first {
			t.Errorf("plain text %v comes back as %v", plain, e.Plain)
		}
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// Files that others wrote are not touched, and errors tell no keys.
func TestForeignEncryption(t *testing.T) {
	name := filepath.Join(t.TempDir(), "encryption.yaml")
	for _, text := range []string{
		"resources: [{resources: [secrets, configmaps], providers: [{identity: {}}]}]",
		"resources: [{resources: [secrets], providers: [{kms: {name: c2VjcmV0}}]}]",
		"resources: [{resources: [secrets], providers: [{identity: {}}]}]",
		"secret: c2VjcmV0: [",
		"",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := ReadEncryption(name); err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%q: %+v, %v", text, e, err)
		}
	}
}
