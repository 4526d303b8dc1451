package release

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"
)

// signRaw signs bytes as they are, which Sign never does.
func signRaw(t *testing.T, manifest []byte, key ed25519.PrivateKey) ([]byte, []byte, error) {
	t.Helper()
	sig, err := json.Marshal(Signature{
		KeyID: KeyID(key.Public().(ed25519.PublicKey)),
		Sig:   base64.StdEncoding.EncodeToString(ed25519.Sign(key, append([]byte(domain), manifest...))),
	})
	return manifest, sig, err
}
