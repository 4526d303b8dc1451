package release

import (
	"bytes"
	"crypto/ed25519"
	"testing"
)

// Nothing that is not signed is ever a release, and nothing makes reading it fail otherwise than by an error.
func FuzzManifest(f *testing.F) {
	pub, key, err := ed25519.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 64)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"schema":1,"version":"1.2.3"}`+"\n"), []byte(`{"keyID":"x","sig":"AAAA"}`), true)
	f.Add([]byte(`{"schema":1}`), []byte(`{}`), false)
	f.Fuzz(func(t *testing.T, manifest, sig []byte, signed bool) {
		if signed { // as if by a signer that was talked into it: what is inside must still be right
			_, sig, _ = signRaw(t, manifest, key)
		}
		r, err := Verify(manifest, sig, []ed25519.PublicKey{pub})
		if err != nil {
			if r != nil {
				t.Error("an error and a release")
			}
			return
		}
		if !signed {
			t.Error("what nobody signed was taken")
		}
		again, merr := r.Manifest().Marshal()
		if merr != nil || !bytes.Equal(again, manifest) {
			t.Errorf("is not what was signed: %v", merr)
		}
		tail, terr := r.Tail()
		if terr != nil {
			t.Fatal(terr)
		}
		if _, terr = ReadTail(bytes.NewReader(tail), int64(len(tail)), []ed25519.PublicKey{pub}); terr != nil {
			t.Error(terr)
		}
	})
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.2.3", "1.2.3-rc1", "nightly")
	f.Add("0.0.0-9-g1234567", "0.0.0-10-gabcdef0", "0.0.0-10-gabcdef0-dirty")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, ba := CompareVersions(a, b), CompareVersions(b, a)
		if ab != -ba {
			t.Errorf("%q and %q: %d and %d", a, b, ab, ba)
		}
		if ab <= 0 && CompareVersions(b, c) <= 0 && CompareVersions(a, c) > 0 {
			t.Errorf("%q, %q, %q go round in a circle", a, b, c)
		}
	})
}
