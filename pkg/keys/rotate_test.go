package keys

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-os/skerry/image/uki"
	"github.com/skerry-os/skerry/pkg/release"
)

// A fleet goes from one release key to the next by ordinary updates: what is signed in between satisfies those who know the old key
// alone and brings them the new one.
func TestRotateRelease(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := New(dir, "Test", Source{})
	if err != nil {
		t.Fatal(err)
	}
	signed := func() []byte {
		t.Helper()
		sig, err := release.SignBytes("d\n", []byte("m"), s.ReleaseSigners()...)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	by := func(sig []byte, trusted []ed25519.PublicKey) string {
		t.Helper()
		p, err := release.ParseSignature(sig)
		if err != nil {
			t.Fatal(err)
		}
		if pub := p.By("d\n", []byte("m"), trusted); pub != nil {
			return release.KeyID(pub)
		}
		return ""
	}
	old := s.Trusted() // what a machine knows that runs a release of now
	first := s.ReleaseID()
	if err := s.Rotate("release", Source{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	second := s.ReleaseID()
	between := s.Trusted()
	if second == first || len(between) != 2 || s.CanBuild() != nil {
		t.Fatalf("key %s, then %s, trusted %d", first, second, len(between))
	}
	bridge := signed()
	if got := by(bridge, old); got != first {
		t.Errorf("a machine of before takes the release of between by %q, want %q", got, first)
	}
	if pubs, err := TrustedIn(dir); err != nil || len(pubs) != 2 || !pubs[0].Equal(s.ReleasePublic()) {
		t.Errorf("%d trusted, %v", len(pubs), err)
	}
	if err := s.Rotate("release", Source{}, time.Now()); err == nil || !strings.Contains(err.Error(), "retire") {
		t.Errorf("a third key at once: %v", err)
	}
	if err := s.Retire("release", time.Now()); err != nil {
		t.Fatal(err)
	}
	if s, err = Load(dir, nil); err != nil {
		t.Fatal(err)
	}
	after := signed()
	if got := by(after, between); got != second {
		t.Errorf("a machine of between takes the next release by %q, want %q", got, second)
	}
	if got := by(after, old) + by(bridge, nil); got != "" {
		t.Errorf("taken by %q", got)
	}
	if len(s.Trusted()) != 1 || s.ReleaseID() != second {
		t.Error("the old key is still trusted")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*old*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := s.Retire("release", time.Now()); err == nil {
		t.Error("retired twice")
	}
}

// What is on the word of whom, while machines go over to a new key of Secure Boot.
func TestRotateSecureBoot(t *testing.T) {
	for _, name := range SecureBoot {
		dir := filepath.Join(t.TempDir(), "keys")
		s, err := New(dir, "Test", Source{})
		if err != nil {
			t.Fatal(err)
		}
		before := *s.pair(name)
		if err := s.Rotate(name, Source{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if s, err = Load(dir, nil); err != nil {
			t.Fatal(err)
		}
		p := s.pair(name)
		if p.Before == nil || !p.Before.Cert.Equal(before.Cert) || p.Before.Key.ID() != before.Key.ID() || !p.Before.Key.Here() || p.Cert.Equal(before.Cert) {
			t.Errorf("%s: %+v", name, p)
		}
		update, err := uki.Enrolled(p.Update)
		if err != nil || len(update) != 1 || !update[0].Equal(p.Cert) {
			t.Errorf("%s: the update brings %d, %v", name, len(update), err)
		}
		enrol, err := uki.Enrolled(p.Enrol)
		want := 2
		if name == "PK" {
			want = 1
		}
		if err != nil || len(enrol) != want || !enrol[want-1].Equal(p.Cert) {
			t.Errorf("%s: firmware in setup mode enrols %d, %v", name, len(enrol), err)
		}
		signer := s.above(name) // whom all machines know
		if name == "PK" {
			signer = &before
		}
		if !bytes.Contains(p.Update, signer.Cert.Raw) {
			t.Errorf("%s: the update is not on the word of %s of before", name, signer.Name)
		}
		if n := len(s.BootSigners()); name == "db" && (n != 2 || !s.BootSigners()[0].Cert.Equal(before.Cert)) || name != "db" && n != 1 {
			t.Errorf("%s: kernel images are signed by %d", name, n)
		}
		for _, other := range SecureBoot {
			if err := s.Rotate(other, Source{}, time.Now()); err == nil || !strings.Contains(err.Error(), "keys retire") {
				t.Errorf("%s beside %s: %v", other, name, err)
			}
		}
		if err := s.Retire(name, time.Now()); err != nil {
			t.Fatal(err)
		}
		if s, err = Load(dir, nil); err != nil {
			t.Fatal(err)
		}
		if p := s.pair(name); p.Before != nil || p.Update != nil || s.CanBuild() != nil {
			t.Errorf("%s: not retired", name)
		}
		if got, err := uki.Enrolled(s.pair(name).Enrol); err != nil || len(got) != 1 || got[0].Equal(before.Cert) {
			t.Errorf("%s: afterwards firmware enrols %d, %v", name, len(got), err)
		}
	}
}

// A key on a token has a name there; its successor has another, and the old one is found by its own to the end.
func TestRotateOnToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := New(dir, "Test", Source{}); err != nil {
		t.Fatal(err)
	}
	with := elsewhere(t, dir, "raw")
	s, err := Load(dir, with)
	if err != nil {
		t.Fatal(err)
	}
	token := Source{}
	next, err := token.MakePublic(os.Getenv("SKERRY_TEST_KEYS"), "release-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rotate("release", Source{Public: map[string]crypto.PublicKey{"release": next.Public()}, Label: "release-2", Sign: with}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := signs(s); err != nil {
		t.Error(err)
	}
	if s.ReleaseID() != next.ID() {
		t.Error("another key came in")
	}
	if err := s.Rotate("db", Source{Sign: with}, time.Now()); err != nil { // one that is made here from now on
		t.Fatal(err)
	}
	if err := signs(s); err != nil {
		t.Error(err)
	}
	files, err := fs.Glob(os.DirFS(dir), "*.key")
	if err != nil || !slices.Equal(files, []string{"db.key"}) {
		t.Errorf("private keys here: %v", files)
	}
	if err := errors.Join(s.Retire("release", time.Now()), s.Retire("db", time.Now())); err != nil {
		t.Fatal(err)
	}
	if s, err = Load(dir, with); err != nil {
		t.Fatal(err)
	}
	if err := signs(s); err != nil {
		t.Error(err)
	}
}
